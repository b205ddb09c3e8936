use std::path::Path;

use super::*;
use crate::policy::{Secrets, Source, parse};
use crate::wire::rss::USUAL_TABLE_LEN;

/// A policy with one tunnel that is split over these inbound SPIs, and so many queues.
fn policy(spis: &[u32], queues: u16, more: &str) -> Policy {
    let mut keys = Vec::new();
    let mut sas = String::new();
    for (number, spi) in spis.iter().enumerate() {
        for direction in ["OUT", "IN"] {
            let name = format!("{direction}{number}");
            keys.push((name, String::new()));
        }
        sas += &format!(
            "[[tunnel.endpoints.sa]]\noutbound = {{ spi = {}, key = {{ env = \"OUT{number}\" }} }}\n\
             inbound = {{ spi = {spi}, key = {{ env = \"IN{number}\" }} }}\n",
            0x1000 + number
        );
    }
    for (number, (_, key)) in keys.iter_mut().enumerate() {
        *key = format!("{number:032x}00000000");
    }
    let text = format!(
        r#"
[gateway]
name = "west"
workers = [0]
state_dir = "/nowhere"
control_socket = "/nowhere/socket"
lab_keys = true
[[port]]
name = "lan"
device = "net_null0"
side = "protected"
pair = "wan"
[[port]]
name = "wan"
device = "net_null1"
side = "unprotected"
pair = "lan"
queues = {queues}
addresses = ["192.0.2.1/24"]
[[tunnel]]
name = "split"
local_networks = ["10.1.0.0/16"]
remote_networks = ["10.2.0.0/16"]
[[tunnel.endpoints]]
local = "192.0.2.1"
remote = "192.0.2.2"
{more}
outbound = {{ cipher = "aes-128-gcm" }}
inbound = {{ cipher = "aes-128-gcm" }}
{sas}
"#
    );
    let secrets = Secrets::with_environment(keys);
    parse(&Source::new(Path::new("west.toml"), &text), &secrets)
        .unwrap_or_else(|errors| panic!("{errors:#?}\n{text}"))
}

/// SPIs from 0x1000 on that come to `queue` of four by both inputs.
fn spis_for(queue: u16) -> impl Iterator<Item = u32> {
    let spreading = Spreading::usual(4, USUAL_TABLE_LEN).expect("a power of two");
    (0x1000u32..).filter(move |spi| {
        let spi = crate::ids::Spi::new(*spi).expect("not reserved");
        let ends = ([192, 0, 2, 2].into(), [192, 0, 2, 1].into());
        EspInput::ALL
            .iter()
            .all(|input| spreading.esp_queue(*input, ends.0, ends.1, spi).0 == queue)
    })
}

fn said(policy: &Policy) -> Vec<String> {
    let warnings = check_declared(policy, USUAL_TABLE_LEN);
    warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn spis_on_one_queue_are_noticed_for_each_input() {
    let one: Vec<u32> = spis_for(2).take(4).collect();
    let warnings = said(&policy(&one, 4, ""));
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("tunnel \"split\" come to one queue of port \"wan\""));
    assert!(warnings[0].contains("the SPI alone") && warnings[1].contains("addresses and SPI"));
    assert!(
        said(&policy(&one, 1, "")).is_empty(),
        "there is only one queue"
    );
}

#[test]
fn spis_on_several_queues_are_fine() {
    let four: Vec<u32> = (0..4).filter_map(|queue| spis_for(queue).next()).collect();
    assert_eq!(said(&policy(&four, 4, "")), Vec::<String>::new());
}

#[test]
fn udp_encapsulation_is_one_flow() {
    let four: Vec<u32> = (0..4).filter_map(|queue| spis_for(queue).next()).collect();
    let warnings = said(&policy(&four, 4, "encapsulation = \"udp\""));
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("in UDP"), "{warnings:?}");
}

#[test]
fn port_that_does_not_hash_spis_is_told() {
    let four: Vec<u32> = (0..4).filter_map(|queue| spis_for(queue).next()).collect();
    let policy = policy(&four, 4, "");
    let split = split_sets(&policy).next().expect("one");
    assert_eq!((split.sets.len(), split.port), (4, PortIndex(1)));
    let spreading = Spreading::usual(4, 128).expect("a power of two");
    let warnings = split.check(&policy, &spreading, &[]);
    assert!(warnings[0].to_string().contains("does not spread ESP"));
}
