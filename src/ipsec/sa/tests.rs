//! What an outbound SA takes from others: header fields from inner headers, numbers from workers.

use super::*;
use crate::ipsec::outer::{Dscp, EcnMode};

fn params(key: &KeyMaterial, outer: OuterHeader) -> OutboundParams<'_> {
    OutboundParams {
        sa: SaParams {
            spi: Spi::new(0x1000).expect("not reserved"),
            key,
            esn: true,
            local: "192.0.2.1".parse().expect("address"),
            remote: "192.0.2.2".parse().expect("address"),
            encapsulation: Encapsulation::None,
        },
        next_seq: 1,
        outer,
        sizes: SizeRules::default(),
    }
}

#[test]
fn who_counts_first_owns_and_takes_many_numbers_ahead_until_another_comes() {
    let key = KeyMaterial::new(Cipher::Aes128Gcm, Zeroizing::new(vec![7; 20])).expect("20 bytes");
    let outer = OuterHeader {
        hop_limit: 64,
        dscp: Dscp::Copy,
        df: DontFragment::Copy,
        ecn: EcnMode::Normal,
    };
    let sa = OutboundSa::new(&params(&key, outer));
    sa.seq().extend_lease(u64::MAX);
    let (owner, guest) = (WorkerId::new(), WorkerId::new());
    let take = |worker| {
        let run = sa.take_numbers(worker, 1);
        sa.counters().add(worker, 1, 100);
        run.first
    };
    let stock = || sa.stock_len.load(Ordering::Relaxed);
    assert!((1..=10).eq((0..10).map(|_| take(&owner))));
    assert!(stock() > 64);
    assert!(take(&guest) > 64);
    assert_eq!(stock(), 0);
    for _ in 0..100 {
        take(&owner);
    }
    assert!(stock() < 33, "fewer, for somebody else might come");
    assert_eq!(
        (sa.counters().packets(), sa.counters().bytes()),
        (111, 11_100)
    );
}

#[test]
fn outer_header_takes_of_the_inner_one_what_its_rules_say() {
    let key = KeyMaterial::new(Cipher::Aes128Gcm, Zeroizing::new(vec![7; 20])).expect("20 bytes");
    let dscps = [Dscp::Copy, Dscp::Fixed(0), Dscp::Fixed(46), Dscp::Fixed(63)];
    let dfs = [DontFragment::Copy, DontFragment::Set, DontFragment::Clear];
    for (dscp, df) in dscps.into_iter().flat_map(|dscp| dfs.map(|df| (dscp, df))) {
        for ecn in [EcnMode::Normal, EcnMode::Compatibility] {
            let outer = OuterHeader {
                hop_limit: 64,
                dscp,
                df,
                ecn,
            };
            let shape = Shape::new(&params(&key, outer));
            for inner in 0..=u8::MAX {
                assert_eq!(shape.tos(inner), outer.tos(inner), "{outer:?} {inner}");
                let flags = shape.ip_flags(inner);
                let expected = outer.dont_fragment(Some(inner & DF != 0));
                assert_eq!(
                    (flags & !DF, flags != 0),
                    (0, expected),
                    "{outer:?} {inner}"
                );
            }
        }
    }
}
