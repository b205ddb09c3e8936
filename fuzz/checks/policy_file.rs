//! What is held of every text: it is a policy and compiles, or every mistake is told, without a word of the keys.

use std::path::Path;

use simplon::policy::compile::{Topology, compile};
use simplon::policy::model::MacAddr;
use simplon::policy::{Secrets, Source, parse, render};

/// Long enough that no input holds it by chance.
const KEY: &str = "5ec0de5ec0de5ec0de5ec0de5ec0de5ec0de5ec0";

/// Panics where it does not hold.
pub(crate) fn check(text: &str) {
    let source = Source::new(Path::new("/nowhere/policy.toml"), text);
    let secrets = Secrets::with_environment([("KEY".into(), KEY.into())]);
    match parse(&source, &secrets) {
        Ok(policy) => {
            let macs = policy.ports.iter().map(|_| MacAddr([2; 6])).collect();
            let tables = compile(&policy, &Topology { macs });
            assert_eq!(tables.ports.len(), policy.ports.len());
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            if !text.contains(KEY) {
                assert!(!render(&errors, &source, false).contains(KEY));
            }
        }
    }
}
