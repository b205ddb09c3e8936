//! Policies that change under gateways that carry traffic, as an operator changes them: nothing that was not named is touched,
//! and new keys take the place of old ones without a packet lost.
#![cfg(feature = "dpdk")]

mod testbed;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use testbed::{
    Failure, Family, Gateway, Ping, Result, Site, Testbed, TunnelSpec, assert_balanced,
    assert_clean_stop, wait_until,
};

/// The control thread takes milliseconds; a busy machine takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A gateway's policy up to its tunnel, and the tunnel.
fn policy(gateway: &Gateway) -> Result<(String, String)> {
    let text = fs::read_to_string(gateway.policy())?;
    let at = text.find("[[tunnel]]").unwrap_or(text.len());
    let (head, tunnel) = text.split_at(at);
    Ok((head.to_owned(), tunnel.to_owned()))
}

/// Makes a key.
fn genkey(gateway: &Gateway, path: &Path) -> Result<()> {
    let path = path.to_string_lossy();
    testbed::run(&[
        env!("CARGO_BIN_EXE_simplon"),
        "genkey",
        "--cipher",
        "aes-128-gcm",
        &path,
    ])
    .map(drop)
    .map_err(|why| Failure(format!("{}: {why}", gateway.name())))
}

/// The tunnel with other SPIs and keys, which lie beside the others with `more` at the end of their names.
fn rekeyed(tunnel: &str, more: &str) -> String {
    tunnel
        .replace("spi = 0x1001", "spi = 0x2001")
        .replace("spi = 0x1002", "spi = 0x2002")
        .replace(".key\"", &format!(".key{more}\""))
}

fn write(bed: &Testbed, name: &str, text: &str) -> Result<String> {
    let path = bed.dir().join(name);
    fs::write(&path, text)?;
    Ok(path.to_string_lossy().into_owned())
}

/// Makes the keys that [`rekeyed`] names.
fn make_keys(bed: &Testbed) -> Result<()> {
    for name in ["west-to-east.key2", "east-to-west.key2"] {
        genkey(&bed.west, &bed.dir().join(name))?;
    }
    Ok(())
}

/// Gives one end of the tunnel its new keys.
fn rekey(bed: &Testbed, gateway: &Gateway, how: &[&str]) -> Result<String> {
    let (_, tunnel) = policy(gateway)?;
    let file = format!("{}.tables", gateway.site().name());
    let file = write(bed, &file, &rekeyed(&tunnel, "2"))?;
    let replace = ["policy", "replace", &file, "--grace", "1"];
    gateway.ask(&[&replace[..], how].concat())
}

fn sas(gateway: &Gateway) -> Result<Vec<(String, u64)>> {
    let shown = gateway.show("sa")?;
    let rows = shown["sas"].as_array().into_iter().flatten();
    let row = |row: &Value| {
        let spi = row["spi"].as_str().unwrap_or_default().to_owned();
        (spi, row["packets"].as_u64().unwrap_or_default())
    };
    Ok(rows.map(row).collect())
}

