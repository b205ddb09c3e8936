//! SAs that may be used for so many packets: what an operator sees before the end and after it.
#![cfg(feature = "dpdk")]

mod testbed;

use std::time::Duration;

use serde_json::{Value, json};

use testbed::{Failure, Ping, Result, Testbed, TunnelSpec, wait_until};

const SOFT_LINE: &str = "SA will expire soon";
const HARD_LINE: &str = "SA has expired and stopped";
/// The control thread looks a hundred times a second.
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn sas_warn_at_nine_tenths_and_stop_at_the_last_packet() -> Result<()> {
    let spec = TunnelSpec {
        lifetime: "lifetime_packets = 50\nlifetime_time = \"8h\"\n",
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
    assert_eq!(ping(44)?, 44);
    assert_eq!(states(&bed)?, (vec!["up".into(); 2], "up".into()));
    assert_eq!(ping(1)?, 1);
    wait(&bed, "soft", "up")?;
    assert_eq!(ping(20)?, 5, "exactly what was left");
    wait(&bed, "expired", "sa-expired")?;
    assert_eq!(bed.west.dropped_for("outbound", "sa-expired")?, 15);

    let shown = bed.west.show("sa")?;
    for row in shown["sas"].as_array().into_iter().flatten() {
        assert_eq!((&row["packets"], &row["bytes"]), (&json!(50), &json!(4200)));
        let lifetime = &row["lifetime"];
        let packets = json!({ "used": 50, "soft": 45, "hard": 50 });
        assert_eq!(lifetime["packets"], packets, "{shown}");
        assert_eq!(lifetime["time_ms"]["hard"], 8 * 3600 * 1000, "{shown}");
        assert_eq!(lifetime["bytes"], Value::Null, "{shown}");
    }
    // Once for each SA, for all the looks since.
    let log = bed.west.log();
    for line in [SOFT_LINE, HARD_LINE] {
        assert_eq!(log.matches(line).count(), 2, "{line}: {log}");
    }
    Ok(())
}

/// The states of both SAs of the west gateway, and of its tunnel.
fn states(bed: &Testbed) -> Result<(Vec<String>, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let sas = bed.west.show("sa")?;
    let rows = sas["sas"].as_array().into_iter().flatten();
    let tunnels = bed.west.show("tunnels")?;
    Ok((
        rows.map(|row| text(&row["state"])).collect(),
        text(&tunnels["tunnels"][0]["state"]),
    ))
}

/// Waits until both SAs and the tunnel are in these states.
fn wait(bed: &Testbed, sas: &str, tunnel: &str) -> Result<()> {
    let wanted = (vec![sas.to_owned(); 2], tunnel.to_owned());
    if wait_until(PATIENCE, || states(bed).is_ok_and(|found| found == wanted)) {
        return Ok(());
    }
    Err(Failure(format!(
        "{:?}, not {wanted:?}\n{}",
        states(bed)?,
        bed.west.log()
    )))
}
