//! EAL's life, and a port that makes packets up. One process per test file: EAL starts once.
#![cfg(feature = "dpdk")]

mod common;

use simplon::dpdk::{
    Burst, Device, DpdkError, Eal, Mempool, Port, ThreadRegistration, allowed_cores, tsc, version,
};
use simplon::ids::PortId;

#[test]
fn null_port_receives_and_every_mbuf_comes_home() {
    let before = allowed_cores();
    let device = Device::Virtual("net_null0,size=200".into());
    let config = common::config("null", std::slice::from_ref(&device));
    let runtime_dir = std::path::PathBuf::from("/var/run/dpdk").join(&config.name);
    let eal = Eal::init(&config).expect("EAL starts");

    assert!(version().starts_with("DPDK 22.11."), "{}", version());
    assert_eq!(
        allowed_cores(),
        before,
        "EAL left this thread's cores alone"
    );
    assert_eq!(Eal::init(&config).err(), Some(DpdkError::AlreadyStarted));
    assert!(runtime_dir.is_dir());
    assert!(eal.tsc_hz() > 1_000_000);
    assert!(tsc() < tsc());
    assert_eq!(
        ThreadRegistration::new(eal.threads()).err(),
        Some(DpdkError::ThreadRegistered),
        "EAL's own thread is an lcore"
    );

    receive(&eal, &device);
    drop(eal);
    assert!(!runtime_dir.exists(), "EAL's files are gone");
    assert_eq!(Eal::init(&config).err(), Some(DpdkError::AlreadyStarted));
}

fn receive(eal: &Eal, device: &Device) {
    let pool = Mempool::create(eal, "small", 1023, 128, 0).expect("pool");
    let id = eal.port_by_device(device).expect("port");
    let mut port = Port::open(eal, id).expect("open");
    assert_eq!(Port::open(eal, id).err(), Some(DpdkError::PortTaken(id)));
    let absent = PortId(31);
    assert_eq!(
        Port::open(eal, absent).err(),
        Some(DpdkError::NoSuchPort(absent))
    );
    assert_eq!(port.limits().expect("limits").driver, "net_null");

    let mut settings = common::settings("p0", 1);
    let refused = port.configure(&settings, &pool);
    assert!(
        matches!(refused, Err(DpdkError::DataRoom { needed: 200, .. })),
        "{refused:?}"
    );
    let pool = Mempool::create(eal, "large", 1023, 2048, 32).expect("pool");
    settings.rx_queues = u16::MAX;
    let refused = port.configure(&settings, &pool);
    assert!(
        matches!(refused, Err(DpdkError::Queues { .. })),
        "{refused:?}"
    );
    settings.rx_queues = 1;
    let configured = port.configure(&settings, &pool).expect("configure");
    assert!(!configured.rss);

    let port = port.start().expect("start");
    let mut queues = port.queues();
    assert!(port.queues().rx.is_empty(), "queues are handed out once");
    let (rx, tx) = (&mut queues.rx[0], &mut queues.tx[0]);
    std::thread::scope(|scope| {
        let threads = eal.threads();
        let pool = &pool;
        scope.spawn(move || {
            let _registration = ThreadRegistration::new(threads).expect("register");
            let mut burst = Burst::new();
            assert_eq!(rx.rx_burst(&mut burst), 64);
            assert!(burst.is_full());
            assert_eq!(rx.rx_burst(&mut burst), 0, "a full burst takes no more");
            assert!(burst.iter().all(|packet| packet.is_plain()));
            assert_eq!(pool.in_use(), 64);
            assert_eq!(tx.tx_burst(&mut burst), 64);
            assert!(burst.is_empty());
            assert_eq!(rx.rx_burst(&mut burst), 64);
        });
    });
    assert_eq!(
        pool.in_use(),
        0,
        "in the burst's Drop the second 64 went home"
    );
    assert_eq!(port.stats().expect("stats").rx_packets, 128);
    assert!(port.link().expect("link").up || port.link().expect("link").speed_mbps.is_some());
    drop(queues);
    drop(port);
    assert_eq!(pool.in_use(), 0);
    assert_eq!(
        Port::open(eal, id).err(),
        Some(DpdkError::NoSuchPort(id)),
        "closed for good"
    );
}
