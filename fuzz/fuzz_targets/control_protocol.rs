//! What comes over the control socket: every line gets a valid JSON-RPC answer of one line, or none.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/control_protocol.rs"]
mod control_protocol;

fuzz_target!(|input: &[u8]| control_protocol::check(input));
