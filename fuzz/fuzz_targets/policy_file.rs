//! What operators write: a policy file is accepted and compiles, or every mistake is told, without a word of the keys.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/policy_file.rs"]
mod policy_file;

fuzz_target!(|text: &str| policy_file::check(text));
