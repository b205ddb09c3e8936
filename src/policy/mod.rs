//! From a policy file to what workers look up. Never imports `dpdk` or `worker`.
#![forbid(unsafe_code)]

pub mod compile;
pub mod model;
pub mod routes;
pub mod tables;
