//! simplon, a userspace IPsec gateway. `docs/ARCHITECTURE.md` says which module may import which.

#[cfg(feature = "dpdk")]
pub mod bench;
mod bits;
pub mod buf;
pub mod cli;
pub mod control;
pub mod crypto;
#[cfg(feature = "dpdk")]
pub mod dpdk;
pub mod drop;
#[cfg(feature = "dpdk")]
pub mod gateway;
pub mod generator;
#[cfg(feature = "dpdk")]
pub mod host;
pub mod ids;
pub mod ipsec;
pub mod meta;
pub mod policy;
pub mod rcu;
mod sync;
pub mod wire;
pub mod worker;