#[test]
fn new_keys_take_the_place_of_old_ones_and_no_ping_is_lost() -> Result<()> {
    let Some(mut bed) = Testbed::for_test(TunnelSpec::default())? else {
        return Ok(());
    };
    make_keys(&bed)?;
    let ping = Ping {
        count: 1500,
        at_once: 1,
        interval: Duration::from_millis(5),
        ..Ping::default()
    };
    let replace = |gateway: &Gateway, how: &[&str]| rekey(&bed, gateway, how);
    let result = std::thread::scope(|scope| -> Result<_> {
        let pings = scope.spawn(|| bed.ping(&ping));
        std::thread::sleep(Duration::from_millis(500));
        let refused = replace(&bed.west, &[]).expect_err("keys that nobody knows");
        assert!(refused.to_string().contains("--fresh-keys"), "{refused}");
        let done = replace(&bed.west, &["--fresh-keys"])?;
        assert!(
            done.contains("~ tunnel west-east: other SPIs or keys"),
            "{done}"
        );
        assert!(done.contains("policy 2 is in force"), "{done}");
        // West seals with the old key still: east has not got the new one.
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(sas(&bed.west)?[0], ("0x00002001".to_owned(), 0));
        let flow = ["explain", "--local", "10.1.0.10", "--remote", "10.2.0.10"];
        let told = bed.west.ask(&flow)?;
        assert!(told.contains("0x00001001"), "{told}");
        assert!(
            told.contains("until the peer uses the one that takes its place"),
            "{told}"
        );
        replace(&bed.east, &["--fresh-keys", "--outbound-after", "0"])?;
        pings.join().map_err(|_| Failure("ping".into()))?
    })?;
    assert_eq!(result.received, ping.count, "{result:?}");
    for gateway in [&bed.west, &bed.east] {
        let sas = sas(gateway)?;
        assert_eq!(sas.len(), 2);
        for (spi, packets) in &sas {
            assert!(spi.starts_with("0x0000200"), "{sas:?}");
            assert!(*packets > 100, "{sas:?}");
        }
        let drops = gateway.show("drops")?;
        assert_eq!(drops["drops"].as_array().map(Vec::len), Some(0), "{drops}");
        // The old ones have left, so that their names can be used again.
        let (_, tunnel) = policy(gateway)?;
        let file = write(&bed, "old.tables", &tunnel)?;
        let back = || gateway.ask(&["policy", "replace", &file, "--outbound-after", "0"]);
        assert!(wait_until(PATIENCE, || back().is_ok()), "{:?}", back());
    }
    assert_eq!(bed.ping(&Ping::default())?.received, 3);
    assert_balanced(&bed)?;
    assert_clean_stop(&mut bed)
}

#[test]
fn new_sas_seal_at_once_where_the_old_have_expired() -> Result<()> {
    let spec = TunnelSpec {
        lifetime: "lifetime_packets = 5\n",
        ..TunnelSpec::default()
    };
    let Some(bed) = Testbed::for_test(spec)? else {
        return Ok(());
    };
    let ping = |count| {
        let ping = Ping {
            count,
            at_once: count,
            ..Ping::default()
        };
        bed.ping(&ping).map(|result| result.received)
    };
    assert_eq!(ping(20)?, 5);
    let has_expired = || {
        bed.west
            .show("tunnels")
            .is_ok_and(|shown| shown["tunnels"][0]["state"] == "sa-expired")
    };
    assert!(wait_until(PATIENCE, has_expired), "{}", bed.west.log());
    make_keys(&bed)?;
    for gateway in [&bed.west, &bed.east] {
        // Nobody waits for the other's first packet for an hour.
        rekey(&bed, gateway, &["--fresh-keys", "--outbound-after", "3600"])?;
    }
    let ping_works = || ping(1).is_ok_and(|received| received == 1);
    assert!(wait_until(PATIENCE, ping_works), "{}", bed.west.log());
    Ok(())
}

