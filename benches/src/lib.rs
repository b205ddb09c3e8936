//! Measures simplon's AES-GCM beside other libraries, each given the same bursts in the same memory.
//!
//! A crate of its own, so that building and testing simplon does not build what it is compared with.

pub mod burst;
pub mod clock;
pub mod contender;
pub mod intel;
pub mod measure;
pub mod report;
