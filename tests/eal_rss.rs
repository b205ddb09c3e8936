//! RSS of a port whose driver has it: what is asked for is what the driver then tells. One process per test file.
#![cfg(feature = "dpdk")]

mod common;

use simplon::dpdk::{Device, Eal, Mempool, Port, Rss};
use simplon::wire::rss::RSS_KEY;

/// A key that no driver has by itself. `net_null`'s own is Microsoft's, as `RSS_KEY` is.
static ODD_KEY: [u8; 80] = [0x5c; 80];

fn started_rss(
    eal: &Eal,
    pool: &Mempool<'_>,
    device: &Device,
    queues: u16,
    key: &'static [u8],
) -> Option<Rss> {
    let id = eal.port_by_device(device).expect("port");
    let mut port = Port::open(eal, id).expect("open");
    assert!(port.limits().expect("limits").has_rss);
    port.set_rss_key(key);
    let configured = port
        .configure(&common::settings("p", queues), pool)
        .expect("configure");
    assert_eq!(configured.rss, queues > 1);
    let port = port.start().expect("start");
    port.rss().cloned()
}

#[test]
fn port_with_rss_has_our_key_and_an_even_table() {
    let devices = ["net_null0", "net_null1", "net_null2"].map(|name| Device::Virtual(name.into()));
    let eal = Eal::init(&common::config("rss", &devices)).expect("EAL starts");
    let pool = Mempool::create(&eal, "pool", 4095, 2048, 32).expect("pool");

    let rss = started_rss(&eal, &pool, &devices[0], 4, &ODD_KEY).expect("four queues");
    // net_null takes neither key nor table over when it is configured: this is what it was asked for afterwards.
    assert_eq!(rss.key, ODD_KEY[..40]);
    let even: Vec<u16> = (0..128).map(|entry| entry % 4).collect();
    assert_eq!(rss.table, even);
    assert_eq!(rss.functions, ["ip", "tcp", "udp"], "it has no ESP");

    let rss = started_rss(&eal, &pool, &devices[1], 3, &RSS_KEY).expect("three queues");
    assert_eq!(rss.key, RSS_KEY[..40]);
    assert_eq!(rss.table[..7], [0, 1, 2, 0, 1, 2, 0]);
    assert_eq!(started_rss(&eal, &pool, &devices[2], 1, &RSS_KEY), None);
}
