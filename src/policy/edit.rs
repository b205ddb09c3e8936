//! Changes a policy's text by what is named in it: what is not named stays as it was written, comments and blanks included.
#![forbid(unsafe_code)]

use super::blocks;
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
        match self {
            // What is added goes behind the text, which need not be read for it.
            Self::Add(tables) => add(text, tables),
            Self::Remove(names) => {
                let edited = match remove_in_place(text, names) {
                    Some(edited) => edited,
                    None => edit(text, |document| remove_all(document, names))?.0,
                };
                Ok((edited, names.clone()))
            }
            Self::Replace(tables) => match replace_in_place(text, tables) {
                Some(edited) => Ok(edited),
                None => edit(text, |document| replace(document, tables)),
            },
        }
    }
}

/// Reads all of a text, changes it, and writes it.
fn edit<T>(
    text: &str,
    change: impl FnOnce(&mut DocumentMut) -> Result<T, EditError>,
) -> Result<(String, T), EditError> {
    let mut document: DocumentMut = text
        .parse()
        .map_err(|error: toml_edit::TomlError| EditError::Unreadable(error.to_string()))?;
    let told = change(&mut document)?;
    Ok((document.to_string(), told))
}

/// As [`remove_all`], reading no more than what is removed; `None` where that cannot be done.
fn remove_in_place(text: &str, names: &[String]) -> Option<String> {
    let mut text = text.to_owned();
    for name in names {
        let (kind, place) = blocks::find(&text, &KINDS, name)?;
        only_table(text.get(place.clone())?, kind, name)?;
        text.replace_range(place, "");
    }
    Some(text)
}

/// As [`replace`], likewise.
fn replace_in_place(text: &str, tables: &str) -> Option<(String, Vec<String>)> {
    let mut text = text.to_owned();
    let mut names = Vec::new();
    for (kind, tables) in tables_of(tables, &KINDS, "replaced").ok()? {
        for table in tables {
            let name = name(&table)?.to_owned();
            let (found, place) = blocks::find(&text, &KINDS, &name)?;
            let mut document = only_table(text.get(place.clone())?, found, &name)?;
            put(&mut document, &kind, &name, table).ok()?;
            text.replace_range(place, &document.to_string());
            names.push(name);
        }
    }
    Some((text, names))
}

/// Reads a text that has the table of this kind and name, and nothing else.
fn only_table(text: &str, kind: &str, wanted: &str) -> Option<DocumentMut> {
    let mut document: DocumentMut = text.parse().ok()?;
    let is_alone = document.len() == 1;
    let tables = array(&mut document, kind)?;
    (is_alone && tables.len() == 1 && place_of(tables, wanted) == Some(0)).then_some(document)
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

fn remove_all(document: &mut DocumentMut, names: &[String]) -> Result<(), EditError> {
    names.iter().try_for_each(|name| remove(document, name))
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
    use proptest::prelude::*;

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

    /// As by reading all of the text.
    fn slowly(edit: &Edit, text: &str) -> Result<String, EditError> {
        match edit {
            Edit::Add(tables) => add(text, tables).map(|(text, _)| text),
            Edit::Remove(names) => {
                super::edit(text, |document| remove_all(document, names)).map(|(text, ())| text)
            }
            Edit::Replace(tables) => {
                super::edit(text, |document| replace(document, tables)).map(|(text, _)| text)
            }
        }
    }

    /// Texts as people write them, some of which lines do not tell.
    fn any_text() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "[[tunnel]]\nname = \"a\"\nx = 1\n",
            "[[tunnel]] # of b\n# Its name.\n  name = 'b'\n[[tunnel.ends]]\nname = \"p\"\n[tunnel.ends.in]\nz = 3 # three\n",
            "[[policy]]\naction = \"x\"\nname=\"p\"\nlist = [\n  1,\n  # one\n  2,\n]\n",
            "[[policy]]\nname = \"q\"\nlist = [\n[\"name = \"],\n]\n",
            "[[ bypass ]]\nname = \"c\"",
            "[[discard]]\nname = \"d\"\nlong = \"\"\"\n[[policy]]\nname = \"q\"\n\"\"\"\n",
            "[gateway]\nname = \"a\"\n",
            "[\"port\"]\nname = \"a\"\n",
            "[tunnel.more]\nw = 4\n",
            "# A comment.\n\n",
            "\n",
        ]);
        prop::collection::vec(piece, 0..9).prop_map(|pieces| pieces.join("\n"))
    }

    fn any_edit() -> impl Strategy<Value = Edit> {
        let name = prop::sample::select(vec!["a", "b", "c", "d", "p", "q", "x"]);
        let names = prop::collection::vec(name.clone(), 1..3);
        let table = |(kind, name): (&str, &str)| {
            format!(
                "\n# New.\n[[{kind}]] # it\nname = \"{name}\"\nnew = 1\n\n[{kind}.in]\nside = 2 # two\n# end\n"
            )
        };
        let kind = prop::sample::select(KINDS.to_vec());
        let tables = prop::collection::vec((kind, name).prop_map(table), 1..3);
        prop_oneof![
            names.prop_map(|names| Edit::Remove(names.into_iter().map(str::to_owned).collect())),
            tables.prop_map(|tables| Edit::Replace(tables.concat())),
        ]
    }

    proptest! {
        #[test]
        fn edit_in_place_is_what_reading_all_comes_to(text in any_text(), edit in any_edit()) {
            // What was in force was good TOML.
            prop_assume!(text.parse::<DocumentMut>().is_ok());
            let fast = edit.apply(&text).map(|(text, _)| text);
            prop_assert_eq!(fast, slowly(&edit, &text));
        }
    }

    #[test]
    fn tables_of_plain_texts_are_found_in_place() {
        assert!(remove_in_place(TEXT, &["a".into(), "p".into()]).is_some());
        let new = "[[tunnel]]\nname = \"b\"\n";
        assert!(replace_in_place(TEXT, new).is_some());
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
