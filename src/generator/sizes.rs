//! Lengths of generated packets.

use std::fmt;
use std::str::FromStr;

/// Least length of an inner packet that may be asked for, in bytes: a header of IPv4 and UDP, a number, and eight bytes
/// of pattern. Packets of IPv6 are made longer where they have to be.
pub const MIN_SIZE: u16 = 44;
/// Greatest length, in bytes: what a port of 9,000 bytes carries with the longest outer header and a trailer.
pub const MAX_SIZE: u16 = 8900;
/// Most lengths in one round of the mix.
const MAX_ROUND: usize = 4096;

/// Lengths of inner IP packets, in the order in which they are sent, over and over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SizeMix {
    name: String,
    // INVARIANT: not empty.
    round: Vec<u16>,
}

/// Why a mix was not understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SizeMixError {
    /// Not a number.
    #[error(
        "`{0}` is no size: write `imix`, a number such as `576`, or a mix such as `46x7,552x4,1500x1`"
    )]
    Syntax(String),
    /// Too small or too large.
    #[error("{0} bytes is not from {MIN_SIZE} to {MAX_SIZE}")]
    Range(u64),
    /// A size that is sent no times, or a mix without end.
    #[error("one round of the mix has {0} packets, and it takes 1 to {MAX_ROUND}")]
    Round(usize),
}

impl SizeMix {
    /// The simple IMIX: seven packets of 46 bytes, four of 552 and one of 1500, spread as evenly as they can be.
    pub fn imix() -> Self {
        Self::spread("imix", &[(46, 7), (552, 4), (1500, 1)])
    }

    /// Orders sizes so that each comes at even distances.
    fn spread(name: &str, parts: &[(u16, usize)]) -> Self {
        let total: usize = parts.iter().map(|(_, count)| count).sum();
        let mut placed: Vec<(u64, u16)> = Vec::with_capacity(total);
        for (size, count) in parts {
            for at in 0..*count {
                // The middle of the at-th of `count` equal parts of the round, in units of a half part.
                let place = (2 * at as u64 + 1) * 1_000_000 / (2 * (*count).max(1) as u64);
                placed.push((place, *size));
            }
        }
        placed.sort_by_key(|(place, _)| *place);
        Self {
            name: name.into(),
            round: placed.into_iter().map(|(_, size)| size).collect(),
        }
    }

    /// One round, never empty.
    pub fn round(&self) -> &[u16] {
        &self.round
    }

    /// The longest.
    pub fn max(&self) -> u16 {
        self.round.iter().copied().max().unwrap_or(MIN_SIZE)
    }

    /// The mean length, in bytes.
    pub fn mean(&self) -> f64 {
        let sum: u64 = self.round.iter().map(|size| u64::from(*size)).sum();
        sum as f64 / self.round.len().max(1) as f64
    }
}

impl fmt::Display for SizeMix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl FromStr for SizeMix {
    type Err = SizeMixError;

    /// `imix`, one size, or sizes with a comma between them, each with `x` and its share where that is not one.
    fn from_str(text: &str) -> Result<Self, SizeMixError> {
        if text.eq_ignore_ascii_case("imix") {
            return Ok(Self::imix());
        }
        let mut parts = Vec::new();
        for part in text.split(',') {
            let syntax = || SizeMixError::Syntax(part.into());
            let (size, share) = part.split_once('x').unwrap_or((part, "1"));
            let size: u64 = size.trim().parse().map_err(|_| syntax())?;
            let share: usize = share.trim().parse().map_err(|_| syntax())?;
            let size = u16::try_from(size)
                .ok()
                .filter(|size| (MIN_SIZE..=MAX_SIZE).contains(size))
                .ok_or(SizeMixError::Range(size))?;
            if !(1..=MAX_ROUND).contains(&share) {
                return Err(SizeMixError::Round(share));
            }
            parts.push((size, share));
        }
        let total = parts.iter().map(|(_, share)| share).sum();
        if total > MAX_ROUND {
            return Err(SizeMixError::Round(total));
        }
        Ok(Self::spread(text, &parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imix_has_seven_four_one_and_its_mean() {
        let mix = SizeMix::imix();
        let count = |size| mix.round().iter().filter(|each| **each == size).count();
        assert_eq!((count(46), count(552), count(1500)), (7, 4, 1));
        assert_eq!(mix.round().len(), 12);
        assert!((mix.mean() - 335.83).abs() < 0.01);
        assert_eq!("IMIX".parse(), Ok(mix.clone()));
        assert_eq!(
            "46x7,552x4,1500".parse::<SizeMix>().expect("mix").round(),
            mix.round()
        );
    }

    #[test]
    fn imix_never_has_more_than_three_small_packets_in_a_row() {
        let mix = SizeMix::imix();
        let twice = [mix.round(), mix.round()].concat();
        assert!(
            twice
                .chunk_by(|a, b| a == b)
                .all(|run| run[0] != 46 || run.len() <= 3),
            "{twice:?}"
        );
    }

    #[test]
    fn mix_that_cannot_be_sent_is_refused_with_its_reason() {
        let parse = |text: &str| text.parse::<SizeMix>().expect_err(text);
        assert!(matches!(parse("large"), SizeMixError::Syntax(_)));
        assert!(matches!(parse(""), SizeMixError::Syntax(_)));
        assert!(matches!(parse("64x"), SizeMixError::Syntax(_)));
        assert_eq!(parse("43"), SizeMixError::Range(43));
        assert_eq!(parse("64,9000"), SizeMixError::Range(9000));
        assert_eq!(parse("64x0"), SizeMixError::Round(0));
        assert_eq!(parse("64x4000,65x97"), SizeMixError::Round(4097));
    }
}
