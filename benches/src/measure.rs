//! Rounds: every contender in turn on the same bursts, again and again, and what the medians say.

use serde::Serialize;

use crate::burst::{Arena, BURST, Bursts, Load, Packet};
use crate::clock;
use crate::contender::{self, Contender, Field};

/// Seal or open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Seal.
    Seal,
    /// Open.
    Open,
}

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds; in each, every contender comes once.
    pub rounds: usize,
    /// Bursts that a contender seals or opens in a round, at least.
    pub bursts: usize,
    /// Who takes part.
    pub field: Field,
}

/// Median, and the first and the last of ten parts of the rounds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The tenth percentile.
    pub low: f64,
    /// The ninetieth percentile.
    pub high: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let last = values.len() - 1;
        Self {
            median: values[values.len() / 2],
            low: values[last / 10],
            high: values[last - last / 10],
        }
    }
}

/// One contender on one load.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// Its name.
    pub contender: String,
    /// TSC cycles a packet.
    pub cycles: Spread,
    /// Its cycles over Intel's in the same round; none for Intel's own and where Intel's library does not run.
    pub to_intel: Option<Spread>,
}

/// Everyone's figures for one load.
pub struct Figures {
    /// The contenders' figures.
    pub cells: Vec<Cell>,
    /// Core cycles in a TSC cycle while they ran: the median of the rounds.
    pub core_per_tsc: f64,
}

/// Runs every contender on `load`.
///
/// # Errors
/// Where a contender gives a wrong result.
pub fn run(way: Way, load: Load, effort: Effort) -> Result<Figures, String> {
    let contenders = contender::all(effort.field, load.cipher, load.keys);
    let mut arena = Arena::new(load.sizes.longest());
    let bursts = bursts(load);
    for contender in &contenders {
        check(&**contender, &bursts, &mut arena)?;
    }
    let overhead = clock::overhead();
    let mut rounds = vec![Vec::with_capacity(effort.rounds); contenders.len()];
    let mut clocks = Vec::with_capacity(effort.rounds);
    for _ in 0..effort.rounds {
        clocks.push(clock::core_cycles_per_tsc_cycle());
        for (contender, figures) in contenders.iter().zip(&mut rounds) {
            figures.push(round(
                &**contender,
                way,
                (&bursts, &mut arena),
                effort,
                overhead,
            ));
        }
    }
    let intel = contenders
        .iter()
        .position(|contender| contender.name().starts_with("intel"));
    let cells = contenders.iter().enumerate().map(|(at, contender)| Cell {
        contender: contender.name(),
        cycles: Spread::of(rounds[at].clone()),
        to_intel: intel.filter(|&intel| intel != at).map(|intel| {
            let pairs = rounds[at].iter().zip(&rounds[intel]);
            Spread::of(pairs.map(|(ours, intels)| ours / intels).collect())
        }),
    });
    Ok(Figures {
        cells: cells.collect(),
        core_per_tsc: Spread::of(clocks).median,
    })
}

/// Enough bursts that each key comes once, sealed by the `aes-gcm` crate.
fn bursts(load: Load) -> Bursts {
    use aes_gcm::{AeadInOut, Aes128Gcm, Aes256Gcm, KeyInit};
    use simplon::crypto::aead::{Cipher, ICV_LEN};
    let seal = |packet: &Packet, text: &mut [u8]| {
        let (plain, icv) = text.split_at_mut(text.len() - ICV_LEN);
        let key = crate::burst::key_bytes(load.cipher, packet.key);
        let nonce = packet.nonce.into();
        let tag = match load.cipher {
            Cipher::Aes128Gcm => Aes128Gcm::new_from_slice(&key)
                .expect("16 bytes")
                .encrypt_inout_detached(&nonce, &packet.aad, plain.into()),
            _ => Aes256Gcm::new_from_slice(&key)
                .expect("32 bytes")
                .encrypt_inout_detached(&nonce, &packet.aad, plain.into()),
        };
        icv.copy_from_slice(&tag.expect("short"));
    };
    Bursts::new(load, load.keys.div_ceil(BURST), seal)
}

/// Seals and opens every burst, and looks at each byte.
fn check(contender: &dyn Contender, bursts: &Bursts, arena: &mut Arena) -> Result<(), String> {
    for (at, packets) in bursts.packets.iter().enumerate() {
        let wrong = |what| {
            format!(
                "{} {what} burst {at} of {:?}",
                contender.name(),
                bursts.load
            )
        };
        bursts.write_plain(at, arena);
        if !contender.seal(packets, arena).1 || !bursts.is_sealed(at, arena) {
            return Err(wrong("seals wrong"));
        }
        bursts.write_sealed(at, arena);
        if !contender.open(packets, arena).1 || !bursts.is_plain(at, arena) {
            return Err(wrong("opens wrong"));
        }
    }
    Ok(())
}

/// TSC cycles a packet in one round: of bursts with equal lengths the median, and the mean of these.
fn round(
    contender: &dyn Contender,
    way: Way,
    (bursts, arena): (&Bursts, &mut Arena),
    effort: Effort,
    overhead: u64,
) -> f64 {
    let count = bursts.packets.len();
    let period = bursts.load.sizes.period();
    let mut spans = vec![Vec::new(); period];
    // Once around brings keys and code into the caches again, as they are when nobody else comes between.
    let warm = count.max(2 * period);
    let timed = effort.bursts.next_multiple_of(period);
    for at in 0..warm + timed {
        let burst = at % count;
        let packets = &bursts.packets[burst];
        let (cycles, done) = match way {
            Way::Seal => {
                bursts.write_plain(burst, arena);
                contender.seal(packets, arena)
            }
            Way::Open => {
                bursts.write_sealed(burst, arena);
                contender.open(packets, arena)
            }
        };
        assert!(done, "{} failed in the middle", contender.name());
        if at >= warm {
            spans[burst % period].push(cycles.saturating_sub(overhead));
        }
    }
    let medians = spans.iter_mut().map(|spans| {
        spans.sort_unstable();
        spans[spans.len() / 2] as f64
    });
    medians.sum::<f64>() / (period * BURST) as f64
}
