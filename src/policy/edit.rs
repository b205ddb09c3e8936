//! Changes a policy's text by what is named in it: what is not named stays as it was written, comments and blanks included.
#![forbid(unsafe_code)]

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table};

/// Kinds of tables that can be added, removed and replaced by name.
const KINDS: [&str; 4] = ["tunnel", "policy", "bypass", "discard"];
/// Kinds that have no name, and can be added alone.
const NAMELESS: [&str; 2] = ["neighbour", "route"];

/// A change of a policy's text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Edit {
    /// The tables of this text are added at the end.
    Add(String),
    /// The tables with these names are removed.
    Remove(Vec<String>),
    /// The tables of this text take the places of those with the same names.
    Replace(String),
}

/// Why a text cannot be changed so.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EditError {
    /// What is to be added or to replace is no TOML.
    #[error("what was given is not TOML: {0}")]
    NotToml(String),
    /// The policy in force was not written by simplon's rules, which cannot be.
    #[error("the policy in force cannot be read again: {0}")]
    Unreadable(String),
    /// What was given has something else in it.
    #[error(
        "`{key}` cannot be {done} by itself: give [[tunnel]], [[policy]], [[bypass]] and [[discard]] tables, or load a whole file"
    )]
    NotATable {
        /// The key.
        key: String,
        /// What was to be done.
        done: &'static str,
    },
    /// There is nothing in it.
    #[error(
        "nothing was given: write [[tunnel]], [[policy]], [[bypass]] or [[discard]] tables into it"
    )]
    Empty,
    /// A table has no name.
    #[error("a [[{kind}]] has no name, by which the one to replace would be found")]
    NoName {
        /// Its kind.
        kind: String,
    },
    /// Nobody has that name.
    #[error(
        "no tunnel or policy is called \"{name}\"; `simplon show policies` lists those that there are"
    )]
    NoSuchName {
        /// The name.
        name: String,
    },
    /// There is one of that name, of another kind.
    #[error(
        "\"{name}\" is a [[{found}]] and not a [[{kind}]]: remove it and add the other under this name"
    )]
    OtherKind {
        /// The name.
        name: String,
        /// What it is.
        found: String,
        /// What was given.
        kind: String,
    },
}

impl Edit {
    /// The text of a policy after this change of `text`, and the names that it is about.
    ///
    /// # Errors
    /// [`EditError`]. That the text is a good policy is yet to be found out.
    pub fn apply(&self, text: &str) -> Result<(String, Vec<String>), EditError> {
        // What is added goes behind the text, which need not be read for it.
        if let Self::Add(tables) = self {
            return add(text, tables);
        }
        let mut document: DocumentMut = text
            .parse()
            .map_err(|error: toml_edit::TomlError| EditError::Unreadable(error.to_string()))?;
        let names = match self {
            Self::Add(_) => Vec::new(),
            Self::Remove(names) => {
                for name in names {
                    remove(&mut document, name)?;
                }
                names.clone()
            }
            Self::Replace(tables) => replace(&mut document, tables)?,
        };
        Ok((document.to_string(), names))
    }
}

fn add(text: &str, tables: &str) -> Result<(String, Vec<String>), EditError> {
    let mut names = Vec::new();
    for (kind, tables) in tables_of(tables, &[&KINDS[..], &NAMELESS[..]].concat(), "added")? {
        let of_kind = tables.iter().filter_map(name);
        names.extend(of_kind.map(str::to_owned));
        if NAMELESS.contains(&kind.as_str()) {
            names.push(kind);
        }
    }
    // As it was given, comments included.
    let blank = if text.ends_with('\n') { "\n" } else { "\n\n" };
    Ok((format!("{text}{blank}{tables}"), names))
}

fn remove(document: &mut DocumentMut, wanted: &str) -> Result<(), EditError> {
    for kind in KINDS {
        let Some(tables) = array(document, kind) else {
            continue;
        };
        let Some(at) = place_of(tables, wanted) else {
            continue;
        };
        tables.remove(at);
        if tables.is_empty() {
            document.remove(kind);
        }
        return Ok(());
    }
    let name = wanted.to_owned();
    Err(EditError::NoSuchName { name })
}

fn replace(document: &mut DocumentMut, tables: &str) -> Result<Vec<String>, EditError> {
    let mut names = Vec::new();
    for (kind, tables) in tables_of(tables, &KINDS, "replaced")? {
        for table in tables {
            let Some(name) = name(&table).map(str::to_owned) else {
                return Err(EditError::NoName { kind });
            };
            put(document, &kind, &name, table)?;
            names.push(name);
        }
    }
    Ok(names)
}

/// Puts `table` in the place of the one with its name.
fn put(
    document: &mut DocumentMut,
    kind: &str,
    wanted: &str,
    table: Table,
) -> Result<(), EditError> {
    if let Some(tables) = array(document, kind)
        && let Some(at) = place_of(tables, wanted)
        && let Some(place) = tables.get_mut(at)
    {
        let (position, decor) = (place.position(), place.decor().clone());
        *place = table;
        place.set_position(position);
        set_positions(place, position);
        *place.decor_mut() = decor;
        return Ok(());
    }
    for found in KINDS {
        if array(document, found).is_some_and(|tables| place_of(tables, wanted).is_some()) {
            return Err(EditError::OtherKind {
                name: wanted.to_owned(),
                found: found.to_owned(),
                kind: kind.to_owned(),
            });
        }
    }
    let name = wanted.to_owned();
    Err(EditError::NoSuchName { name })
}

