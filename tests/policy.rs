//! Policy files: what is accepted, and what is said about what is not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use simplon::policy::{Secrets, Source, parse, render};

/// Keys of tests begin like this, in files and in the environment; no output may contain it.
const KEY_START: &str = "5ec0de";

/// A key that no other test key equals.
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

fn dpdk_config() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dpdk-config")
}

#[test]
fn samples_are_accepted() {
    let mut samples = 0;
    for entry in fs::read_dir(dpdk_config()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        samples += 1;
        let text = fs::read_to_string(&path).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut environment = Vec::new();
        let mut number = 0;
        // Every SA of the samples has its cipher in the line before its key.
        let mut key_len = 0;
        for line in text.lines() {
            if let Some(cipher) = line.strip_prefix("cipher = ") {
                key_len = if cipher.starts_with("\"aes-128") {
                    20
                } else {
                    36
                };
            }
            let Some(place) = line.strip_prefix("key = { ") else {
                continue;
            };
            let (kind, rest) = place.split_once(" = \"").unwrap();
            let (name, _) = rest.split_once('"').unwrap();
            number += 1;
            let key = test_key(number, key_len);
            match kind {
                "file" => write_key(&directory.path().join(name), &key),
                "env" => environment.push((name.to_owned(), key)),
                other => panic!("{other}"),
            }
        }
        let secrets = Secrets::with_environment(environment);
        let copy = directory.path().join(path.file_name().unwrap());
        let source = Source::new(&copy, &text);
        if let Err(errors) = parse(&source, &secrets) {
            panic!("{}", render(&errors, &source, false));
        }
    }
    assert!(samples >= 1);
}
