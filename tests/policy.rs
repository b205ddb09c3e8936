//! Policy files: what is accepted, and what is said about what is not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use simplon::policy::queues::check_declared;
use simplon::policy::{Policy, PolicyError, Secrets, Source, parse, render};
use simplon::wire::rss::USUAL_TABLE_LEN;
use tempfile::TempDir;

#[path = "policy/checks.rs"]
mod checks;
#[path = "policy/devices.rs"]
mod devices;
#[path = "policy/difference.rs"]
mod difference;
#[path = "policy/entries.rs"]
mod entries;
#[path = "policy/lifetimes.rs"]
mod lifetimes;
#[path = "policy/robust.rs"]
mod robust;
#[path = "policy/rules.rs"]
mod rules;
#[path = "policy/secrets.rs"]
mod secrets;
#[path = "policy/split.rs"]
mod split;
#[path = "policy/standing.rs"]
mod standing;

/// Keys of tests begin like this, in files and in the environment; no output may contain it.
const KEY_START: &str = "5ec0de";

const BASE: &str = include_str!("policies/base.toml");

/// A key that no other test key equals, `len` bytes long.
fn test_key(number: u32, len: usize) -> String {
    let mut digits = format!("{KEY_START}{number:08x}");
    while digits.len() < 2 * len {
        digits.push_str("a7");
    }
    digits
}

fn write_key(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A directory with key files `1.key` to `10.key`, and variables `KEY_1` to `KEY_10`.
struct Site {
    directory: TempDir,
    secrets: Secrets,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut environment = Vec::new();
        for number in 1..=10 {
            // The base policy has 256-bit keys here.
            let len = if matches!(number, 3 | 4) { 36 } else { 20 };
            write_key(
                &directory.path().join(format!("{number}.key")),
                &test_key(number, len),
            );
            environment.push((format!("KEY_{number}"), test_key(number, len)));
        }
        Self {
            directory,
            secrets: Secrets::with_environment(environment),
        }
    }

    fn policy_path(&self) -> PathBuf {
        self.directory.path().join("west.toml")
    }

    fn parse(&self, text: &str) -> Result<Policy, Vec<PolicyError>> {
        parse(&Source::new(&self.policy_path(), text), &self.secrets)
    }

    /// The errors in `text`, none of which shows a key.
    fn errors(&self, text: &str) -> Vec<PolicyError> {
        let errors = self.parse(text).err().unwrap_or_default();
        let shown = self.render(&errors, text) + &format!("{errors:?}");
        assert!(
            !shown.contains(KEY_START) && !shown.contains("a7a7"),
            "{shown}"
        );
        errors
    }

    fn render(&self, errors: &[PolicyError], text: &str) -> String {
        render(errors, &Source::new(&self.policy_path(), text), false)
    }
}

fn lines(errors: &[PolicyError]) -> Vec<usize> {
    errors.iter().map(PolicyError::line).collect()
}

#[test]
fn samples_are_accepted() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("dpdk-config");
    let mut seen = Vec::new();
    for entry in fs::read_dir(samples).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut environment = Vec::new();
        // Every SA of the samples has its cipher above its key.
        let mut key_len = 0;
        for (number, line) in (0..).zip(text.lines()) {
            if let Some(cipher) = line.strip_prefix("cipher = ") {
                key_len = if cipher.starts_with("\"aes-128") {
                    20
                } else {
                    36
                };
            }
            let Some((_, place)) = line.split_once("key = { ") else {
                continue;
            };
            let (kind, rest) = place.split_once(" = \"").unwrap();
            let (name, _) = rest.split_once('"').unwrap();
            match kind {
                "file" => write_key(&directory.path().join(name), &test_key(number, key_len)),
                _ => environment.push((name.to_owned(), test_key(number, key_len))),
            }
        }
        let copy = directory.path().join(path.file_name().unwrap());
        let source = Source::new(&copy, &text);
        match parse(&source, &Secrets::with_environment(environment)) {
            Ok(policy) => {
                assert_eq!(check_declared(&policy, USUAL_TABLE_LEN), []);
                seen.push((policy.gateway.name, policy.tunnels.len()));
            }
            Err(errors) => panic!("{}", render(&errors, &source, false)),
        }
    }
    seen.sort();
    let names: Vec<_> = seen.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "alpha", "dual", "east", "edge", "north", "server", "south", "west"
        ]
    );
}

#[test]
fn ten_mistakes_give_ten_errors() {
    let site = Site::new();
    let text = include_str!("policies/ten-mistakes.toml");
    let errors = site.errors(text);
    let shown = site.render(&errors, text);
    assert_eq!(
        lines(&errors),
        [5, 6, 14, 16, 23, 27, 32, 40, 41, 47],
        "{shown}"
    );
    assert!(
        shown.ends_with("10 errors in west.toml; nothing was loaded\n"),
        "{shown}"
    );
    assert!(errors.iter().all(|error| !error.help().is_empty()));
}

#[test]
fn errors_after_syntax_errors_are_found_and_echoes_left_out() {
    let site = Site::new();
    let text = include_str!("policies/syntax.toml");
    let errors = site.errors(text);
    assert_eq!(
        lines(&errors),
        [4, 6, 15, 19, 23],
        "{}",
        site.render(&errors, text)
    );
}

#[test]
fn display_is_one_line_with_place() {
    let site = Site::new();
    let errors = site.errors(&BASE.replace("mtu = 1500", "mtu = 15"));
    let place = format!("{}:17:7: ", site.policy_path().display());
    let shown = errors[0].to_string();
    assert!(shown.starts_with(&place), "{shown}");
    assert!(!shown.contains('\n'));
    assert_eq!(errors[0].offending(), "15");
}

#[test]
fn render_underlines_and_helps() {
    let site = Site::new();
    let text = BASE.replace("name = \"wan\"", "name = \"lan\"");
    let shown = site.render(&site.errors(&text), &text);
    for part in [
        "error: two ports are called \"lan\"",
        "20 | name = \"lan\"",
        "^^^^^",
        "note: ",
        "help: ",
    ] {
        assert!(shown.contains(part), "{part:?} in\n{shown}");
    }
}
