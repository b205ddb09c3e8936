//! Covers what may be a secret before a line of a policy file is shown.
//!
//! Two layers, for either may fail. Where the file could be read, the reader says which values are secret: whatever
//! stands under `key`, and under keys that do not exist. Where it could not be read, because of a syntax error perhaps
//! in that very line, the line alone decides: what follows a name that is not one of ours, and every long run of
//! hexadecimal digits, is covered. A cover has the length of what it covers, so that columns stay right.
#![forbid(unsafe_code)]

use std::ops::Range;

/// How far back a value that spans lines is followed to the key it belongs to.
pub(super) const LINES_BEFORE: usize = 64;
/// The shortest key has 40 digits; two of its quarters must not be readable.
pub(super) const DIGIT_RUN_LEN: usize = 16;
/// What follows an unknown name is shown if it is too short to be a key.
pub(super) const SHORT_VALUE_LEN: usize = 24;
/// Names whose values are no secrets. `file` and `env` say where a secret is, not what it is.
const HARMLESS: &[&str] = &[
    "address",
    "addresses",
    "cipher",
    "control_group",
    "control_socket",
    "device",
    "df",
    "dscp",
    "ecn",
    "encapsulation",
    "endpoints",
    "env",
    "esn",
    "file",
    "gateway",
    "hop_limit",
    "inbound",
    "lab_keys",
    "local",
    "local_networks",
    "mac",
    "memory_mib",
    "mtu",
    "name",
    "neighbour",
    "outbound",
    "pair",
    "port",
    "queues",
    "remote",
    "remote_networks",
    "route",
    "side",
    "spi",
    "state_dir",
    "to",
    "tunnel",
    "udp_local_port",
    "udp_remote_port",
    "via",
    "window",
    "workers",
];

/// The line `text`, which starts at `start` in the file, with secrets covered: those the reader named in `secrets`
/// (disjoint and in order), and what looks like one. `before` gives earlier lines, the nearest first.
pub(super) fn cover_line<'a>(
    text: &str,
    start: usize,
    before: impl Iterator<Item = &'a str>,
    secrets: &[Range<usize>],
) -> String {
    let mut bytes = text.as_bytes().to_vec();
    cover_by_names(&mut bytes, text, secret_continues(text, before));
    let first = secrets.partition_point(|secret| secret.end <= start);
    for secret in secrets
        .iter()
        .skip(first)
        .take_while(|secret| secret.start < start + text.len())
    {
        let from = secret.start.saturating_sub(start).min(bytes.len());
        let to = secret.end.saturating_sub(start).min(bytes.len());
        cover(&mut bytes, from..to);
    }
    cover_runs(&mut bytes);
    // Whole runs of bytes were replaced by ASCII, each beginning and ending between characters.
    String::from_utf8(bytes).unwrap_or_else(|_| "*".repeat(text.len()))
}

/// `text` with every long run of hexadecimal digits covered.
pub(super) fn cover_digits(text: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    cover_runs(&mut bytes);
    String::from_utf8(bytes).unwrap_or_default()
}

/// Covers all but what gives a value its form.
fn cover(bytes: &mut [u8], range: Range<usize>) {
    for byte in bytes.get_mut(range).unwrap_or_default() {
        if !matches!(
            byte,
            b' ' | b'\t' | b'"' | b'\'' | b'{' | b'}' | b'[' | b']' | b','
        ) {
            *byte = b'*';
        }
    }
}

fn cover_runs(bytes: &mut [u8]) {
    for run in bytes.split_mut(|byte| !byte.is_ascii_hexdigit()) {
        if run.len() >= DIGIT_RUN_LEN {
            run.fill(b'*');
        }
    }
}

/// Covers what follows `key`, and what follows names that are not ours. `secret` says how the line begins.
fn cover_by_names(bytes: &mut [u8], text: &str, secret: bool) {
    let mut region = Region {
        from: 0,
        kind: if secret { Kind::Secret } else { Kind::Shown },
    };
    for (name, value_start) in names(text) {
        let kind = match kind_of(name.text) {
            Kind::Unknown if region.kind != Kind::Shown || name.in_string => continue,
            kind => kind,
        };
        region.close(bytes, name.start);
        region = Region {
            from: value_start,
            kind,
        };
    }
    region.close(bytes, text.len());
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Shown,
    Unknown,
    Secret,
}

