//! What is wrong with a policy file, where, and what to write instead.
//!
//! Nothing here holds the file's text: an error carries the one line that it is about, and secrets in that line are
//! already covered (see [`super::mask`]). So whatever prints an error cannot print a key.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use super::mask;

/// Longest part of a line that is shown, in bytes.
const SHOWN_LINE_LEN: usize = 400;
/// How much of it may stand before the place that is wrong, in bytes.
const SHOWN_BEFORE: usize = 160;
/// So many errors are kept: a large file with a mistake in each line must not fill the memory.
const MAX_FAULTS: usize = 65_536;
/// Longest value that a message quotes, in characters.
const QUOTED_LEN: usize = 60;

/// A policy file: its path, which errors name and relative key paths start from, and its text.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl<'a> Source<'a> {
    /// The file at `path` with the content `text`. Nothing is read.
    pub fn new(path: &'a Path, text: &'a str) -> Self {
        Self { path, text }
    }

    /// The file's path.
    pub fn path(&self) -> &'a Path {
        self.path
    }

    /// The file's text.
    pub fn text(&self) -> &'a str {
        self.text
    }
}

/// One thing that is wrong in a policy file. `Display` gives one line, [`render`] the line of the file and help.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyError {
    file: Arc<str>,
    place: Excerpt,
    message: String,
    help: String,
    related: Option<Related>,
}

/// Another place that an error is about: "first declared here".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Related {
    place: Excerpt,
    label: String,
}

impl PolicyError {
    /// Where in the file, in bytes.
    pub fn span(&self) -> Range<usize> {
        self.place.span.clone()
    }

    /// The line, from 1.
    pub fn line(&self) -> usize {
        self.place.line
    }

    /// The column, from 1, in characters.
    pub fn column(&self) -> usize {
        self.place.column
    }

    /// What is wrong, in one sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The text that is wrong, up to the end of its line, with secrets covered.
    pub fn offending(&self) -> &str {
        self.place
            .text
            .get(self.place.within.clone())
            .unwrap_or_default()
    }

    /// What to write instead.
    pub fn help(&self) -> &str {
        &self.help
    }

    /// The other place that the error is about, if there is one.
    pub fn related(&self) -> Option<&Related> {
        self.related.as_ref()
    }
}

impl Related {
    /// Where in the file, in bytes.
    pub fn span(&self) -> Range<usize> {
        self.place.span.clone()
    }

    /// The line, from 1.
    pub fn line(&self) -> usize {
        self.place.line
    }

    /// What is there.
    pub fn label(&self) -> &str {
        &self.label
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}:{}: {}",
            self.file,
            self.line(),
            self.column(),
            self.message
        )
    }
}

impl std::error::Error for PolicyError {}

/// Shows `errors` as rustc would: the line, what is wrong in it underlined, and help; at the end their number.
pub fn render(errors: &[PolicyError], source: &Source<'_>, color: bool) -> String {
    let renderer = if color {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    let mut out = String::new();
    for error in errors {
        out.push_str(&renderer.render(&report(error)));
        out.push_str("\n\n");
    }
    let name = source.path.file_name().unwrap_or(source.path.as_os_str());
    let plural = if errors.len() == 1 { "" } else { "s" };
    let count = errors.len();
    out.push_str(&format!(
        "{count} error{plural} in {}; nothing was loaded\n",
        name.to_string_lossy()
    ));
    out
}

fn report(error: &PolicyError) -> Vec<Group<'_>> {
    let title = Level::ERROR.primary_title(error.message.as_str());
    let mut groups = vec![with_place(
        Group::with_title(title),
        &error.file,
        &error.place,
    )];
    if let Some(related) = &error.related {
        let title = Level::NOTE.secondary_title(related.label.as_str());
        groups.push(with_place(
            Group::with_title(title),
            &error.file,
            &related.place,
        ));
    }
    if !error.help.is_empty() {
        groups.push(Group::with_title(
            Level::HELP.secondary_title(error.help.as_str()),
        ));
    }
    groups
}

fn with_place<'a>(group: Group<'a>, file: &'a str, place: &'a Excerpt) -> Group<'a> {
    let annotation = AnnotationKind::Primary.span(place.within.clone());
    let snippet = Snippet::source(place.text.as_str()).line_start(place.line);
    let snippet = snippet.annotation(annotation);
    if place.cut {
        // The snippet would count columns from where the line was cut.
        let origin = Origin::path(file)
            .line(place.line)
            .char_column(place.column);
        group.element(origin).element(snippet)
    } else {
        group.element(snippet.path(file))
    }
}

