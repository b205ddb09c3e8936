//! Two gateways on AF_PACKET ports between two hosts: whatever the hosts send arrives, and nothing of it shows on the wire.
#![cfg(feature = "dpdk")]

mod testbed;

use testbed::{
    Cipher, Encapsulation, Family, PortKind, Result, Testbed, TunnelSpec, assert_balanced,
    assert_clean_stop, assert_too_big_stops_at_limit, assert_tshark_agrees,
    assert_wire_shows_only_esp, run_course,
};

const V4: &[Family] = &[Family::V4];
const V6: &[Family] = &[Family::V6];
const BOTH: &[Family] = &[Family::V4, Family::V6];

#[test]
fn one_worker_carries_every_size_and_streams_both_ways() -> Result<()> {
    run_course(TunnelSpec::default(), 2)
}

#[test]
fn two_workers_on_two_queues_carry_every_size_and_streams_both_ways() -> Result<()> {
    let ports = PortKind::AfPacket { qpairs: 2 };
    run_course(
        TunnelSpec {
            workers: 2,
            ports,
            ..TunnelSpec::default()
        },
        2,
    )
}

/// Every pair of inner and outer family, with and without UDP; ciphers, sequence numbers and windows vary along.
#[test]
fn every_family_and_encapsulation_carries_up_to_its_limit() -> Result<()> {
    let rows = [
        (
            Family::V4,
            V4,
            Encapsulation::None,
            Cipher::AES_128_GCM,
            true,
            64,
        ),
        (
            Family::V4,
            V6,
            Encapsulation::None,
            Cipher::AES_192_GCM,
            false,
            128,
        ),
        (
            Family::V6,
            V4,
            Encapsulation::None,
            Cipher::AES_256_GCM,
            true,
            65_536,
        ),
        (
            Family::V6,
            V6,
            Encapsulation::None,
            Cipher::AES_128_GCM,
            false,
            1024,
        ),
        (
            Family::V4,
            BOTH,
            Encapsulation::Udp,
            Cipher::AES_256_GCM,
            false,
            1024,
        ),
        (
            Family::V6,
            BOTH,
            Encapsulation::Udp,
            Cipher::AES_192_GCM,
            true,
            4096,
        ),
    ];
    for (outer, inner, encapsulation, cipher, esn, window) in rows {
        let spec = TunnelSpec {
            outer,
            inner,
            encapsulation,
            cipher,
            esn,
            window,
            inner_mtu: 1500,
            ..TunnelSpec::default()
        };
        eprintln!("{spec:?}");
        let Some(mut bed) = Testbed::for_test(spec)? else {
            return Ok(());
        };
        let capture = bed.capture(2000)?;
        assert_too_big_stops_at_limit(&bed)?;
        let on_wire = assert_wire_shows_only_esp(bed.spec(), &capture.frames()?, None)?;
        assert_tshark_agrees(&bed, on_wire.iter().sum())?;
        assert_balanced(&bed)?;
        assert_clean_stop(&mut bed)?;
    }
    Ok(())
}
