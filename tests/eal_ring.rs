//! Packets through two ports joined by rings, and what holds of bursts and mbufs. One process per test file.
#![cfg(feature = "dpdk")]

mod common;

use simplon::buf::{PacketBuf, TestBuf};
use simplon::dpdk::ring_pair;
use simplon::dpdk::{Burst, DpdkError, Eal, Mempool, Port};

#[test]
fn ring_pair_carries_packets_and_every_mbuf_comes_home() {
    let eal = Eal::init(&common::config("ring", &[])).expect("EAL starts");
    let pool = Mempool::create(&eal, "pool", 1023, 2048, 32).expect("pool");
    assert_eq!((pool.size(), pool.in_use()), (1023, 0));
    let again = Mempool::create(&eal, "pool", 1023, 2048, 32);
    assert!(matches!(again, Err(DpdkError::Pool { .. })), "{again:?}");
    assert!(matches!(
        Mempool::create(&eal, "../pool", 1023, 2048, 32),
        Err(DpdkError::BadName { .. })
    ));

    mbuf_behaves_as_test_buf(&pool);
    burst_keeps_order_and_ownership(&pool);
    round_trip(&eal, &pool);
    assert_eq!(pool.in_use(), 0);
}

/// The same random operations on both: same results, same bytes, same room.
fn mbuf_behaves_as_test_buf(pool: &Mempool<'_>) {
    let mut mbuf = pool.alloc().expect("mbuf");
    assert_eq!(
        (mbuf.headroom(), mbuf.tailroom(), mbuf.data().len()),
        (128, 2048, 0)
    );
    assert!(mbuf.is_plain());
    let mut test = TestBuf::with_room(&[], 128, 2048);
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for round in 0..20_000 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let len = match state >> 60 {
            0 => 70_000,
            1 => 65_536 + 3,
            2..9 => (state >> 32 & 0x3f) as usize,
            _ => (state >> 32 & 0x3ff) as usize,
        };
        let fill = state.to_le_bytes()[1];
        let same = match state & 3 {
            0 => written(mbuf.prepend(len), ..len, fill) == written(test.prepend(len), ..len, fill),
            1 => {
                let start = mbuf.data().len();
                written(mbuf.append(len), start.., fill) == written(test.append(len), start.., fill)
            }
            2 => mbuf.adj(len) == test.adj(len),
            _ => mbuf.trim(len) == test.trim(len),
        };
        assert!(same, "round {round}");
        assert_eq!(mbuf.data(), test.data(), "round {round}");
        assert_eq!(mbuf.data_mut(), test.data_mut(), "round {round}");
        assert_eq!(mbuf.headroom(), test.headroom(), "round {round}");
        assert_eq!(mbuf.tailroom(), test.tailroom(), "round {round}");
    }
}

/// Fills `range` of what a growing call returned, and says how long that is.
fn written(
    packet: Option<&mut [u8]>,
    range: impl std::slice::SliceIndex<[u8], Output = [u8]>,
    fill: u8,
) -> Option<usize> {
    let packet = packet?;
    packet.get_mut(range).expect("within the packet").fill(fill);
    Some(packet.len())
}

