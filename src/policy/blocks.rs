//! Finds a table in a policy's text without reading all of it as TOML, which takes seconds where there are tunnels by the ten
//! thousand.
//!
//! What it finds is for the reader of TOML to check, and where a text is written in a way that lines do not tell, it finds nothing.
#![forbid(unsafe_code)]

use std::ops::Range;

/// Where the table of an array of tables stands that has this name, and of what kind it is: from the comments and blanks before its
/// header to the end of its last line. `None` where that cannot be told.
pub(super) fn find<'k>(
    text: &str,
    kinds: &[&'k str],
    wanted: &str,
) -> Option<(&'k str, Range<usize>)> {
    // Lines within such a string look like others, and a last line without an end is given one by who writes the text.
    if !text.ends_with('\n') || text.contains("\"\"\"") || text.contains("'''") {
        return None;
    }
    // Of the table that the line is in: its kind, if it may have the name, and where it begins.
    let (mut kind, mut start) = (None, 0);
    let mut is_inside = false;
    let (mut found, mut whole) = (None, None);
    // Behind the last line that is neither blank nor a comment.
    let (mut at, mut end) = (0, 0);
    for line in text.split_inclusive('\n') {
        at += line.len();
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = header(line) {
            let (is_array, name) = header?;
            match name.split_once('.') {
                // A table within one that is not the last one.
                Some((outer, _)) if kinds.contains(&outer) && kind != Some(outer) => return None,
                Some(_) => is_inside = true,
                None => {
                    // All is looked at, for what belongs to it may stand behind others.
                    whole = whole.or_else(|| found.map(|(kind, start)| (kind, start..end)));
                    let known = kinds.iter().find(|known| is_array && **known == name);
                    (kind, start, is_inside) = (known.copied(), end, false);
                }
            }
        } else if !is_inside
            && let Some(kind) = kind
            && is_name(line, wanted)
        {
            found = found.or(Some((kind, start)));
        }
        end = at;
    }
    whole.or_else(|| found.map(|(kind, start)| (kind, start..end)))
}

/// Of a header, whether it is one of an array's table, and its name; `Some(None)` where that is not told by the line.
fn header(line: &str) -> Option<Option<(bool, &str)>> {
    let inner = line.strip_prefix('[')?;
    let (is_array, inner) = match inner.strip_prefix('[') {
        Some(inner) => (true, inner),
        None => (false, inner),
    };
    let (name, rest) = inner.split_once(']').unwrap_or((inner, ""));
    let rest = match is_array {
        true => rest.strip_prefix(']'),
        false => Some(rest),
    };
    let name = name.trim();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_end = |rest: &str| rest.trim_start().is_empty() || rest.trim_start().starts_with('#');
    let is_told = !name.is_empty() && name.bytes().all(is_plain) && rest.is_some_and(is_end);
    Some(is_told.then_some((is_array, name)))
}

/// Whether a line says that a table has this name.
fn is_name(line: &str, wanted: &str) -> bool {
    let value = line.strip_prefix("name").map(str::trim_start);
    let value = value.and_then(|value| value.strip_prefix('='));
    let Some(value) = value.map(str::trim_start) else {
        return false;
    };
    ['"', '\''].iter().any(|quote| {
        let value = value.strip_prefix(*quote);
        let value = value.and_then(|value| value.strip_prefix(wanted));
        value.is_some_and(|rest| rest.starts_with(*quote))
    })
}