/// Has tables within `table` written where it is.
fn set_positions(table: &mut Table, position: Option<isize>) {
    for (_, item) in table.iter_mut() {
        match item {
            Item::Table(inner) => {
                inner.set_position(position);
                set_positions(inner, position);
            }
            Item::ArrayOfTables(inner) => {
                for inner in inner.iter_mut() {
                    inner.set_position(position);
                    set_positions(inner, position);
                }
            }
            _ => {}
        }
    }
}

fn array<'d>(document: &'d mut DocumentMut, kind: &str) -> Option<&'d mut ArrayOfTables> {
    document.get_mut(kind)?.as_array_of_tables_mut()
}

fn place_of(tables: &ArrayOfTables, wanted: &str) -> Option<usize> {
    tables.iter().position(|table| name(table) == Some(wanted))
}

fn name(table: &Table) -> Option<&str> {
    table.get("name")?.as_str()
}

/// The tables of a text that has nothing but tables of these kinds.
fn tables_of(
    text: &str,
    kinds: &[&str],
    done: &'static str,
) -> Result<Vec<(String, Vec<Table>)>, EditError> {
    let document: DocumentMut = text
        .parse()
        .map_err(|error: toml_edit::TomlError| EditError::NotToml(error.to_string()))?;
    let mut found = Vec::new();
    for (key, item) in document.iter() {
        match item.as_array_of_tables() {
            Some(tables) if kinds.contains(&key) => {
                found.push((key.to_owned(), tables.iter().cloned().collect()));
            }
            _ => {
                let key = key.to_owned();
                return Err(EditError::NotATable { key, done });
            }
        }
    }
    if found.is_empty() {
        return Err(EditError::Empty);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Ours.\n[gateway]\nname = \"west\"\n\n[[tunnel]]\nname = \"a\" # the first\nx = 1\n\n[tunnel.inner]\ny = 2\n\n\
                        # Second.\n[[tunnel]]\nname = \"b\"\n\n[[tunnel.ends]]\nz = 3\n\n[[policy]]\nname = \"p\"\n";

    #[test]
    fn what_is_not_named_stays_as_it_was_written() {
        let (text, names) = Edit::Remove(vec!["b".into(), "p".into()])
            .apply(TEXT)
            .expect("there");
        assert_eq!(names, ["b", "p"]);
        assert!(TEXT.starts_with(&text), "{text}");
        assert!(
            text.contains("# the first") && text.contains("y = 2"),
            "{text}"
        );
        assert!(!text.contains("z = 3"), "{text}");
        let (text, _) = Edit::Remove(vec!["a".into()]).apply(TEXT).expect("there");
        assert!(!text.contains("y = 2") && text.contains("# Second.\n[[tunnel]]\nname = \"b\""));
        let added = "# Mine.\n[[tunnel]]\nname = \"c\"\n";
        let (text, names) = Edit::Add(added.into()).apply(TEXT).expect("good");
        assert_eq!(names, ["c"]);
        assert_eq!(text, format!("{TEXT}\n{added}"));
    }

    #[test]
    fn what_replaces_stands_where_the_other_stood() {
        let new = "[[tunnel]]\nname = \"a\"\nx = 9\n\n[[tunnel.ends]]\nlocal = 1\n\n[tunnel.ends.outbound]\nspi = 5\n";
        let (text, names) = Edit::Replace(new.into()).apply(TEXT).expect("there");
        assert_eq!(names, ["a"]);
        let place = |what: &str| {
            text.find(what)
                .unwrap_or_else(|| panic!("{what} in {text}"))
        };
        assert!(place("x = 9") < place("local = 1"));
        assert!(place("local = 1") < place("spi = 5"));
        assert!(place("spi = 5") < place("name = \"b\""));
        assert!(place("name = \"b\"") < place("z = 3"));
        assert!(!text.contains("y = 2"), "{text}");
        // It means what was given.
        let read: DocumentMut = text.parse().expect("TOML");
        assert_eq!(
            read["tunnel"][0]["ends"][0]["outbound"]["spi"].as_integer(),
            Some(5)
        );
        assert_eq!(read["tunnel"][1]["ends"][0]["z"].as_integer(), Some(3));
    }

    #[test]
    fn what_cannot_be_done_is_told() {
        let told = |edit: Edit| edit.apply(TEXT).expect_err("wrong").to_string();
        assert!(told(Edit::Remove(vec!["x".into()])).contains("is called \"x\""));
        assert!(told(Edit::Add("[gateway]\nname = \"east\"".into())).contains("`gateway`"));
        assert!(told(Edit::Add("# nothing\n".into())).contains("nothing was given"));
        assert!(told(Edit::Add("[[tunnel".into())).contains("not TOML"));
        let named =
            |name: &str, kind: &str| Edit::Replace(format!("[[{kind}]]\nname = \"{name}\""));
        assert!(told(named("p", "tunnel")).contains("is a [[policy]]"));
        assert!(told(named("q", "tunnel")).contains("is called \"q\""));
        assert!(told(Edit::Replace("[[tunnel]]\nx = 1".into())).contains("has no name"));
        assert!(told(Edit::Replace("[[route]]\nto = \"x\"".into())).contains("`route`"));
    }
}
