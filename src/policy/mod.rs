//! From a policy file to what workers look up. Never imports `dpdk` or `worker`.
#![forbid(unsafe_code)]

pub mod model;
