//! What operators and accidents write: no panic, no key shown, and no waiting.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use simplon::policy::{Secrets, Source, parse, render};

use super::{BASE, Site, test_key, write_key};

const TEN: &str = include_str!("../policies/ten-mistakes.toml");

/// The number of errors, after all of them were shown.
fn errors_shown(text: &str) -> usize {
    let source = Source::new(Path::new("/nowhere/west.toml"), text);
    let errors = parse(&source, &Secrets::with_environment([]))
        .err()
        .unwrap_or_default();
    let shown = render(&errors, &source, true) + &render(&errors, &source, false);
    assert!(!shown.contains("5ec0de00000002"), "{shown}");
    errors.len()
}

fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("\""),
        Just("\"\"\""),
        Just("'"),
        Just("["),
        Just("]"),
        Just("[["),
        Just("]]"),
        Just("{"),
        Just("}"),
        Just("\n"),
        Just("="),
        Just(","),
        Just("."),
        Just("#"),
        Just("key"),
        Just("[[tunnel]]\n"),
        Just("\\u"),
        Just("é"),
        Just("\r"),
        Just("\0"),
        Just("key = "),
        Just("0x"),
        Just("\t"),
        Just("🔑"),
    ];
    prop::collection::vec(piece, 1..4).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_text_is_refused_without_panic(text in ".{0,200}") {
        prop_assert!(errors_shown(&text) > 0);
    }

    #[test]
    fn any_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(errors_shown(&String::from_utf8_lossy(&bytes)) > 0);
    }

    #[test]
    fn damaged_policies_are_refused_without_panic(
        ten: bool, at: prop::sample::Index, len in 0_usize..12, piece in pieces(),
    ) {
        let text = if ten { TEN } else { BASE };
        let start = at.index(text.len());
        let end = (start + len).min(text.len());
        let damaged = format!("{}{piece}{}", &text[..start], &text[end..]);
        // The keys of the base policy are missing, whatever else is.
        prop_assert!(errors_shown(&damaged) > 0);
    }

    #[test]
    fn swapped_lines_are_refused_without_panic(one: prop::sample::Index, two: prop::sample::Index) {
        let mut lines: Vec<_> = TEN.lines().collect();
        let (one, two) = (one.index(lines.len()), two.index(lines.len()));
        lines.swap(one, two);
        prop_assert!(errors_shown(&lines.join("\n")) > 0);
    }
}

/// A policy with `count` tunnels in address space of their own, and `extra` networks in each.
fn many_tunnels(count: u32) -> String {
    let start = BASE.find("[[tunnel]]").unwrap();
    let mut text = BASE[..start].to_owned();
    for number in 0..count {
        let (high, low) = (number / 256, number % 256);
        // Several classes of prefix lengths, as real files have.
        let len = 24 + number % 4;
        write!(
            text,
            "[[tunnel]]\nname = \"t{number}\"\nlocal_networks = [\"10.1.0.0/16\"]\n\
             remote_networks = [\"172.{high}.{low}.0/{len}\", \"fd00:{number:x}::/64\"]\n\
             [[tunnel.endpoints]]\nlocal = \"192.0.2.1\"\nremote = \"203.0.113.1\"\n\
             outbound = {{ spi = {}, cipher = \"aes-128-gcm\", key.file = \"o{number}\" }}\n\
             inbound = {{ spi = {}, cipher = \"aes-128-gcm\", key.file = \"i{number}\" }}\n\n",
            0x1_0000 + number,
            0x1_0000 + number,
        )
        .unwrap();
    }
    text
}

#[test]
fn ten_thousand_tunnels_are_checked_in_seconds() {
    let site = Site::new();
    for number in 0..10_000 {
        write_key(
            &site.directory.path().join(format!("o{number}")),
            &test_key(2 * number, 20),
        );
        write_key(
            &site.directory.path().join(format!("i{number}")),
            &test_key(2 * number + 1, 20),
        );
    }
    let text = many_tunnels(10_000);
    let start = Instant::now();
    assert_eq!(site.parse(&text).ok().unwrap().tunnels.len(), 10_000);
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
    // And as quickly refused, with an error in every tunnel.
    let broken = text.replace(
        "aes-128-gcm\", key.file = \"o",
        "aes-128-gcm\", key.file = \"x",
    );
    let start = Instant::now();
    let errors = site.parse(&broken).err().unwrap();
    assert_eq!(errors.len(), 10_000);
    assert!(
        site.render(&errors, &broken)
            .ends_with("10000 errors in west.toml; nothing was loaded\n")
    );
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn long_lines_are_cut_around_the_mistake() {
    let networks: Vec<_> = (0..250)
        .map(|number| format!("\"10.9.{number}.0/24\""))
        .collect();
    let list = networks
        .join(", ")
        .replace("10.9.200.0/24", "10.9.200.0/23x");
    let text = BASE.replace("\"10.3.0.0/16\"", &list);
    let site = Site::new();
    let errors = site.errors(&text);
    assert_eq!(
        (errors.len(), errors[0].offending()),
        (1, "\"10.9.200.0/23x\"")
    );
    let shown = site.render(&errors, &text);
    assert!(
        shown.contains(&format!(
            "west.toml:{}:{}\n",
            errors[0].line(),
            errors[0].column()
        )),
        "{shown}"
    );
    assert!(
        shown.contains("10.9.200.0/23x") && !shown.contains("\"10.9.1.0/24\""),
        "{shown}"
    );
}