fn burst_keeps_order_and_ownership(pool: &Mempool<'_>) {
    let mut burst = numbered(pool, 64);
    assert!(
        burst.push(pool.alloc().expect("mbuf")).is_err(),
        "a full burst gives it back"
    );
    assert!(!pool.alloc_burst(&mut burst, 1));
    assert_eq!(pool.in_use(), 64);

    let mut rest = Burst::new();
    let mut asked = Vec::new();
    let keep = |index| {
        asked.push(index);
        index % 3 == 0
    };
    assert_eq!(burst.sift(keep, &mut rest), 42);
    assert_eq!(asked, (0..64).collect::<Vec<_>>());
    assert_eq!(
        numbers(&burst),
        (0..64).filter(|n| n % 3 == 0).collect::<Vec<_>>()
    );
    assert_eq!(
        numbers(&rest),
        (0..64).filter(|n| n % 3 != 0).collect::<Vec<_>>()
    );

    // 22 stay and 42 went; two rounds more than fill the rest.
    let mut more = numbered(pool, 30);
    assert_eq!(more.sift(|index| index < 4, &mut rest), 22);
    assert_eq!(
        numbers(&more),
        [0, 1, 2, 3, 26, 27, 28, 29],
        "what has no room stays"
    );
    assert_eq!(more.sift(|_| false, &mut Burst::new()), 8);
    assert!(more.is_empty());
    assert_eq!(pool.in_use(), 22 + 64, "a rest that is dropped frees");

    let last = rest.pop().expect("last");
    assert_eq!(last.data(), [25]);
    assert_eq!((rest.len(), pool.in_use()), (63, 86));
    drop(last);
    assert_eq!(pool.in_use(), 85);
    rest.clear();
    rest.clear();
    assert_eq!(pool.in_use(), 22);
    drop(burst);
    assert_eq!(pool.in_use(), 0);
    assert!(!pool.alloc_burst(&mut rest, 65));
    assert_eq!((rest.len(), pool.in_use()), (0, 0));
    assert!(Burst::new().pop().is_none());
}

fn round_trip(eal: &Eal, pool: &Mempool<'_>) {
    assert!(ring_pair(eal, "bad", 0, 64).is_err());
    let pair = ring_pair(eal, "pair", 2, 100).expect("pair");
    let (a, b) = pair.ports();
    let start = |id, name| {
        let mut port = Port::open(eal, id).expect("open");
        let configured = port
            .configure(&common::settings(name, 2), pool)
            .expect("configure");
        assert!(!configured.rss, "rings spread nothing");
        port.start().expect("start")
    };
    let (a, b) = (start(a, "a"), start(b, "b"));
    let (mut a_queues, mut b_queues) = (a.queues(), b.queues());

    for queue in 0..2 {
        let mut burst = numbered(pool, 64);
        assert_eq!(a_queues.tx[queue].tx_burst(&mut burst), 64);
        assert!(burst.is_empty());
        assert_eq!(pool.in_use(), 64);
        assert_eq!(
            b_queues.rx[1 - queue].rx_burst(&mut burst),
            0,
            "queue by queue"
        );
        assert_eq!(b_queues.rx[queue].rx_burst(&mut burst), 64);
        assert_eq!(numbers(&burst), (0..64).collect::<Vec<_>>());
        assert_eq!(b_queues.tx[queue].tx_burst(&mut burst), 64);
        assert_eq!(a_queues.rx[queue].rx_burst(&mut burst), 64);
        assert_eq!(numbers(&burst), (0..64).collect::<Vec<_>>());
    }
    assert_eq!(pool.in_use(), 0);

    // 127 fit the ring: 64, and 63 of the next 64.
    let mut burst = numbered(pool, 64);
    assert_eq!(a_queues.tx[0].tx_burst(&mut burst), 64);
    let mut burst = numbered(pool, 64);
    assert_eq!(a_queues.tx[0].tx_burst(&mut burst), 63);
    assert_eq!(
        numbers(&burst),
        [63],
        "what the ring did not take is still ours"
    );
    assert_eq!(a_queues.tx[0].tx_burst(&mut burst), 0);
    assert_eq!(pool.in_use(), 128);
    drop(burst);
    assert_eq!(pool.in_use(), 127);

    drop((a_queues, b_queues));
    drop((a, b));
    assert_eq!(
        pool.in_use(),
        127,
        "the rings still hold what was on its way"
    );
    drop(pair);
    assert_eq!(pool.in_use(), 0);
}

/// `count` packets of one byte, their number.
fn numbered<'eal>(pool: &Mempool<'eal>, count: u8) -> Burst<'eal> {
    let mut burst = Burst::new();
    assert!(pool.alloc_burst(&mut burst, usize::from(count)));
    for (packet, number) in burst.iter_mut().zip(0..) {
        packet.append(1).expect("room")[0] = number;
    }
    burst
}

fn numbers(burst: &Burst<'_>) -> Vec<u8> {
    burst.iter().map(|packet| packet.data()[0]).collect()
}
