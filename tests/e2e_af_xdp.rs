//! Two gateways on AF_XDP ports between two hosts: the same course as on AF_PACKET.
#![cfg(feature = "dpdk")]

mod testbed;

use testbed::{Encapsulation, Family, PortKind, Result, TunnelSpec, run_course};

#[test]
fn one_worker_carries_every_size_and_streams_both_ways() -> Result<()> {
    run_course(
        TunnelSpec {
            ports: PortKind::AfXdp { queues: 1 },
            inner_mtu: 1500,
            outer_mtu: 1600,
            ..TunnelSpec::default()
        },
        2,
    )
}

/// One queue a port is all there is: DPDK's driver counts "combined" channels, and veth has none. So one worker seals
/// and the other opens.
#[test]
fn two_workers_carry_one_direction_each() -> Result<()> {
    let spec = TunnelSpec {
        ports: PortKind::AfXdp { queues: 1 },
        workers: 2,
        outer: Family::V6,
        encapsulation: Encapsulation::Udp,
        ..TunnelSpec::default()
    };
    run_course(spec, 2)
}