#[test]
fn tables_come_and_go_and_what_is_wrong_changes_nothing() -> Result<()> {
    let Some(bed) = Testbed::for_test(TunnelSpec::default())? else {
        return Ok(());
    };
    let pings = |wanted: u32, why: &str| -> Result<()> {
        let result = bed.ping(&Ping::default())?;
        assert_eq!(result.received, wanted, "{why}\n{}", bed.west.log());
        Ok(())
    };
    let no_echo = "# Nobody pings.\n[[policy]]\nname = \"no-echo\"\naction = \"discard\"\nlocal = \"any\"\nremote = \"any\"\n\
                   protocol = \"icmp\"\n";
    let tables = write(&bed, "no-echo.tables", no_echo)?;
    pings(3, "before")?;
    let said = bed.west.ask(&["policy", "add", &tables])?;
    assert_eq!(said, "+ policy no-echo\npolicy 2 is in force\n");
    pings(0, "discarded")?;
    assert!(
        bed.west
            .ask(&["policy", "show"])?
            .contains("# Nobody pings.")
    );
    let shown = bed.west.show("policies")?;
    assert_eq!(shown["policies"][0]["name"], "no-echo");
    let twice = bed
        .west
        .ask(&["policy", "add", &tables])
        .expect_err("twice");
    assert!(twice.to_string().contains("no-echo"), "{twice}");
    assert!(twice.to_string().contains("stays as it is"), "{twice}");
    let said = bed.west.ask(&["policy", "remove", "no-echo"])?;
    assert_eq!(said, "- policy no-echo\npolicy 3 is in force\n");
    pings(3, "no longer discarded")?;
    let before = sas(&bed.west)?;
    assert!(
        before.iter().all(|(_, packets)| *packets >= 6),
        "{before:?}"
    );

    // A file, with a look ahead; then one with mistakes, and one that takes a start.
    let (head, tunnel) = policy(&bed.west)?;
    let file = bed.west.policy().to_string_lossy().into_owned();
    fs::write(&file, format!("{head}{no_echo}{tunnel}"))?;
    assert_eq!(
        bed.west.ask(&["policy", "diff", &file])?,
        "+ policy no-echo\n"
    );
    pings(3, "only looked at")?;
    bed.west.signal(Signal::HUP);
    let is_there = || {
        let shown = bed.west.show("policies");
        shown.is_ok_and(|shown| shown["policies"][0]["name"] == "no-echo")
    };
    assert!(wait_until(PATIENCE, is_there), "{}", bed.west.log());
    pings(0, "SIGHUP")?;
    fs::write(&file, format!("{head}{tunnel}"))?;
    let said = bed.west.ask(&["policy", "load", &file])?;
    assert!(said.starts_with("- policy no-echo\n"), "{said}");
    for (wrong, told) in [
        (head.replace("workers", "wrkers"), "did you mean"),
        (
            head.replace("mtu = 1400", "mtu = 1300"),
            "stop and start the gateway",
        ),
    ] {
        fs::write(&file, format!("{wrong}{tunnel}"))?;
        let refused = bed.west.ask(&["policy", "load", &file]).expect_err(told);
        assert!(refused.to_string().contains(told), "{refused}");
        bed.west.signal(Signal::HUP);
        pings(3, "what is wrong")?;
    }
    // What was not named counted on.
    let after = sas(&bed.west)?;
    assert!(
        before
            .iter()
            .zip(&after)
            .all(|(one, other)| one.1 < other.1),
        "{after:?}"
    );
    let gone = bed.west.ask(&["policy", "remove", "x"]).expect_err("none");
    assert!(gone.to_string().contains("show policies"), "{gone}");
    Ok(())
}

#[test]
fn sas_that_stay_are_held_to_the_networks_that_their_tunnel_has_now() -> Result<()> {
    let Some(bed) = Testbed::for_test(TunnelSpec::default())? else {
        return Ok(());
    };
    let ping = |family| {
        let ping = Ping {
            family,
            ..Ping::default()
        };
        bed.ping(&ping).map(|result| result.received)
    };
    assert_eq!((ping(Family::V4)?, ping(Family::V6)?), (3, 3));
    let (_, tunnel) = policy(&bed.east)?;
    let v4 = Site::East.network(Family::V4);
    let narrow = tunnel.replace(
        &format!("local_networks = [\"{v4}\", "),
        "local_networks = [",
    );
    assert_ne!(narrow, tunnel);
    let replace = |text: &str| {
        let tables = write(&bed, "networks.tables", text)?;
        bed.east.ask(&["policy", "replace", &tables])
    };
    let said = replace(&narrow)?;
    assert!(said.starts_with("~ tunnel west-east\n"), "{said}");
    assert_eq!((ping(Family::V4)?, ping(Family::V6)?), (0, 3));
    assert_eq!(bed.east.dropped_for("inbound", "selector-mismatch")?, 3);
    replace(&tunnel)?;
    assert_eq!((ping(Family::V4)?, ping(Family::V6)?), (3, 3));
    // The same SAs all the time: 15 opened, and those that did not fit are not counted.
    let counts: Vec<u64> = sas(&bed.east)?
        .iter()
        .map(|(_, packets)| *packets)
        .collect();
    assert_eq!(counts, [15, 15]);
    Ok(())
}

