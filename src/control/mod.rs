//! The control thread: sequence numbers on disk, the control socket, reports. It sees a worker only through published
//! tables, rings and counters.
#![forbid(unsafe_code)]

pub mod change;
pub mod events;
pub mod explain;
pub mod keeper;
pub mod leases;
pub mod lifetimes;
pub mod pairs;
pub mod peers;
pub mod policies;
pub mod protocol;
pub mod report;
pub mod rows;
pub mod socket;
pub mod state;
pub mod trace;
