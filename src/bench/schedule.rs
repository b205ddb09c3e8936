//! Which packet is next.
//!
//! Nothing is kept for each flow, so that with as many flows as SAs the generator leaves the cache to the gateways that
//! share its core.

use std::sync::Arc;

use super::config::Order;

/// Every `step`-th flow of a stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    first: usize,
    step: usize,
    len: usize,
}

impl Share {
    /// All of `flows`.
    pub(super) fn all(flows: usize) -> Self {
        Self {
            first: 0,
            step: 1,
            len: flows,
        }
    }

    /// Part `at` of `count` parts, to which flows are dealt out in turn.
    pub(super) fn part(self, at: usize, count: usize) -> Self {
        let count = count.max(1);
        Self {
            first: self.first + at * self.step,
            step: self.step * count,
            len: self.len.saturating_sub(at).div_ceil(count),
        }
    }

    #[inline]
    fn flow(self, place: usize) -> usize {
        self.first + place * self.step
    }
}

/// A train of each flow by turns, and each flow through all sizes.
pub(super) struct Schedule {
    share: Share,
    // INVARIANT: not empty.
    sizes: Arc<[u16]>,
    train: usize,
    // INVARIANT: it and the share's length have no divisor in common, so that each flow has one turn before the first
    // has its next.
    stride: usize,
    /// Which flow of the share has its turn.
    place: usize,
    flow: usize,
    /// Packets that each flow had before this round.
    before: u64,
    /// The same, as far as it tells which size is next.
    sizes_before: usize,
    size_at: usize,
    /// Packets that the train still has.
    left: usize,
}

impl Schedule {
    /// Over the flows of `share` in `order`, `train` packets of each in a row.
    pub(super) fn new(share: Share, sizes: Arc<[u16]>, (train, order): (usize, Order)) -> Self {
        let mut schedule = Self {
            share,
            sizes,
            train: train.max(1),
            stride: match order {
                Order::InTurn => 1,
                Order::Scattered => far_stride(share.len),
            },
            place: 0,
            flow: 0,
            before: 0,
            sizes_before: 0,
            size_at: 0,
            left: 0,
        };
        schedule.begin_train();
        schedule
    }

    /// Flow, count within it, and size of the next packet.
    #[inline]
    pub(super) fn next(&mut self) -> (u32, u64, u16) {
        if self.left == 0 {
            self.advance();
        }
        self.left -= 1;
        let count = self.before + (self.train - 1 - self.left) as u64;
        let size = self.sizes[self.size_at];
        self.size_at += 1;
        if self.size_at >= self.sizes.len() {
            self.size_at = 0;
        }
        (crate::bits::low_32(self.flow as u64), count, size)
    }

    /// Goes on to the next flow.
    #[inline]
    fn advance(&mut self) {
        self.place += self.stride;
        if self.place >= self.share.len {
            self.place -= self.share.len;
        }
        if self.place == 0 {
            self.before += self.train as u64;
            self.sizes_before = (self.sizes_before + self.train) % self.sizes.len();
        }
        self.begin_train();
    }

    #[inline]
    fn begin_train(&mut self) {
        self.left = self.train;
        self.flow = self.share.flow(self.place);
        // So that flows which are sent one after another do not all begin with the same size.
        self.size_at = (self.flow + self.sizes_before) % self.sizes.len();
    }
}

/// A stride through `len` flows that leads to each of them once, and a long time to none that is near one before: the
/// golden ratio's part of `len`, or the next that has no divisor in common with it.
fn far_stride(len: usize) -> usize {
    let least = (len * 618_034 / 1_000_000).max(1);
    (least..len)
        .find(|stride| common_divisor(*stride, len) == 1)
        .unwrap_or(1)
}