#[test]
fn change_that_is_not_confirmed_is_taken_back_with_its_sas() -> Result<()> {
    let Some(bed) = Testbed::for_test(TunnelSpec::default())? else {
        return Ok(());
    };
    let ping = || bed.ping(&Ping::default()).map(|result| result.received);
    assert_eq!(ping()?, 3);
    // A mistake that cuts everybody off.
    let said = bed
        .west
        .ask(&["policy", "remove", "west-east", "--confirm", "3"])?;
    assert!(said.contains("- tunnel west-east"), "{said}");
    assert!(said.contains("simplon policy confirm"), "{said}");
    assert_eq!(ping()?, 0);
    let other = bed.west.ask(&["policy", "remove", "west-east"]);
    assert!(other.is_err_and(|why| why.to_string().contains("waits to be confirmed")));
    assert!(wait_until(PATIENCE, || sas(&bed.west).is_ok_and(|sas| sas.len() == 2)));
    assert_eq!(ping()?, 3, "{}", bed.west.log());
    assert!(sas(&bed.west)?.iter().all(|(_, packets)| *packets == 6));

    bed.west
        .ask(&["policy", "remove", "west-east", "--confirm", "60"])?;
    assert_eq!(ping()?, 0);
    let said = bed.west.ask(&["policy", "rollback"])?;
    assert!(said.contains("+ tunnel west-east"), "{said}");
    assert_eq!(ping()?, 3);
    let nothing = bed.west.ask(&["policy", "confirm"]);
    assert!(nothing.is_err_and(|why| why.to_string().contains("no change waits")));

    bed.west
        .ask(&["policy", "remove", "west-east", "--confirm", "60"])?;
    let said = bed.west.ask(&["policy", "confirm"])?;
    assert!(said.contains("is kept"), "{said}");
    // It left for good; its key is known, and goes on behind all that it sealed.
    let (_, tunnel) = policy(&bed.west)?;
    let tables = write(&bed, "tunnel.tables", &tunnel)?;
    let add = || bed.west.ask(&["policy", "add", &tables]);
    assert!(wait_until(PATIENCE, || add().is_ok()), "{:?}", add());
    assert_eq!(ping()?, 3, "{}", bed.west.log());
    assert_eq!(bed.west.site(), Site::West);
    Ok(())
}

#[test]
fn threads_that_write_numbers_and_read_policies_keep_off_the_workers() -> Result<()> {
    let Some(bed) = Testbed::for_test(TunnelSpec::default())? else {
        return Ok(());
    };
    let pid = bed.west.pid().unwrap_or_default();
    let mut cores = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        let name = fs::read_to_string(task.join("comm"))?;
        let status = fs::read_to_string(task.join("status"))?;
        let list = status.lines().find_map(|line| {
            let list = line.strip_prefix("Cpus_allowed_list:")?;
            Some(list.trim().to_owned())
        });
        cores.insert(name.trim().to_owned(), list);
    }
    let worker = cores.iter().find(|(name, _)| name.starts_with("worker-"));
    assert!(worker.is_some(), "{cores:?}");
    // With one core all share it.
    if std::thread::available_parallelism()?.get() > 1 {
        // This thread is the one that is kept off by itself.
        let control = cores.get("simplon");
        assert_ne!(control, worker.map(|(_, list)| list), "{cores:?}");
        for name in ["state", "policy"] {
            assert_eq!(cores.get(name), control, "{name}: {cores:?}");
        }
    }
    Ok(())
}
