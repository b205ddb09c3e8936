//! `simplon spi` chooses SPIs that come to the queues it says, and `simplon check` warns of those that do not.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use simplon::ids::Spi;
use simplon::wire::rss::{EspInput, Spreading};

fn simplon(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_simplon"))
        .args(arguments)
        .output()
        .expect("simplon")
}

/// SPIs and queues as they were printed.
fn chosen(arguments: &[&str]) -> Vec<(Spi, u16)> {
    let done = simplon(&[&["spi"], arguments].concat());
    let (out, said) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    assert!(done.status.success(), "{said}");
    let line = |line: &str| {
        let (spi, queue) = line.split_once(' ').expect("two columns");
        let spi = u32::from_str_radix(spi.trim_start_matches("0x"), 16).expect("hexadecimal");
        (
            Spi::new(spi).expect("not reserved"),
            queue.trim().parse().expect("a number"),
        )
    };
    out.lines().skip(1).map(line).collect()
}

#[test]
fn spis_come_to_their_queues_by_either_input_and_any_table() {
    for (local, remote) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
        let chosen = chosen(&[
            "--queues", "8", "--count", "12", "--local", local, "--remote", remote,
        ]);
        let queues: Vec<u16> = chosen.iter().map(|(_, queue)| *queue).collect();
        assert_eq!(queues, [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]);
        let (local, remote): (IpAddr, IpAddr) = (
            local.parse().expect("address"),
            remote.parse().expect("address"),
        );
        for (spi, queue) in chosen {
            for len in [64, 128, 512] {
                let spreading = Spreading::usual(8, len).expect("a power of two");
                for input in EspInput::ALL {
                    let found = spreading.esp_queue(input, remote, local, spi);
                    assert_eq!(found.0, queue, "{spi} {input:?} {len}");
                }
            }
        }
    }
}

#[test]
fn three_queues_have_their_table() {
    let spreading = Spreading::usual(3, 512).expect("a power of two");
    let zero = IpAddr::from([0; 4]);
    for (spi, queue) in chosen(&["--queues", "3", "--table-len", "512", "--input", "spi"]) {
        assert_eq!(spreading.esp_queue(EspInput::Spi, zero, zero, spi).0, queue);
    }
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    for arguments in [
        &["--queues", "0"][..],
        &["--queues", "65"],
        &["--queues", "4", "--table-len", "100"],
        &["--queues", "4", "--input", "both"],
        &["--queues", "4", "--local", "192.0.2.1"],
        &[
            "--queues",
            "4",
            "--local",
            "192.0.2.1",
            "--remote",
            "2001:db8::1",
        ],
        &["--queues", "4", "--port", "wan"],
        &[],
    ] {
        let done = simplon(&[&["spi"], arguments].concat());
        assert!(
            !done.status.success() && !done.stderr.is_empty(),
            "{arguments:?}"
        );
    }
}

#[test]
fn check_warns_of_spis_on_one_queue_and_accepts_the_file() {
    let dir = tempfile::TempDir::new().expect("dir");
    let mut good = chosen(&[
        "--queues",
        "2",
        "--count",
        "2",
        "--local",
        "192.0.2.1",
        "--remote",
        "192.0.2.2",
    ]);
    let same = chosen(&[
        "--queues",
        "2",
        "--count",
        "3",
        "--local",
        "192.0.2.1",
        "--remote",
        "192.0.2.2",
    ]);
    let check = |spis: &[(Spi, u16)]| {
        let mut sas = String::new();
        for (number, (spi, _)) in spis.iter().enumerate() {
            for direction in ["out", "in"] {
                let key = dir.path().join(format!("{direction}{number}.key"));
                let digits = format!("{direction:?}{number}")
                    .bytes()
                    .fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
                std::fs::write(&key, format!("{digits:0<40}")).expect("key");
                std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600))
                    .expect("mode");
            }
            sas += &format!(
                "[[tunnel.endpoints.sa]]\noutbound = {{ spi = {}, key.file = \"out{number}.key\" }}\n\
                 inbound = {{ spi = {spi}, key.file = \"in{number}.key\" }}\n",
                0x1000 + number
            );
        }
        let text = format!(
            "[gateway]\nname = \"west\"\nworkers = [0, 1]\nstate_dir = \"/nowhere\"\n\
             control_socket = \"/nowhere/socket\"\nlab_keys = true\n\
             [[port]]\nname = \"lan\"\ndevice = \"net_null0\"\nside = \"protected\"\npair = \"wan\"\n\
             [[port]]\nname = \"wan\"\ndevice = \"net_null1\"\nside = \"unprotected\"\npair = \"lan\"\n\
             [[tunnel]]\nname = \"split\"\nlocal_networks = [\"10.1.0.0/16\"]\nremote_networks = [\"10.2.0.0/16\"]\n\
             [[tunnel.endpoints]]\nlocal = \"192.0.2.1\"\nremote = \"192.0.2.2\"\n\
             outbound.cipher = \"aes-128-gcm\"\ninbound.cipher = \"aes-128-gcm\"\n{sas}"
        );
        let file = dir.path().join("west.toml");
        std::fs::write(&file, text).expect("policy");
        let done = simplon(&["check", &file.to_string_lossy()]);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{said}");
        assert!(String::from_utf8_lossy(&done.stdout).contains("SAs: 4"));
        said
    };
    assert_eq!(check(&good), "");
    // Both on queue 0.
    good[1] = same[2];
    good[0] = same[0];
    let said = check(&good);
    assert_eq!(
        said.matches("warning: all inbound SAs of tunnel \"split\"")
            .count(),
        2,
        "{said}"
    );
    assert!(said.contains("simplon spi"));
}