struct Region {
    from: usize,
    kind: Kind,
}

impl Region {
    fn close(&self, bytes: &mut [u8], to: usize) {
        let hidden = match self.kind {
            Kind::Shown => false,
            Kind::Unknown => to.saturating_sub(self.from) >= SHORT_VALUE_LEN,
            Kind::Secret => true,
        };
        if hidden && self.from < to {
            cover(bytes, self.from..to);
        }
    }
}

fn kind_of(name: &str) -> Kind {
    if name == "key" {
        Kind::Secret
    } else if HARMLESS.contains(&name) {
        Kind::Shown
    } else {
        Kind::Unknown
    }
}

struct Name<'a> {
    text: &'a str,
    start: usize,
    in_string: bool,
}

/// Every `name =` in a line, with where its value starts.
fn names(text: &str) -> impl Iterator<Item = (Name<'_>, usize)> {
    text.match_indices('=').map(|(equals, _)| {
        let head = text.get(..equals).unwrap_or_default();
        let head = head
            .trim_end_matches([' ', '\t'])
            .trim_end_matches(['"', '\'']);
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let start = head.trim_end_matches(is_name).len();
        let quotes = head.get(..start).unwrap_or_default().matches('"').count();
        let name = Name {
            text: head.get(start..).unwrap_or_default(),
            start,
            in_string: quotes % 2 == 1,
        };
        (name, equals + 1)
    })
}

/// Whether the line goes on with a value that began on an earlier line, under a name that is not harmless.
fn secret_continues<'a>(text: &str, before: impl Iterator<Item = &'a str>) -> bool {
    if text.trim_start().starts_with(['[', '#']) || text.trim().is_empty() {
        return false;
    }
    let mut lines_back = 0;
    for line in before {
        lines_back += 1;
        if line.trim_start().starts_with('[') {
            return false;
        }
        if let Some((name, _)) = names(line).last() {
            // A line that begins with a name of its own is covered by that name.
            return kind_of(name.text) != Kind::Shown && names(text).next().is_none();
        }
    }
    lines_back >= LINES_BEFORE
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "00112233445566778899aabbccddeeff00112233";

    fn covered(line: &str) -> String {
        cover_line(line, 0, std::iter::empty(), &[])
    }

    #[test]
    fn key_values_are_covered() {
        assert_eq!(
            covered(r#"key = "secret words""#),
            r#"key = "****** *****""#
        );
        assert_eq!(covered("key = 12ab"), "key = ****");
        assert_eq!(covered("key = \"cGFzc3dvcmQ="), "key = \"************");
    }

    #[test]
    fn paths_and_names_of_keys_are_shown() {
        let line = r#"key = { file = "west.key" }"#;
        assert_eq!(covered(line), line);
    }

    #[test]
    fn long_values_of_unknown_names_are_covered() {
        assert_eq!(covered("mtuu = 1500"), "mtuu = 1500");
        assert!(!covered("kee = \"some long passphrase that is secret\"").contains("secret"));
        assert!(!covered(&format!("kee = {KEY}")).contains("0011"));
    }

    #[test]
    fn digits_are_covered_anywhere() {
        assert!(!covered(&format!("name = \"{KEY}\"")).contains("0011"));
        assert!(!cover_digits(&format!("x{KEY}")).contains("0011"));
    }

    #[test]
    fn device_arguments_are_shown() {
        let line =
            r#"device = "net_af_packet0,iface=lan0"     # a PCI address, or any DPDK device"#;
        assert_eq!(covered(line), line);
    }

    #[test]
    fn value_continued_from_key_is_covered() {
        let line = cover_line("00 11 22 33\"\"\"", 0, ["key = \"\"\""].into_iter(), &[]);
        assert_eq!(line, "** ** ** **\"\"\"");
        let line = cover_line("\"10.0.0.0/8\",", 0, ["addresses = ["].into_iter(), &[]);
        assert_eq!(line, "\"10.0.0.0/8\",");
    }
}
