//! The search for the highest rate at which no more than a given part is lost.
//!
//! RFC 2544 section 26.1 bisects; MLRsearch (of the IETF's bmwg) does so for several loss ratios at once, over one
//! set of trials, begins where the first trial says, and lets most trials at a rate decide and not a single one.

/// What is searched for.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Goal {
    /// Part of the packets that may be lost: 0 for the no-drop rate.
    pub loss_ratio: f64,
}

/// How a search is made.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Settings {
    /// The lowest rate worth trying.
    pub least: f64,
    /// The highest.
    pub most: f64,
    /// How close the bounds are to come, as a part of the rate.
    pub width: f64,
    /// Trials at one rate of which most decide; odd.
    pub attempts: u32,
}

/// What one trial showed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Outcome {
    /// Packets offered.
    pub sent: u64,
    /// Packets that did not arrive.
    pub lost: u64,
}

/// One trial of a search.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Step {
    /// Packets a second.
    pub rate: f64,
    /// What it showed.
    pub outcome: Outcome,
}

/// What was found for a goal.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Found {
    /// The highest rate that holds, none where not even the least did.
    pub rate: Option<f64>,
    /// The lowest rate found that does not, none where the highest does.
    pub fails_at: Option<f64>,
}

impl Outcome {
    /// Part of the packets that was lost; all, where none was sent.
    pub fn loss_ratio(&self) -> f64 {
        if self.sent == 0 {
            return 1.0;
        }
        self.lost as f64 / self.sent as f64
    }
}

/// Most rates that are tried for one goal: enough for any width worth asking for.
const MAX_RATES: usize = 64;

/// Searches for every goal, strictest last, with `measure` as the trial. Returns what was found, in the order of
/// `goals`, and every trial that was made.
///
/// # Errors
/// What `measure` gives.
pub fn search<E>(
    goals: &[Goal],
    settings: Settings,
    mut measure: impl FnMut(f64) -> Result<Outcome, E>,
) -> Result<(Vec<Found>, Vec<Step>), E> {
    let mut steps = Vec::new();
    let mut found = vec![None; goals.len()];
    let mut order: Vec<usize> = (0..goals.len()).collect();
    order.sort_by(|a, b| goals[*b].loss_ratio.total_cmp(&goals[*a].loss_ratio));
    for at in order {
        found[at] = Some(one_goal(goals[at], settings, &mut steps, &mut measure)?);
    }
    Ok((found.into_iter().flatten().collect(), steps))
}

fn one_goal<E>(
    goal: Goal,
    settings: Settings,
    steps: &mut Vec<Step>,
    measure: &mut impl FnMut(f64) -> Result<Outcome, E>,
) -> Result<Found, E> {
    for _ in 0..MAX_RATES {
        let found = bounds(goal, settings.attempts, steps);
        let Some(rate) = next_rate(goal, settings, found, steps) else {
            return Ok(found);
        };
        while decided(goal, settings.attempts, steps, rate).is_none() {
            let outcome = measure(rate)?;
            steps.push(Step { rate, outcome });
        }
    }
    Ok(bounds(goal, settings.attempts, steps))
}

/// Whether `rate` holds, once most of its trials say so.
fn decided(goal: Goal, attempts: u32, steps: &[Step], rate: f64) -> Option<bool> {
    let most = attempts / 2 + 1;
    let (mut good, mut bad) = (0, 0);
    for step in steps.iter().filter(|step| step.rate == rate) {
        if step.outcome.loss_ratio() <= goal.loss_ratio {
            good += 1;
        } else {
            bad += 1;
        }
    }
    match (good >= most, bad >= most) {
        (true, _) => Some(true),
        (false, true) => Some(false),
        (false, false) => None,
    }
}

/// The lowest rate that fails, and the highest below it that holds.
fn bounds(goal: Goal, attempts: u32, steps: &[Step]) -> Found {
    let verdict = |step: &&Step| decided(goal, attempts, steps, step.rate);
    let fails_at = steps
        .iter()
        .filter(|step| verdict(step) == Some(false))
        .map(|step| step.rate)
        .reduce(f64::min);
    let rate = steps
        .iter()
        .filter(|step| verdict(step) == Some(true))
        .map(|step| step.rate)
        .filter(|rate| fails_at.is_none_or(|upper| *rate < upper))
        .reduce(f64::max);
    Found { rate, fails_at }
}

