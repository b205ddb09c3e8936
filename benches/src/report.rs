//! The limits, and tables for people.

use std::fmt::Write;

use serde::Serialize;
use simplon::crypto::aead::Cipher;

use crate::burst::{Load, Sizes};
use crate::measure::{Cell, Figures, Spread, Way};

/// Most of Intel's cycles that simplon may need for this load.
pub fn limit(load: &Load) -> f64 {
    match load.sizes {
        _ if load.keys > 1 => 1.0,
        Sizes::Imix => 1.0,
        Sizes::Equal(..=128) => 0.75,
        Sizes::Equal(..=256) => 0.88,
        Sizes::Equal(_) => 0.85,
    }
}

/// Everyone's figures for one load.
#[derive(Serialize)]
pub struct Row {
    /// The cipher.
    pub cipher: &'static str,
    /// Seal or open.
    pub way: Way,
    /// Bytes of text, or `imix`.
    pub sizes: String,
    /// How many keys.
    pub keys: usize,
    /// See [`limit`].
    pub limit: f64,
    /// Whether the first contender's median is within the limit; none without Intel's library.
    pub reached: Option<bool>,
    /// Core cycles in a TSC cycle while they ran.
    pub core_per_tsc: f64,
    /// The contenders.
    pub cells: Vec<Cell>,
}

impl Row {
    /// What was measured for `load`.
    pub fn new(way: Way, load: &Load, figures: Figures) -> Self {
        let Figures {
            cells,
            core_per_tsc,
        } = figures;
        let limit = limit(load);
        let ours = cells.first().and_then(|cell| cell.to_intel);
        Self {
            cipher: load.cipher.name(),
            way,
            sizes: match load.sizes {
                Sizes::Equal(len) => len.to_string(),
                Sizes::Imix => "imix".into(),
            },
            keys: load.keys,
            limit,
            reached: ours.map(|ratio| ratio.median <= limit),
            core_per_tsc,
            cells,
        }
    }

    fn heading(&self) -> String {
        match self.keys {
            1 => self.sizes.clone(),
            keys => format!("{} × {keys} keys", self.sizes),
        }
    }
}

/// A table: a line for each contender, a column for each of `rows`; then the ratios to Intel and the verdicts.
pub fn table(title: &str, rows: &[&Row]) -> String {
    let mut out = format!("\n### {title}\n\n");
    let mut line = |cells: Vec<String>| {
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    };
    let with = |name: &str, cells: &mut dyn Iterator<Item = String>| {
        let mut all = vec![name.to_owned()];
        all.extend(cells);
        all
    };
    line(with(
        "TSC cycles a packet",
        &mut rows.iter().map(|row| row.heading()),
    ));
    line(vec!["---".into(); rows.len() + 1]);
    let names = rows.first().map(|row| row.cells.len()).unwrap_or_default();
    for at in 0..names {
        let name = &rows[0].cells[at].contender;
        line(with(
            name,
            &mut rows.iter().map(|row| {
                let Spread { median, low, high } = row.cells[at].cycles;
                format!("{median:.0} ({low:.0}–{high:.0})")
            }),
        ));
    }
    line(with(
        "core cycles in a TSC cycle",
        &mut rows.iter().map(|row| format!("{:.2}", row.core_per_tsc)),
    ));
    for at in 0..names {
        let name = &rows[0].cells[at].contender;
        if !name.starts_with("simplon") || rows[0].cells[at].to_intel.is_none() {
            continue;
        }
        line(with(
            &format!("{name} / Intel"),
            &mut rows.iter().map(|row| match row.cells[at].to_intel {
                Some(Spread { median, low, high }) => {
                    format!("{median:.3} ({low:.3}–{high:.3})")
                }
                None => "–".into(),
            }),
        ));
        if at == 0 {
            line(with(
                "limit",
                &mut rows.iter().map(|row| {
                    let verdict = match row.reached {
                        Some(true) => "reached",
                        Some(false) => "**missed**",
                        None => "–",
                    };
                    format!("{:.2} {verdict}", row.limit)
                }),
            ));
        }
    }
    out
}

/// How many limits are reached, and which are not.
pub fn verdict(rows: &[Row]) -> String {
    let judged: Vec<_> = rows.iter().filter_map(|row| row.reached).collect();
    let reached = judged.iter().filter(|&&reached| reached).count();
    let mut out = format!("\n{reached} of {} limits reached", judged.len());
    for row in rows.iter().filter(|row| row.reached == Some(false)) {
        let ratio = row.cells.first().and_then(|cell| cell.to_intel);
        let _ = write!(
            out,
            "\nmissed: {} {:?} {}: {:.3}, limit {:.2}",
            row.cipher,
            row.way,
            row.heading(),
            ratio.map_or(f64::NAN, |ratio| ratio.median),
            row.limit,
        );
    }
    out.push('\n');
    out
}

/// A cipher's name as tables have it.
pub fn title(cipher: Cipher, way: Way) -> String {
    let bits = 8 * cipher.key_len();
    match way {
        Way::Seal => format!("AES-{bits}-GCM, seal"),
        Way::Open => format!("AES-{bits}-GCM, open"),
    }
}
