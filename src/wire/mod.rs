//! Views of the headers on the wire, in place. Imports only the base modules.
//!
//! Nothing here trusts a length it has not compared with the bytes at hand.
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

pub mod checksum;
pub mod esp;
pub mod ether;
pub mod ip;
pub mod ipv4;
pub mod ipv6;
pub mod rss;
pub mod tcp;
pub mod udp;
pub mod vlan;