/// The rate to try next; none where the search is over.
fn next_rate(goal: Goal, settings: Settings, found: Found, steps: &[Step]) -> Option<f64> {
    match (found.rate, found.fails_at) {
        (None, None) => Some(settings.most),
        (Some(_), None) => None,
        (Some(lower), Some(upper)) => {
            (upper / lower > 1.0 + settings.width).then(|| f64::midpoint(lower, upper))
        }
        (None, Some(upper)) => {
            // What got through at the rate that failed is the best guess of what would: MLRsearch begins there.
            let through = steps
                .iter()
                .filter(|step| step.rate == upper)
                .map(|step| step.rate * (1.0 - step.outcome.loss_ratio()))
                .reduce(f64::max)
                .unwrap_or(upper / 2.0);
            let guess = through / (1.0 - goal.loss_ratio.min(0.5)) * (1.0 - settings.width);
            let bold = upper * (1.0 - settings.width);
            // Twice the distance each time where the guess does not help.
            let distance = settings.width * 2f64.powf(steps.len().min(8) as f64);
            let careful = upper * (1.0 - distance);
            let next = if guess < bold * 0.98 {
                guess
            } else {
                careful.min(bold)
            };
            let next = next.max(upper / 2.0).max(settings.least);
            (upper > settings.least * (1.0 + settings.width)).then_some(next)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOALS: [Goal; 2] = [Goal { loss_ratio: 0.0 }, Goal { loss_ratio: 0.005 }];
    const SETTINGS: Settings = Settings {
        least: 1000.0,
        most: 10_000_000.0,
        width: 0.01,
        attempts: 1,
    };

    /// A device that passes `capacity` packets a second, and drops what is above.
    fn device(capacity: f64) -> impl FnMut(f64) -> Result<Outcome, ()> {
        #[expect(clippy::cast_possible_truncation, reason = "small and positive")]
        move |rate| {
            let sent = rate.round();
            Ok(Outcome {
                sent: sent as u64,
                lost: (sent - capacity).max(0.0) as u64,
            })
        }
    }

    #[test]
    fn both_goals_are_found_within_the_width_and_in_few_trials() {
        for capacity in [2_000.0, 123_456.0, 1_500_000.0, 9_990_000.0] {
            let (found, steps) = search(&GOALS, SETTINGS, device(capacity)).expect("never fails");
            for (goal, found) in GOALS.iter().zip(&found) {
                let wanted = capacity / (1.0 - goal.loss_ratio);
                let rate = found.rate.expect("found");
                assert!(rate <= wanted * 1.000_1, "{rate} for {wanted}");
                assert!(rate > wanted * 0.985, "{rate} for {wanted}");
            }
            assert!(steps.len() < 24, "{capacity}: {} trials", steps.len());
        }
    }

    #[test]
    fn device_that_passes_everything_is_found_at_the_first_trial() {
        let (found, steps) = search(&GOALS, SETTINGS, device(1e9)).expect("never fails");
        assert_eq!(steps.len(), 1);
        assert!(found.iter().all(|found| found.rate == Some(10_000_000.0)));
        assert!(found.iter().all(|found| found.fails_at.is_none()));
    }

    #[test]
    fn device_that_passes_nothing_is_given_up() {
        let (found, steps) = search(&GOALS, SETTINGS, device(0.0)).expect("never fails");
        assert!(found.iter().all(|found| found.rate.is_none()), "{found:?}");
        assert!(steps.len() <= 2 * MAX_RATES);
        let lowest = found[0].fails_at.expect("tried");
        assert!(lowest <= SETTINGS.least * 1.02, "{lowest}");
    }

    #[test]
    fn one_bad_trial_of_three_does_not_decide() {
        let mut count = 0;
        let mut model = device(1_000_000.0);
        let flaky = |rate: f64| {
            count += 1;
            let mut outcome = model(rate)?;
            if count % 3 == 0 {
                outcome.lost += 1 + outcome.sent / 10;
            }
            Ok::<_, ()>(outcome)
        };
        let settings = Settings {
            attempts: 3,
            ..SETTINGS
        };
        let (found, _) = search(&GOALS, settings, flaky).expect("never fails");
        let rate = found[0].rate.expect("found");
        assert!((980_000.0..=1_000_000.0).contains(&rate), "{rate}");
    }

    #[test]
    fn bounds_enclose_what_is_found() {
        let (found, steps) = search(&GOALS, SETTINGS, device(500_000.0)).expect("never fails");
        for found in found {
            let (rate, fails) = (found.rate.expect("rate"), found.fails_at.expect("bound"));
            assert!(rate < fails && fails / rate <= 1.01 + 1e-9);
            assert!(steps.iter().any(|step| step.rate == rate));
        }
    }

    #[test]
    fn failed_trial_ends_the_search() {
        assert_eq!(
            search(&GOALS, SETTINGS, |_| Err("no device")),
            Err("no device")
        );
    }

    #[test]
    fn nothing_sent_is_nothing_passed() {
        assert_eq!(Outcome { sent: 0, lost: 0 }.loss_ratio(), 1.0);
    }
}
