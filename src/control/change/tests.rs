//! What is started for a change, and what is not.

use std::fs;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::control::leases::{Leases, declare_fresh};
use crate::policy::model::MacAddr;
use crate::policy::parse;

const BASE: &str = r#"
[gateway]
name = "west"
workers = [0]
state_dir = "DIR"
control_socket = "DIR/socket"
lab_keys = true

[[port]]
name = "lan"
device = "net_null0"
side = "protected"
pair = "wan"
addresses = ["10.1.0.1/16"]

[[port]]
name = "wan"
device = "net_null1"
side = "unprotected"
pair = "lan"
addresses = ["192.0.2.1/24"]
"#;

fn tunnel(number: usize) -> String {
    format!(
        r#"
[[tunnel]]
name = "t{number}"
local_networks = ["10.1.{number}.0/24"]
remote_networks = ["10.2.{number}.0/24"]
[[tunnel.endpoints]]
local = "192.0.2.1"
remote = "192.0.2.2"
[tunnel.endpoints.outbound]
spi = 0x100{number}
cipher = "aes-128-gcm"
key = {{ env = "OUT_{number}" }}
[tunnel.endpoints.inbound]
spi = 0x200{number}
cipher = "aes-128-gcm"
key = {{ env = "IN_{number}" }}
"#
    )
}

fn secrets() -> Secrets {
    let of = |number: usize| {
        let key = |kind: &str| format!("{kind}{number:02x}{}", "5a".repeat(18));
        [
            (format!("OUT_{number}"), key("aa")),
            (format!("IN_{number}"), key("bb")),
        ]
    };
    Secrets::with_environment((1..=3).flat_map(of))
}

fn topology() -> Topology {
    Topology {
        macs: vec![MacAddr([2; 6]); 2],
    }
}

/// A gateway's policy in force, whose keys are declared, and its leases.
struct Rig {
    dir: TempDir,
    leases: Leases,
    in_force: InForce,
}

impl Rig {
    fn new() -> Self {
        let dir = TempDir::new().expect("dir");
        let text = text(&dir, &[1]);
        let mut policy = read_policy(&text);
        declare_fresh(&policy).expect("declared");
        let leases = Leases::open(&policy);
        policy.forget_keys();
        let standing = Standing::new(Arc::new(policy), 16);
        let compiled = Compiled::new(standing.policy(), standing.beside(), &topology());
        let in_force = InForce {
            standing: Arc::new(standing),
            text: Arc::new(text),
            compiled: Arc::new(compiled),
            refused: Arc::default(),
        };
        Self {
            dir,
            leases,
            in_force,
        }
    }

    /// Has the file with these tunnels made.
    fn load(&self, tunnels: &[usize], how: How) -> Result<Box<Made>, Refusal> {
        let text = text(&self.dir, tunnels);
        fs::write(&text.path, &text.text).expect("written");
        let maker = Maker::start(secrets(), topology(), self.leases.starter()).expect("a thread");
        maker.begin(Wish::Load(text.path), how, self.in_force.clone());
        loop {
            if let Some(made) = maker.take() {
                return made;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn state(&self) -> Vec<u8> {
        fs::read(self.dir.path().join(crate::control::state::FILE_NAME)).expect("read")
    }
}

fn text(dir: &TempDir, tunnels: &[usize]) -> PolicyText {
    let base = BASE.replace("DIR", &dir.path().display().to_string());
    let tunnels = tunnels.iter().map(|number| tunnel(*number));
    PolicyText {
        path: dir.path().join("west.toml"),
        text: tunnels.fold(base, |text, tunnel| text + &tunnel),
    }
}

fn read_policy(text: &PolicyText) -> Policy {
    let source = Source::new(&text.path, &text.text);
    parse(&source, &secrets())
        .unwrap_or_else(|errors| panic!("{}", render(&errors, &source, false)))
}

#[test]
fn what_is_only_looked_at_starts_nothing() {
    let rig = Rig::new();
    let before = rig.state();
    let made = rig.load(&[1, 2], How::ToLookAt).expect("good");
    assert!(made.pairs.is_empty());
    assert_eq!((made.step.fresh.len(), made.difference.len()), (1, 1));
    assert!(rig.state() == before);
    // The same change, taken up.
    let made = rig.load(&[1, 2], How::WithFreshKeys).expect("good");
    let [pair] = &made.pairs[..] else {
        panic!("one pair is new");
    };
    let sa = pair.outbound.as_ref().expect("started");
    assert_eq!((sa.seq().next(), sa.seq().peek()), (1, Ok(1)));
    assert!(rig.state() != before);
}

#[test]
fn change_that_is_refused_leaves_the_state_as_it_was() {
    let rig = Rig::new();
    let before = rig.state();
    let refused = rig.load(&[1, 2, 3], How::WithKnownKeys).err();
    let refused = refused.expect("keys that nobody knows");
    for sa in [
        "outbound SA 0x00001002 of tunnel \"t2\"",
        "inbound SA 0x00002003 of tunnel \"t3\"",
    ] {
        assert!(refused.contains(sa), "{refused}");
    }
    assert!(!refused.contains("t1"), "{refused}");
    assert!(rig.state() == before);
}
