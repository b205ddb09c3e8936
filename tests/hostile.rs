//! What strangers and broken hosts may send: whatever it is, nothing crashes, every packet ends in exactly one counter,
//! every mbuf comes home, and no forged or clear byte gets through. One process, one EAL, no privileges.
#![cfg(feature = "dpdk")]
// What is cast here was made small enough a few lines before.
#![expect(clippy::cast_possible_truncation)]

#[path = "common/random.rs"]
mod chance;
mod common;
#[path = "hostile/explained.rs"]
mod explained;
#[path = "hostile/fragments.rs"]
mod fragments;
#[path = "hostile/inbound.rs"]
mod inbound;
#[path = "hostile/inner.rs"]
mod inner;
#[path = "hostile/lifetimes.rs"]
mod lifetimes;
#[path = "hostile/outbound.rs"]
mod outbound;
#[path = "hostile/packets.rs"]
mod packets;
#[path = "hostile/random.rs"]
mod random;
#[path = "hostile/replays.rs"]
mod replays;
#[path = "hostile/rig.rs"]
mod rig;
#[path = "hostile/sites.rs"]
mod sites;

use simplon::dpdk::{Eal, Mempool, Port, RingPair, StartedPort, ring_pair};

use rig::{Gateway, RING, Rig, Wire};
use sites::Site;

#[test]
fn hostile_input_is_counted_and_goes_nowhere() {
    let eal = Eal::init(&common::config("hostile", &[])).expect("EAL starts");
    let pool = Mempool::create(&eal, "pool", 4095, 2048, 32).expect("pool");
    run_all(&eal, &pool, "", false);
    assert_eq!(pool.in_use(), 0);
    // What is followed fares no differently, and its records tell how.
    run_all(&eal, &pool, "t", true);
    assert_eq!(pool.in_use(), 0);
}

fn run_all(eal: &Eal, pool: &Mempool<'_>, prefix: &str, is_followed: bool) {
    // West's protected and unprotected port, then east's.
    let pairs: Vec<RingPair<'_>> = ["wp", "wu", "ep", "eu"]
        .into_iter()
        .map(|name| {
            let name = format!("{prefix}{name}");
            ring_pair(eal, &name, 1, RING as u32).expect("pair")
        })
        .collect();
    let start = |id| {
        let mut port = Port::open(eal, id).expect("open");
        port.configure(&common::settings("ring", 1), pool)
            .expect("configure");
        port.start().expect("start")
    };
    let inside: Vec<StartedPort<'_>> = pairs.iter().map(|pair| start(pair.ports().0)).collect();
    let outside: Vec<StartedPort<'_>> = pairs.iter().map(|pair| start(pair.ports().1)).collect();
    let gateway = |site, at: usize| {
        let mut gateway = Gateway::new(
            site,
            pool,
            [inside[at].queues(), inside[at + 1].queues()],
            [at, at + 1].map(|at| inside[at].mac().expect("MAC")),
            [at, at + 1].map(|at| Wire::new(outside[at].queues())),
        );
        if is_followed {
            gateway.follow();
        }
        gateway
    };
    let mut rig = Rig {
        west: gateway(Site::West, 0),
        east: gateway(Site::East, 2),
    };
    inbound::run(&mut rig);
    inner::run(&mut rig);
    replays::run(&mut rig);
    outbound::run(&mut rig);
    lifetimes::run(&mut rig);
    fragments::run(&mut rig);
    random::run(&mut rig);
    explained::run(&mut rig);
    for gateway in [&rig.west, &rig.east] {
        gateway.assert_balanced();
        println!("{:?}: {:#?}", gateway.site, gateway.tally);
        assert_eq!(gateway.was_followed(), is_followed);
    }
}
