//! From a policy file to what workers look up. Never imports `dpdk` or `worker`.
//!
//! ```text
//! text → file (spanned tree) → parse (every check) → Policy
//!                                   └→ PolicyError, all of them → render
//! ```
//!
//! [`parse`] is the only way to get a [`Policy`]. It reports every mistake at once, each with its place in the file
//! and what to write instead, and nothing that it reports contains a key. `docs/CONFIGURATION.md` describes the syntax.
#![forbid(unsafe_code)]

mod blocks;
pub mod compile;
mod device;
mod diagnostic;
pub mod difference;
pub mod edit;
mod entry;
mod file;
pub mod filter;
mod gateway;
mod keying;
mod lifetime;
mod load;
mod mask;
pub mod model;
mod network;
mod next_hops;
mod parse;
pub mod plan;
mod port;
mod prefix_map;
pub mod progress;
pub mod queues;
mod route;
pub mod routes;
mod rule;
mod secret;
mod selectors;
pub mod standing;
pub mod tables;
mod trie;
mod tunnel;

pub use diagnostic::{PolicyError, Related, Source, render};
pub use entry::{protocol_name, protocol_names, protocol_number};
pub use load::{LoadError, control_socket, load, read};
pub use model::Policy;
pub use parse::{parse, parse_watched};
pub use secret::Secrets;