/// The greatest.
fn common_divisor(mut a: usize, mut b: usize) -> usize {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedule_gives_every_flow_every_size() {
        let sizes: Arc<[u16]> = [46, 552, 1500].into();
        let share = Share {
            first: 4,
            step: 1,
            len: 3,
        };
        let mut schedule = Schedule::new(share, sizes, (2, Order::InTurn));
        let packets: Vec<_> = (0..18).map(|_| schedule.next()).collect();
        assert_eq!(
            packets[..4],
            [(4, 0, 552), (4, 1, 1500), (5, 0, 1500), (5, 1, 46)]
        );
        for flow in 4..7 {
            let own: Vec<_> = packets.iter().filter(|packet| packet.0 == flow).collect();
            assert!(own.iter().map(|packet| packet.1).eq(0..6));
            assert_eq!(own.iter().filter(|packet| packet.2 == 1500).count(), 2);
        }
    }

    #[test]
    fn schedule_goes_on_for_each_flow_as_if_it_kept_its_count() {
        for (flows, sizes, train) in [(1, 1, 1), (5, 12, 1), (7, 3, 5), (3, 4, 9), (12, 12, 12)] {
            let sizes: Arc<[u16]> = (0..sizes).collect();
            let share = Share::all(flows);
            let mut schedule = Schedule::new(share, Arc::clone(&sizes), (train, Order::InTurn));
            let mut counts = vec![0usize; flows];
            for _ in 0..4 {
                for (flow, sent) in counts.iter_mut().enumerate() {
                    for _ in 0..train {
                        let size = sizes[(flow + *sent) % sizes.len()];
                        let next = schedule.next();
                        assert_eq!((next.0 as usize, next.2), (flow, size));
                        assert_eq!(next.1, *sent as u64);
                        *sent += 1;
                    }
                }
            }
        }
    }

    #[test]
    fn scattered_flows_have_one_turn_a_round_with_the_packets_they_have_in_turn() {
        let sizes: Arc<[u16]> = [46, 552, 1500].into();
        for len in (1..200).chain([1000, 4096, 60_000]) {
            let share = Share {
                first: 3,
                step: 4,
                len,
            };
            let [mut in_turn, mut scattered] = [Order::InTurn, Order::Scattered]
                .map(|order| Schedule::new(share, Arc::clone(&sizes), (2, order)));
            for _ in 0..3 {
                let round = |schedule: &mut Schedule| -> Vec<_> {
                    (0..2 * len).map(|_| schedule.next()).collect()
                };
                let (mut wanted, mut found) = (round(&mut in_turn), round(&mut scattered));
                assert!(found.chunks(2).all(|train| train[0].0 == train[1].0));
                wanted.sort_unstable();
                found.sort_unstable();
                assert_eq!(found, wanted);
            }
        }
    }

    #[test]
    fn scattered_flows_are_far_from_those_before() {
        let len = 60_000;
        let order = Order::Scattered;
        let mut schedule = Schedule::new(Share::all(len), [64].into(), (1, order));
        let flows: Vec<_> = (0..len).map(|_| schedule.next().0).collect();
        for (at, flow) in flows.iter().enumerate() {
            let near = flows[at.saturating_sub(200)..at]
                .iter()
                .any(|before| before.abs_diff(*flow) < 100);
            assert!(!near, "turn {at}, flow {flow}");
        }
    }

    #[test]
    fn parts_of_parts_have_every_flow_once() {
        let flows = |share: Share| (0..share.len).map(move |place| share.flow(place));
        for count in 1..20 {
            for (outer, inner) in [(1, 1), (1, 4), (3, 1), (3, 2)] {
                let all = Share::all(count);
                let mut dealt: Vec<_> = (0..outer)
                    .flat_map(|at| {
                        let part = all.part(at, outer);
                        assert!(flows(part).eq((at..count).step_by(outer)));
                        (0..inner).flat_map(move |at| flows(part.part(at, inner)))
                    })
                    .collect();
                dealt.sort_unstable();
                assert!(dealt.into_iter().eq(0..count));
            }
        }
    }
}
