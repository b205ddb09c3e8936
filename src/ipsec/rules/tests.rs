use super::*;
use crate::ids::SaIndex;
use crate::ipsec::traffic::OPAQUE;
use proptest::prelude::*;

/// Ranges of few values, so that rules meet in every way and packets hit them.
fn span(most: u32) -> impl Strategy<Value = Span<u32>> {
    prop_oneof![
        2 => Just((0, most)),
        3 => (0..=most).prop_map(|at| (at, at)),
        3 => (0..=most, 0..=most).prop_map(|(a, b)| (a.min(b), a.max(b))),
    ]
}

fn port() -> impl Strategy<Value = Span<u32>> {
    prop_oneof![
        3 => Just((0, OPAQUE)),
        1 => Just((OPAQUE, OPAQUE)),
        3 => span(7),
    ]
}

fn narrow(span: Span<u32>) -> Span<u8> {
    let byte = |value| u8::try_from(value).expect("small");
    (byte(span.0), byte(span.1))
}

fn holds(what: &TrafficBox<u32>, traffic: &Traffic<u32>) -> bool {
    let within = |span: Span<u32>, value| (span.0..=span.1).contains(&value);
    within(what.local, traffic.local)
        && within(what.remote, traffic.remote)
        && within(wide(what.protocol), traffic.protocol.into())
        && within(what.local_port, traffic.local_port)
        && within(what.remote_port, traffic.remote_port)
}

prop_compose! {
    fn any_box()(
        local in span(15), remote in span(15), protocol in span(3), local_port in port(), remote_port in port(),
    ) -> TrafficBox<u32> {
        TrafficBox { local, remote, protocol: narrow(protocol), local_port, remote_port }
    }
}

prop_compose! {
    fn any_traffic()(
        local in 0..16u32,
        remote in 0..16u32,
        protocol in 0..4u8,
        local_port in prop_oneof![0..8u32, Just(OPAQUE)],
        remote_port in prop_oneof![0..8u32, Just(OPAQUE)],
    ) -> Traffic<u32> {
        Traffic { local, remote, local_port, remote_port, protocol }
    }
}

proptest! {
    #[test]
    fn search_agrees_with_a_walk_over_the_list(
        boxes in prop::collection::vec(any_box(), 0..60),
        packets in prop::collection::vec(any_traffic(), 1..100),
    ) {
        let mut builder = RulesBuilder::default();
        let mut list = Vec::new();
        for (order, what) in (0u32..).zip(&boxes) {
            let action = SpdAction::Protect(SaIndex(order));
            // What is refused is not there, and the others are.
            if builder.add(order, what, action).is_ok() {
                list.push((order, *what));
            }
        }
        let rules = builder.build();
        for traffic in packets {
            let first = list.iter().find(|(_, what)| holds(what, &traffic));
            prop_assert_eq!(rules.find(&traffic).map(|found| found.order), first.map(|(order, _)| *order));
        }
    }
}

#[test]
fn boxes_that_overlap_in_too_many_ways_are_refused() {
    let mut builder = RulesBuilder::default();
    let refused = (0..1000u32).find_map(|order| {
        let what = TrafficBox {
            local: (0, u32::MAX),
            // Each within the one before.
            remote: (order, 5000 - order),
            protocol: (0, 255),
            local_port: (0, OPAQUE),
            remote_port: (0, OPAQUE),
        };
        builder.add(order, &what, SpdAction::Discard).err()
    });
    let refused = refused.expect("refused");
    assert_eq!(refused.order as usize, MOST_PARTITIONS);
    assert_eq!(builder.build().partitions.len(), MOST_PARTITIONS);
}

#[test]
fn rules_that_have_nothing_in_common_are_one_partition() {
    let mut builder = RulesBuilder::default();
    for order in 0..10_000u32 {
        let what = TrafficBox {
            local: (0, u32::MAX),
            remote: (order / 4 * 16, order / 4 * 16 + 15),
            protocol: (6, 6),
            local_port: (0, OPAQUE),
            remote_port: (order % 4 * 100, order % 4 * 100 + 99),
        };
        assert!(builder.add(order, &what, SpdAction::Discard).is_ok());
    }
    let rules = builder.build();
    assert_eq!(rules.partitions.len(), 1);
    let traffic = Traffic {
        local: 77,
        remote: 9_999 / 4 * 16 + 3,
        local_port: 5,
        remote_port: 310,
        protocol: 6,
    };
    assert_eq!(rules.find(&traffic).map(|found| found.order), Some(9_999));
}
