//! One client of the control socket: what came from it, what is for it, and a turn at a time.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::UnixStream;
use serde_json::Value;

use crate::control::events::Kind;
use crate::control::protocol::{ApiError, Call, Exchange, INVALID_REQUEST, error_line};

/// Longest request line, in bytes.
pub(super) const MAX_REQUEST: usize = 256 << 10;
/// Most bytes of events that a subscriber may leave unread, beside what its socket holds.
pub(super) const MAX_BACKLOG: usize = 256 << 10;
/// Bytes read in one turn.
const READ_CHUNK: usize = 16 << 10;
/// Bytes written in one turn.
const WRITE_CHUNK: usize = 256 << 10;
/// Capacity that a buffer keeps when it is empty.
const KEPT: usize = 16 << 10;
/// How long a client may take nothing at all of an answer.
const DEAF_AFTER: Duration = Duration::from_secs(30);

pub(super) struct Client {
    stream: UnixStream,
    incoming: Vec<u8>,
    /// Bytes of `incoming` that hold no line end.
    scanned: usize,
    outgoing: Vec<u8>,
    /// Bytes of `outgoing` that are gone.
    written: usize,
    /// Bytes of events put into `outgoing` since it was last empty.
    told: usize,
    /// When it last took something, or was first given something.
    took: Instant,
    /// The line in work.
    exchange: Option<Exchange>,
    subscribed: Vec<Kind>,
    /// There may be more to read. Readiness is told once.
    is_readable: bool,
    /// It will send no more.
    at_end: bool,
    /// It will not read any more either.
    is_gone: bool,
    /// It waits for its turn.
    pub(super) is_queued: bool,
}

impl Client {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            incoming: Vec::new(),
            scanned: 0,
            outgoing: Vec::new(),
            written: 0,
            told: 0,
            took: Instant::now(),
            exchange: None,
            subscribed: Vec::new(),
            is_readable: false,
            at_end: false,
            is_gone: false,
            is_queued: false,
        }
    }

    /// Notes what the system says of it.
    pub(super) fn note(&mut self, event: &Event) {
        self.is_readable |= event.is_readable() || event.is_read_closed();
        self.is_gone |= event.is_write_closed();
    }

    /// Bytes that it has not taken.
    pub(super) fn unread(&self) -> usize {
        self.outgoing.len() - self.written
    }

    /// Bytes that are kept for it: those, and the answers to a batch that is in work.
    pub(super) fn held(&self) -> usize {
        self.unread() + self.exchange.as_ref().map_or(0, Exchange::held)
    }

    /// Whether it takes nothing of what is for it. A subscriber may take its time with events, which are bounded.
    pub(super) fn is_deaf(&self) -> bool {
        let patience = if self.subscribed.is_empty() {
            0
        } else {
            MAX_BACKLOG
        };
        self.unread() > patience && self.took.elapsed() >= DEAF_AFTER
    }

    /// Whether it subscribed to events of this kind; all subscribers want what has none.
    pub(super) fn wants(&self, kind: Option<Kind>) -> bool {
        match kind {
            Some(kind) => self.subscribed.contains(&kind),
            None => !self.subscribed.is_empty(),
        }
    }

    /// Gives it an event, to be written in its turn. Returns false where it has left too many unread.
    pub(super) fn tell(&mut self, line: &str) -> bool {
        // A long answer that it is just reading is no sign that it does not read.
        if self.told.min(self.unread()) + line.len() > MAX_BACKLOG {
            return false;
        }
        self.told += line.len();
        self.give(line);
        true
    }

    /// Writes what is left, else answers one request, or reads what may be one. Returns whether there is more to do now.
    /// Nothing is read while something is unread: who does not take answers gets no others.
    ///
    /// # Errors
    /// Where the client is to be closed.
    pub(super) fn turn(
        &mut self,
        answer: &mut impl FnMut(Call) -> Result<Value, ApiError>,
    ) -> io::Result<bool> {
        if self.unread() > 0 {
            return self.write();
        }
        if self.exchange.is_none() {
            self.read()?;
            self.exchange = self.next_line().map(|line| Exchange::new(&line));
        }
        let Some(exchange) = &mut self.exchange else {
            return self.rest();
        };
        if !exchange.step(answer)
            && let Some(exchange) = self.exchange.take()
        {
            let (line, subscribed) = exchange.finish();
            if let Some(line) = line {
                self.give(&line);
            }
            if let Some(kinds) = subscribed {
                self.subscribed = kinds;
            }
            return self.write();
        }
        Ok(true)
    }

    /// There is no whole line.
    fn rest(&mut self) -> io::Result<bool> {
        if self.incoming.len() > MAX_REQUEST {
            let message = format!("a line of more than {MAX_REQUEST} bytes");
            self.give(&error_line(ApiError::new(INVALID_REQUEST, message)));
            self.write()?;
            return Err(io::ErrorKind::InvalidData.into());
        }
        // Who subscribed may have closed its side, and listen still.
        let is_done = self.at_end && (self.subscribed.is_empty() || self.is_gone);
        if is_done {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(self.is_readable)
    }

    /// Reads a chunk, where there is no whole line yet.
    fn read(&mut self) -> io::Result<()> {
        if !self.is_readable || self.line_end().is_some() {
            return Ok(());
        }
        let mut chunk = [0; READ_CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(0) => (self.is_readable, self.at_end) = (false, true),
            Ok(count) => self.incoming.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.is_readable = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Where the first line ends.
    fn line_end(&mut self) -> Option<usize> {
        let rest = self.incoming.get(self.scanned..).unwrap_or_default();
        match rest.iter().position(|byte| *byte == b'\n') {
            Some(at) => Some(self.scanned + at + 1),
            None => {
                self.scanned = self.incoming.len();
                None
            }
        }
    }

    /// Takes out the first line; the last one may end with what was sent.
    fn next_line(&mut self) -> Option<Vec<u8>> {
        let last = (self.at_end && !self.incoming.is_empty()).then_some(self.incoming.len());
        let end = self
            .line_end()
            .or(last)
            .filter(|end| *end <= MAX_REQUEST + 1)?;
        self.scanned = 0;
        let line = self.incoming.drain(..end).collect();
        if self.incoming.is_empty() {
            self.incoming.shrink_to(KEPT);
        }
        Some(line)
    }

    fn give(&mut self, line: &str) {
        if self.unread() == 0 {
            self.took = Instant::now();
        }
        // Not every time, for what is moved may be a long answer.
        if self.written * 2 >= self.outgoing.len() {
            self.outgoing.drain(..self.written);
            self.written = 0;
        }
        self.outgoing.extend_from_slice(line.as_bytes());
    }

    /// Writes what the client takes. Returns whether there is more to do now: not where it takes no more, of which the
    /// system will say when that changes.
    fn write(&mut self) -> io::Result<bool> {
        let mut left = WRITE_CHUNK;
        while left > 0 && self.unread() > 0 {
            let end = self.outgoing.len().min(self.written + left);
            match self.stream.write(&self.outgoing[self.written..end]) {
                Ok(count) => {
                    self.written += count;
                    left -= count;
                    self.took = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.unread() == 0 {
            (self.written, self.told) = (0, 0);
            self.outgoing.clear();
            self.outgoing.shrink_to(KEPT);
        }
        Ok(true)
    }
}