/// A place in the file with the line it is in.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Excerpt {
    span: Range<usize>,
    line: usize,
    column: usize,
    /// The line, or a part of it around the place, with secrets covered.
    text: String,
    /// Whether `text` begins later than the line.
    cut: bool,
    /// The place in `text`; ends with the line where the span goes on.
    within: Range<usize>,
}

/// One finding before its place is looked up.
pub(super) struct Fault {
    span: Range<usize>,
    message: String,
    help: String,
    related: Option<(Range<usize>, String)>,
    missing: bool,
}

impl Fault {
    /// `message` about what stands at `span`.
    pub(super) fn new(span: &Range<usize>, message: impl Into<String>) -> Self {
        Self {
            span: span.clone(),
            message: message.into(),
            help: String::new(),
            related: None,
            missing: false,
        }
    }

    /// Something is missing from the table whose header is at `span`.
    pub(super) fn missing(span: &Range<usize>, message: impl Into<String>) -> Self {
        Self {
            missing: true,
            ..Self::new(span, message)
        }
    }

    /// What to write instead.
    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = help.into();
        self
    }

    /// Another place that matters.
    pub(super) fn related(mut self, span: &Range<usize>, label: impl Into<String>) -> Self {
        self.related = Some((span.clone(), label.into()));
        self
    }
}

/// Collects findings, so that all are reported at once.
pub(super) struct Faults<'a> {
    source: Source<'a>,
    syntax: Vec<Fault>,
    semantic: Vec<Fault>,
    secrets: Vec<Range<usize>>,
}

impl<'a> Faults<'a> {
    pub(super) fn new(source: Source<'a>) -> Self {
        Self {
            source,
            syntax: Vec::new(),
            semantic: Vec::new(),
            secrets: Vec::new(),
        }
    }

    /// Adds a finding.
    pub(super) fn add(&mut self, fault: Fault) {
        Self::keep(&mut self.semantic, fault);
    }

    /// Adds a finding of the TOML parser.
    pub(super) fn add_syntax(&mut self, fault: Fault) {
        Self::keep(&mut self.syntax, fault);
    }

    fn keep(faults: &mut Vec<Fault>, fault: Fault) {
        match faults.len() {
            0..MAX_FAULTS => faults.push(fault),
            MAX_FAULTS => {
                let message =
                    format!("more than {MAX_FAULTS} mistakes, of which the rest is not shown");
                faults.push(
                    Fault::new(&fault.span, message).help("correct those before this one first"),
                );
            }
            _ => {}
        }
    }

    /// Never shows what stands at `span`.
    pub(super) fn hide(&mut self, span: &Range<usize>) {
        self.secrets.push(span.clone());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.syntax.is_empty() && self.semantic.is_empty()
    }

    /// Every error, in the order of the file.
    ///
    /// After a syntax error the TOML parser goes on with what it could make of the line. What is said about that same
    /// line, or about keys missing from that same table, would only be an echo, and is left out.
    pub(super) fn finish(mut self) -> Vec<PolicyError> {
        let secrets = merged(self.secrets);
        let mut lines = Lines::new(self.source.text);
        let broken_lines: BTreeSet<_> = self
            .syntax
            .iter()
            .map(|f| lines.line(f.span.start))
            .collect();
        let broken_tables: BTreeSet<_> = self
            .syntax
            .iter()
            .map(|f| lines.table(f.span.start))
            .collect();
        self.semantic.retain(|fault| {
            let at = fault.span.start;
            let echo = broken_lines.contains(&lines.line(at))
                || (fault.missing && broken_tables.contains(&lines.table(at)));
            !echo
        });
        let mut faults = self.syntax;
        faults.append(&mut self.semantic);
        faults.sort_by_key(|fault| (fault.span.start, fault.span.end));
        faults.dedup_by(|a, b| a.span == b.span && a.message == b.message);
        let file: Arc<str> = self.source.path.to_string_lossy().into();
        faults
            .into_iter()
            .map(|fault| PolicyError {
                file: Arc::clone(&file),
                place: lines.excerpt(&fault.span, &secrets),
                message: fault.message,
                help: fault.help,
                related: fault.related.map(|(span, label)| Related {
                    place: lines.excerpt(&span, &secrets),
                    label,
                }),
            })
            .collect()
    }
}

