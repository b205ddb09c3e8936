//! From TOML text to typed values that know where they stand.
//!
//! Serde stops at the first thing it does not like. This reader works on the parser's tree instead, so that every
//! mistake is found in one go: a getter that fails says why to [`Faults`] and gives `None`, and its caller goes on.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Fault, Faults, quoted};

/// Bytes of the file.
pub(super) type Span = Range<usize>;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) span: Span,
}

/// A key that a table may have.
pub(super) struct Key {
    pub(super) name: &'static str,
    /// A right way to write it, for whoever got it wrong.
    pub(super) example: &'static str,
}

impl Key {
    pub(super) const fn new(name: &'static str, example: &'static str) -> Self {
        Self { name, example }
    }
}

/// Parses `text`. What the TOML parser has to say goes to `faults`; the tree is what it could read.
pub(super) fn parse_toml<'a>(text: &'a str, faults: &mut Faults<'_>) -> Spanned<DeTable<'a>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        let span = span.start.min(text.len())..span.end.min(text.len());
        faults.add_syntax(syntax_fault(error.message(), &span, text));
    }
    root
}

fn syntax_fault(message: &str, span: &Span, text: &str) -> Fault {
    if message == "duplicate key" {
        let name = text.get(span.clone()).unwrap_or_default();
        return Fault::new(span, format!("{} is given twice", quoted(name)))
            .help("keep one of the two");
    }
    let (what, expected) = message.split_once(", expected ").unwrap_or((message, ""));
    let (what, help) = match (what, expected) {
        ("string values must be quoted", _) if span.is_empty() => {
            ("the value is missing", "write a value here".to_owned())
        }
        ("string values must be quoted", _) => (what, "write text in double quotes".to_owned()),
        (_, "") => (
            what,
            "write it as TOML has it, https://toml.io/en/v1.0.0".to_owned(),
        ),
        (_, expected) => (what, format!("write {expected} here")),
    };
    Fault::new(span, format!("syntax: {what}")).help(help)
}

/// A table of the file.
#[derive(Clone)]
pub(super) struct Table<'a> {
    /// As the operator writes it: `[gateway]`, `[[port]]`.
    pub(super) title: &'static str,
    /// Its header.
    pub(super) span: Span,
    entries: &'a DeTable<'a>,
}

impl<'a> Table<'a> {
    pub(super) fn new(title: &'static str, span: Span, entries: &'a DeTable<'a>) -> Self {
        Self {
            title,
            span,
            entries,
        }
    }

    /// Complains about every key that is not in `known`, and hides its value, for it might be a mistyped `key`.
    /// `elsewhere` has help for keys that belong in another table.
    pub(super) fn refuse_unknown(
        &self,
        known: &[&Key],
        elsewhere: &[(&str, &str)],
        faults: &mut Faults<'_>,
    ) {
        for (name, value) in self.entries {
            if known.iter().any(|key| key.name == name.get_ref()) {
                continue;
            }
            if value.span().len() >= super::mask::SHORT_VALUE_LEN {
                faults.hide(&value.span());
            }
            let help = match elsewhere.iter().find(|(key, _)| key == name.get_ref()) {
                Some((_, help)) => (*help).to_owned(),
                None => match closest(name.get_ref(), known.iter().map(|key| key.name)) {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!(
                        "keys of {} are {}",
                        self.title,
                        known
                            .iter()
                            .map(|key| key.name)
                            .collect::<Vec<_>>()
                            .join(", ")
                    ),
                },
            };
            let message = format!("{} has no key {}", self.title, quoted(name.get_ref()));
            faults.add(Fault::new(&name.span(), message).help(help));
        }
    }

    /// The value of `key`, if it is there.
    pub(super) fn find(&self, key: &'static Key) -> Option<Value<'a>> {
        self.entries.get(key.name).map(|value| Value {
            key,
            span: value.span(),
            value: value.get_ref(),
        })
    }

    /// The value of `key`, which must be there.
    pub(super) fn need(&self, key: &'static Key, faults: &mut Faults<'_>) -> Option<Value<'a>> {
        let found = self.find(key);
        if found.is_none() {
            let message = format!("{} lacks {}", self.title, key.name);
            faults.add(Fault::missing(&self.span, message).help(format!("add {}", key.example)));
        }
        found
    }

    /// Every key and value, for tables with rules of their own.
    pub(super) fn entries(&self) -> impl Iterator<Item = (At<&'a str>, Value<'a>)> + use<'a> {
        const ANY: Key = Key::new("", "");
        self.entries.iter().map(|(name, value)| {
            let name = At {
                value: &**name.get_ref(),
                span: name.span(),
            };
            (
                name,
                Value {
                    key: &ANY,
                    span: value.span(),
                    value: value.get_ref(),
                },
            )
        })
    }
}

/// A value of the file and the key it belongs to.
#[derive(Clone)]
pub(super) struct Value<'a> {
    key: &'static Key,
    pub(super) span: Span,
    value: &'a DeValue<'a>,
}

impl<'a> Value<'a> {
    fn wrong_type(&self, wanted: &str, faults: &mut Faults<'_>) {
        let message = format!("{} takes {wanted}, not {}", self.key.name, kind(self.value));
        faults.add(Fault::new(&self.span, message).help(format!("write {}", self.key.example)));
    }

