//! Order of arrival within a flow, after RFC 4737.

/// What the arrival of one number says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// No later number has come before it.
    InOrder,
    /// A later one has: reordered (RFC 4737 section 3.3), by this many numbers.
    Reordered(u64),
    /// It has come before.
    Duplicate,
}

/// The order of one flow, whose packets are numbered from 0 in the order they were sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct FlowOrder {
    /// One more than the highest number that has come: `NextExp` of RFC 4737.
    next: u64,
    /// Bit n: `next - 1 - n` has come.
    seen: u64,
}

impl FlowOrder {
    /// Notes the arrival of `number`.
    ///
    /// A duplicate that comes more than 64 numbers late cannot be told from a reordered packet, and counts as one.
    #[inline]
    pub fn observe(&mut self, number: u64) -> Arrival {
        if let Some(ahead) = number.checked_sub(self.next) {
            self.seen = match ahead {
                0..63 => self.seen << (ahead + 1) | 1,
                _ => 1,
            };
            self.next = number + 1;
            return Arrival::InOrder;
        }
        let late = self.next - 1 - number;
        if late < 64 {
            let bit = 1 << late;
            if self.seen & bit != 0 {
                return Arrival::Duplicate;
            }
            self.seen |= bit;
        }
        Arrival::Reordered(late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Arrival::{Duplicate, InOrder, Reordered};

    fn observe(numbers: &[u64]) -> Vec<Arrival> {
        let mut order = FlowOrder::default();
        numbers.iter().map(|n| order.observe(*n)).collect()
    }

    #[test]
    fn loss_alone_is_no_reordering() {
        assert_eq!(observe(&[0, 1, 5, 6, 900]), [InOrder; 5]);
    }

    #[test]
    fn late_packet_is_reordered_and_its_successors_are_not() {
        assert_eq!(
            observe(&[0, 1, 2, 3, 5, 6, 4, 7]),
            [
                InOrder,
                InOrder,
                InOrder,
                InOrder,
                InOrder,
                InOrder,
                Reordered(2),
                InOrder
            ]
        );
    }

    #[test]
    fn second_arrival_is_a_duplicate_whether_late_or_not() {
        assert_eq!(
            observe(&[0, 0, 3, 1, 1, 3]),
            [
                InOrder,
                Duplicate,
                InOrder,
                Reordered(2),
                Duplicate,
                Duplicate
            ]
        );
    }

    #[test]
    fn what_comes_beyond_the_memory_is_reordered() {
        assert_eq!(
            observe(&[100, 36, 36, 37, 37]),
            [
                InOrder,
                Reordered(64),
                Reordered(64),
                Reordered(63),
                Duplicate
            ]
        );
        assert_eq!(observe(&[0, 63, 0]), [InOrder, InOrder, Duplicate]);
        assert_eq!(observe(&[0, 64, 0])[2], Reordered(64));
    }

    #[test]
    fn agrees_with_a_model_that_remembers_everything() {
        let mut state = 7u64;
        let mut order = FlowOrder::default();
        let (mut highest, mut come) = (None, std::collections::HashSet::new());
        for _ in 0..100_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let around = highest.map_or(0, |h: u64| h + 1);
            let number = (around + (state >> 33) % 40).saturating_sub(30);
            let wanted = match highest {
                Some(top) if come.contains(&number) && top - number < 64 => Duplicate,
                Some(top) if number < top => Reordered(top - number),
                _ => InOrder,
            };
            assert_eq!(order.observe(number), wanted);
            come.insert(number);
            highest = highest.max(Some(number));
        }
    }
}