/// The same bytes as disjoint spans in order.
fn merged(mut spans: Vec<Range<usize>>) -> Vec<Range<usize>> {
    spans.sort_by_key(|span| span.start);
    spans.dedup_by(|next, last| {
        let joins = next.start <= last.end;
        if joins {
            last.end = last.end.max(next.end);
        }
        joins
    });
    spans
}

/// `value` in quotes for a message: cut where it is long, control characters escaped, and no long run of
/// hexadecimal digits, for that might be a key.
pub(super) fn quoted(value: &str) -> String {
    let covered = mask::cover_digits(value);
    let mut out: String = covered
        .chars()
        .take(QUOTED_LEN)
        .flat_map(char::escape_debug)
        .collect();
    if covered.chars().nth(QUOTED_LEN).is_some() {
        out.push('…');
    }
    format!("\"{out}\"")
}

/// Byte offsets to lines and columns.
struct Lines<'a> {
    text: &'a str,
    /// Where each line starts.
    starts: Vec<usize>,
    /// Where each line starts that looks like a table's header.
    headers: Vec<usize>,
    /// Long lines with secrets covered, so that many errors in one line cost no more than the line and each error.
    long: HashMap<usize, Arc<str>>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        let newlines = text.bytes().enumerate().filter(|&(_, byte)| byte == b'\n');
        let starts: Vec<usize> = std::iter::once(0)
            .chain(newlines.map(|(at, _)| at + 1))
            .collect();
        let blank = |c: char| c == ' ' || c == '\t';
        let is_header = |at: usize| {
            text.get(at..)
                .is_some_and(|rest| rest.trim_start_matches(blank).starts_with('['))
        };
        let headers = starts.iter().copied().filter(|&at| is_header(at)).collect();
        Self {
            text,
            starts,
            headers,
            long: HashMap::new(),
        }
    }

    /// The index of the line that `offset` is in.
    fn line(&self, offset: usize) -> usize {
        self.starts
            .partition_point(|&start| start <= offset)
            .saturating_sub(1)
    }

    /// A number for the table whose header is the last one before `offset`.
    fn table(&self, offset: usize) -> usize {
        self.headers.partition_point(|&start| start <= offset)
    }

    fn start(&self, line: usize) -> usize {
        self.starts.get(line).copied().unwrap_or(self.text.len())
    }

    /// The line without its end.
    fn text(&self, line: usize) -> &'a str {
        let whole = self
            .text
            .get(self.start(line)..self.start(line + 1))
            .unwrap_or_default();
        whole
            .strip_suffix('\n')
            .unwrap_or(whole)
            .trim_end_matches('\r')
    }

    /// The line with secrets covered.
    fn covered(&mut self, line: usize, secrets: &[Range<usize>]) -> Arc<str> {
        if let Some(covered) = self.long.get(&line) {
            return Arc::clone(covered);
        }
        let before = (0..line)
            .rev()
            .take(mask::LINES_BEFORE)
            .map(|earlier| self.text(earlier));
        let covered: Arc<str> =
            mask::cover_line(self.text(line), self.start(line), before, secrets).into();
        if covered.len() > SHOWN_LINE_LEN {
            self.long.insert(line, Arc::clone(&covered));
        }
        covered
    }

    fn excerpt(&mut self, span: &Range<usize>, secrets: &[Range<usize>]) -> Excerpt {
        let line = self.line(span.start);
        let start = self.start(line);
        let text = self.text(line);
        let covered = self.covered(line, secrets);
        let from = floor_boundary(text, span.start - start);
        let to = floor_boundary(text, span.end.saturating_sub(start)).max(from);
        // A long line is cut around the place.
        let cut_start = match text.len() > SHOWN_LINE_LEN {
            true => floor_boundary(&covered, from.saturating_sub(SHOWN_BEFORE)),
            false => 0,
        };
        let cut_end = floor_boundary(&covered, cut_start + SHOWN_LINE_LEN).max(cut_start);
        let shown = covered.get(cut_start..cut_end).unwrap_or_default();
        Excerpt {
            span: span.clone(),
            line: line + 1,
            cut: cut_start > 0,
            column: text.get(..from).unwrap_or_default().chars().count() + 1,
            within: from.saturating_sub(cut_start).min(shown.len())
                ..to.saturating_sub(cut_start).min(shown.len()),
            text: shown.to_owned(),
        }
    }
}

/// The last boundary between characters at or before `at`.
fn floor_boundary(text: &str, at: usize) -> usize {
    text.floor_char_boundary(at)
}
