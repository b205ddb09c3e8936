//! `simplon bench`: gateways, a generator and a checker in one process, and what they show of speed.
//!
//! ```text
//! site: policies, flows → rig: ports, gateways, paths, dealt out to lines → line: one thread → measure → report, chart
//! ```
#![forbid(unsafe_code)]

mod chart;
pub mod config;
mod inside;
mod line;
mod measure;
mod outside;
mod path;
pub mod report;
mod rig;
mod schedule;
mod site;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::control::state::StateError;
use crate::dpdk::error::DpdkError;

use config::Config;
use report::Report;

/// Why there is no measurement.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// DPDK.
    #[error(transparent)]
    Dpdk(#[from] DpdkError),
    /// The state of the gateways.
    #[error(transparent)]
    State(#[from] StateError),
    /// The policy that was made up is refused.
    #[error("the policy made up for this measurement is refused:\n{0}")]
    Policy(String),
    /// No random numbers for keys.
    #[error("no random numbers for the keys: {0}")]
    Random(String),
    /// A thread.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// A directory for the gateways' state.
    #[error("cannot make a directory for the gateways' state: {0}")]
    Directory(std::io::Error),
    /// The chart.
    #[error("cannot write the chart: {0}")]
    Chart(String),
    /// Arguments that do not go together.
    #[error("{0}")]
    Arguments(String),
    /// Nothing came back.
    #[error("{0}")]
    Silence(String),
    /// Interrupted.
    #[error("interrupted; nothing is told of what was not finished")]
    Interrupted,
}

/// Measures what `config` says. `stop` ends it early.
///
/// # Errors
/// [`BenchError`]; what the measurement itself shows, good or bad, is in the report.
pub fn run(config: &Config, stop: &Arc<AtomicBool>) -> Result<Report, BenchError> {
    config.check()?;
    let report = match &config.outside {
        None => inside::run(config, stop)?,
        Some(outside) => outside::run(config, outside, stop)?,
    };
    if let Some(file) = &config.chart {
        chart::write(&report, file)?;
    }
    Ok(report)
}
