//! What an operator reads when a device does not come up. One process per test file.
#![cfg(feature = "dpdk")]

mod common;

use simplon::dpdk::{Device, DpdkError, Eal};

#[test]
fn unknown_device_is_named_in_the_error() {
    let bad = Device::Virtual("eth0".into());
    let refused = Eal::init(&common::config("missing", &[bad])).expect_err("refused");
    assert!(matches!(refused, DpdkError::BadDevice { .. }), "{refused}");

    // The refusal above started nothing, so this is the first start.
    let absent = Device::Virtual("net_af_paket0,iface=lo".into());
    let refused = Eal::init(&common::config("missing", &[absent])).expect_err("refused");
    let text = refused.to_string();
    assert!(text.contains("net_af_paket0,iface=lo"), "{text}");
    assert!(text.contains("spelled right"), "{text}");
}
