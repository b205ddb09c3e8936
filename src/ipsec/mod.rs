//! SAs, policies and ESP. Knows buffers and keys, not DPDK; imports the base modules, `wire` and `crypto`.
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

pub mod esp_in;
pub mod esp_out;
pub mod flat;
pub mod flow_cache;
pub mod flow_hash;
pub mod outer;
pub mod peer;
pub mod replay;
pub mod rules;
pub mod sa;
pub mod sa_counters;
pub mod sad;
pub mod selector;
pub mod seq;
pub mod spd;
pub mod traffic;