    fn at<T>(&self, value: T) -> At<T> {
        At {
            value,
            span: self.span.clone(),
        }
    }

    /// The string, if it is one; no complaint if not.
    pub(super) fn as_text(&self) -> Option<At<&'a str>> {
        self.value.as_str().map(|text| self.at(text))
    }

    /// The table, if it is one; no complaint if not.
    pub(super) fn as_table(&self, title: &'static str) -> Option<Table<'a>> {
        self.value
            .as_table()
            .map(|entries| Table::new(title, self.span.clone(), entries))
    }

    pub(super) fn text(&self, faults: &mut Faults<'_>) -> Option<At<&'a str>> {
        let text = self.as_text();
        if text.is_none() {
            self.wrong_type("text", faults);
        }
        text
    }

    pub(super) fn boolean(&self, faults: &mut Faults<'_>) -> Option<At<bool>> {
        let boolean = self.value.as_bool().map(|value| self.at(value));
        if boolean.is_none() {
            self.wrong_type("true or false", faults);
        }
        boolean
    }

    /// A number of any size, decimal or with `0x`, `0o` or `0b`.
    pub(super) fn integer(&self, faults: &mut Faults<'_>) -> Option<At<i128>> {
        let Some(integer) = self.value.as_integer() else {
            self.wrong_type("a number", faults);
            return None;
        };
        // The parser does not look at the digits.
        let number = i128::from_str_radix(integer.as_str(), integer.radix());
        if number.is_err() {
            let message = format!(
                "{} is no number, or too large a one",
                quoted(&integer.to_string())
            );
            faults.add(Fault::new(&self.span, message).help(format!("write {}", self.key.example)));
        }
        number.ok().map(|number| self.at(number))
    }

    /// A number in `range`.
    pub(super) fn number<T>(
        &self,
        range: RangeInclusive<T>,
        faults: &mut Faults<'_>,
    ) -> Option<At<T>>
    where
        T: TryFrom<i128> + PartialOrd + Display,
    {
        let integer = self.integer(faults)?;
        let number = T::try_from(integer.value)
            .ok()
            .filter(|number| range.contains(number));
        if number.is_none() {
            let (min, max) = (range.start(), range.end());
            let message = format!(
                "{} is {}, which is not from {min} to {max}",
                self.key.name, integer.value
            );
            faults.add(Fault::new(&self.span, message).help(format!(
                "write a number from {min} to {max}: {}",
                self.key.example
            )));
        }
        number.map(|number| self.at(number))
    }

    /// The elements of an array, if it is one; no complaint if not.
    pub(super) fn as_list(&self) -> Option<Vec<Self>> {
        let element = |value: &'a Spanned<DeValue<'a>>| Self {
            key: self.key,
            span: value.span(),
            value: value.get_ref(),
        };
        let array = self.value.as_array()?;
        Some(array.iter().map(element).collect())
    }

    /// The elements of an array.
    pub(super) fn list(&self, faults: &mut Faults<'_>) -> Option<Vec<Self>> {
        let list = self.as_list();
        if list.is_none() {
            self.wrong_type("a list", faults);
        }
        list
    }

    /// A table, written `[title]` or inline.
    pub(super) fn table(&self, title: &'static str, faults: &mut Faults<'_>) -> Option<Table<'a>> {
        let table = self.as_table(title);
        if table.is_none() {
            self.wrong_type("a table", faults);
        }
        table
    }

    /// Tables, each written `[[title]]`.
    pub(super) fn tables(&self, title: &'static str, faults: &mut Faults<'_>) -> Vec<Table<'a>> {
        if let Some(table) = self.value.as_table() {
            let message = format!(
                "{} may be there more than once, so its header takes two brackets",
                self.key.name
            );
            faults.add(Fault::new(&self.span, message).help(format!("write {title}")));
            // Read on, as if it had been written so.
            return vec![Table::new(title, self.span.clone(), table)];
        }
        let elements = self.list(faults).unwrap_or_default();
        elements
            .iter()
            .filter_map(|element| element.table(title, faults))
            .collect()
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// The name among `names` that `given` was most likely meant to be, if any is near.
pub(super) fn closest<'n>(
    given: &str,
    names: impl IntoIterator<Item = &'n str>,
) -> Option<&'n str> {
    let given = given.to_ascii_lowercase();
    if given.len() > 64 {
        return None;
    }
    let distance = |name: &str| strsim::damerau_levenshtein(&given, &name.to_ascii_lowercase());
    let nearest = names
        .into_iter()
        .map(|name| (distance(name), name))
        .min_by_key(|(far, _)| *far);
    // A third of the letters may be wrong.
    nearest
        .filter(|(far, name)| *far <= name.len().max(3) / 3)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::closest;

    #[test]
    fn closest_finds_typing_mistakes_only() {
        let names = ["mtu", "queues", "addresses"];
        assert_eq!(closest("mtuu", names), Some("mtu"));
        assert_eq!(closest("adresses", names), Some("addresses"));
        assert_eq!(closest("MTU", names), Some("mtu"));
        assert_eq!(closest("colour", names), None);
    }
}
