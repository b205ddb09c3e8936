//! Poll-mode workers: the only place where `ipsec` and `dpdk` meet. `datapath` is the file to read first.
//!
//! The stages work on any [`crate::buf::PacketBuf`], so they are tested and fuzzed without DPDK; what polls real queues
//! needs the feature `dpdk`.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod classify;
pub mod counters;
mod cut;
#[cfg(feature = "dpdk")]
pub mod datapath;
mod fit;
pub mod forward;
#[cfg(feature = "dpdk")]
pub mod host;
pub mod parse;
pub mod probe;
pub mod reassembly;
pub mod rehearsal;
#[cfg(feature = "dpdk")]
pub mod remake;
#[cfg(feature = "dpdk")]
pub mod run;
pub mod stages;
pub mod trace;
#[cfg(feature = "dpdk")]
pub mod trunk;
pub mod vlan;
