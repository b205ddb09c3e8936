//! When the next packet is due.

/// Sends at a fixed rate by the clock, whatever became of earlier packets: what is late is due all the same.
#[derive(Clone, Copy, Debug)]
pub struct Pacer {
    start: u64,
    /// Ticks between two packets, in 2^-32 of a tick.
    interval: u128,
    sent: u64,
}

impl Pacer {
    /// From `start` on, `rate` packets a second by a clock of `hz` ticks a second. A rate of zero is one packet in a day.
    pub fn new(start: u64, hz: u64, rate: f64) -> Self {
        let ticks = hz as f64 / rate.max(1.0 / 86_400.0);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "positive, and of a day at most"
        )]
        let interval = (ticks * 4_294_967_296.0) as u128;
        Self {
            start,
            interval,
            sent: 0,
        }
    }

    /// How many packets are due by `now` that were not taken yet.
    #[inline]
    pub fn due(&self, now: u64) -> u64 {
        let elapsed = u128::from(now.saturating_sub(self.start)) << 32;
        let total = elapsed
            .checked_div(self.interval)
            .map_or(u64::MAX, |whole| u64::try_from(whole).unwrap_or(u64::MAX));
        total.saturating_sub(self.sent)
    }

    /// Takes the next packet, and says when it was due: latency counts from then, so that a sender that is late does not
    /// hide that packets waited.
    #[inline]
    pub fn take(&mut self) -> u64 {
        self.sent += 1;
        let after = (u128::from(self.sent) * self.interval) >> 32;
        self.start
            .saturating_add(u64::try_from(after).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_due_at_the_rate_and_late_ones_stay_due() {
        let mut pacer = Pacer::new(1000, 2_600_000_000, 1_000_000.0);
        assert_eq!(pacer.due(1000), 0);
        assert_eq!(pacer.due(1000 + 2599), 0);
        assert_eq!(pacer.due(1000 + 2600), 1);
        assert_eq!(pacer.take(), 3600);
        assert_eq!(pacer.due(1000 + 2600), 0);
        assert_eq!(pacer.due(1000 + 26_000), 9);
        assert_eq!(pacer.take(), 6200);
        assert_eq!(pacer.due(0), 0);
    }

    #[test]
    fn rate_that_divides_no_clock_is_held_over_an_hour() {
        let hz = 2_599_999_999;
        let pacer = Pacer::new(0, hz, 7_654_321.0);
        let due = pacer.due(hz * 3600);
        let wanted = 7_654_321 * 3600;
        assert!(due.abs_diff(wanted) < 10, "{due} for {wanted}");
    }

    #[test]
    fn rates_without_sense_do_no_harm() {
        assert_eq!(Pacer::new(0, 1_000_000_000, 0.0).due(1_000_000_000), 0);
        assert_eq!(Pacer::new(0, 1, f64::INFINITY).due(1), u64::MAX);
        assert_eq!(Pacer::new(0, 1, f64::NAN).due(1), 0);
    }
}
