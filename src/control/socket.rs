//! The control socket: a Unix socket of its owner's, or of a group's as well, served by the control thread between its other duties.
//!
//! Nothing a client does can hold the control thread: clients, lines, unread answers and the time of a turn are all bounded.
//! Clients have their turns one after the other, a request each, whoever asks more.

mod client;

use std::collections::{HashMap, VecDeque};
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mio::net::{UnixListener, UnixStream};
use mio::{Events, Interest, Poll, Token};
use nix::unistd::Group;
use rustix::fs::Mode;
use rustix::process::{Resource, getrlimit, setrlimit, umask};
use serde_json::{Value, json};
use tracing::{debug, warn};

use client::Client;

use crate::control::events::Occurrence;
use crate::control::protocol::{ApiError, BUSY, Call, TOO_MANY_CLIENTS, error_line};

/// Most clients at one time; more are told so and closed.
pub const MAX_CLIENTS: usize = 1024;
/// Most bytes that may be kept for all clients together before another answer is made.
const MAX_UNREAD: usize = 256 << 20;
/// Clients taken in one turn of the control thread.
const MAX_ACCEPTS: usize = 256;
/// Time of the control thread in one turn, but for the request that is in work when it is over.
const SLICE: Duration = Duration::from_millis(4);
/// Time between two looks for clients that do not take their answers.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Open files that all clients and all else may be: the usual limit, 1,024, is for programs that call select.
const FILES: u64 = 8192;

const LISTENER: Token = Token(0);

/// Why the control socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process answers on it.
    #[error("{} is in use by another simplon: stop it, or set another `control_socket`", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path is taken by something that is no socket.
    #[error("{} exists and is not a socket: remove it, or set another `control_socket`", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The group that is to use it does not exist.
    #[error("control socket {}: there is no group {group:?} on this system: make it, or set another `control_group`", path.display())]
    NoSuchGroup {
        /// The socket.
        path: PathBuf,
        /// The group.
        group: String,
    },
    /// The system refused.
    #[error("control socket {}: {error}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
}

/// The listening socket and its clients. Removes the socket's file when dropped.
pub struct ControlSocket {
    path: PathBuf,
    poll: Poll,
    events: Events,
    listener: UnixListener,
    clients: HashMap<Token, Client>,
    /// Those who may have something to do, in the order of their turns.
    ready: VecDeque<Token>,
    /// There may be more to take.
    is_accepting: bool,
    next_token: usize,
    /// [`MAX_UNREAD`]; tests have less.
    most_held: usize,
    /// When clients that do not take their answers were looked for.
    looked: Instant,
}

impl ControlSocket {
    /// Listens at `path`, for the owner only, or for `group` as well. A socket left behind by a process that is gone is replaced.
    ///
    /// # Errors
    /// [`SocketError`]; nothing of another process is touched.
    pub fn bind(path: &Path, group: Option<&str>) -> Result<Self, SocketError> {
        let io = |error| SocketError::Io {
            path: path.to_owned(),
            error,
        };
        let group = group.map(|name| group_id(path, name)).transpose()?;
        clear_stale(path)?;
        if let Some(dir) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(dir)
                .map_err(io)?;
        }
        let before = umask(Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(path);
        umask(before);
        let mut listener = listener.map_err(io)?;
        if let Some(group) = group {
            let shared = share(path, group);
            shared
                .inspect_err(|_| drop(fs::remove_file(path)))
                .map_err(io)?;
        }
        make_room_for_files();
        let poll = Poll::new().map_err(io)?;
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)
            .map_err(io)?;
        Ok(Self {
            path: path.to_owned(),
            poll,
            events: Events::with_capacity(MAX_CLIENTS + 1),
            listener,
            clients: HashMap::new(),
            ready: VecDeque::new(),
            is_accepting: false,
            next_token: 1,
            most_held: MAX_UNREAD,
            looked: Instant::now(),
        })
    }

    /// Waits up to `timeout` for clients, if none has something left to do, and serves those that are there for a slice of
    /// time. `answer` gives the result of a call.
    ///
    /// # Errors
    /// Where waiting itself fails; a client's failure only closes that client.
    pub fn serve(
        &mut self,
        timeout: Duration,
        mut answer: impl FnMut(Call) -> Result<Value, ApiError>,
    ) -> io::Result<()> {
        let wait = if self.ready.is_empty() {
            timeout
        } else {
            Duration::ZERO
        };
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        for event in &self.events {
            if event.token() == LISTENER {
                self.is_accepting = true;
            } else if let Some(client) = self.clients.get_mut(&event.token()) {
                client.note(event);
                queue(&mut self.ready, event.token(), client);
            }
        }
        self.accept();
        self.close_deaf();
        let mut held = self.clients.values().map(Client::held).sum();
        let began = Instant::now();
        while let Some(token) = self.ready.pop_front() {
            self.turn(token, &mut held, &mut answer);
            if began.elapsed() >= SLICE {
                break;
            }
        }
        Ok(())
    }

    /// Gives one client its turn.
    fn turn(
        &mut self,
        token: Token,
        held: &mut usize,
        answer: &mut impl FnMut(Call) -> Result<Value, ApiError>,
    ) {
        // It may have been closed since it was put there.
        let Some(client) = self.clients.get_mut(&token) else {
            return;
        };
        client.is_queued = false;
        let before = client.held();
        let (now, most) = (*held, self.most_held);
        let turn = client.turn(&mut |call| {
            if now < most {
                answer(call)
            } else {
                let message = "too many answers are unread; ask again later";
                Err(ApiError::new(BUSY, message).with_data(json!({ "unread": now })))
            }
        });
        *held = now.saturating_sub(before) + client.held();
        match turn {
            Ok(true) => queue(&mut self.ready, token, client),
            Ok(false) => {}
            Err(error) => {
                *held = held.saturating_sub(client.held());
                debug!("control socket: a client is closed: {error}");
                self.clients.remove(&token);
            }
        }
    }

    /// Tells those who want to know. Who has left too much unread is cut off instead.
    pub fn tell(&mut self, occurrence: &Occurrence) {
        let kind = occurrence.event.kind();
        let mut line = None;
        let mut full = Vec::new();
        for (token, client) in &mut self.clients {
            if !client.wants(kind) {
                continue;
            }
            let line = line.get_or_insert_with(|| occurrence.line());
            if client.tell(line) {
                queue(&mut self.ready, *token, client);
            } else {
                full.push(*token);
            }
        }
        for token in full {
            warn!("control socket: a subscriber does not read its events and is cut off");
            self.clients.remove(&token);
        }
    }

    /// Takes who has come. Where the system has no more files, those who come wait until it has.
    fn accept(&mut self) {
        for _ in 0..MAX_ACCEPTS {
            if !self.is_accepting {
                break;
            }
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => {
                    self.is_accepting = error.kind() != io::ErrorKind::WouldBlock;
                    break;
                }
            };
            if self.clients.len() >= MAX_CLIENTS {
                turn_away(&mut stream);
                continue;
            }
            let token = Token(self.next_token);
            self.next_token += 1;
            let interest = Interest::READABLE | Interest::WRITABLE;
            if self
                .poll
                .registry()
                .register(&mut stream, token, interest)
                .is_ok()
            {
                self.clients.insert(token, Client::new(stream));
            }
        }
    }

    /// Closes clients that have long not taken anything of what is for them, so that it does not lie here for ever.
    fn close_deaf(&mut self) {
        if self.looked.elapsed() < LOOK_INTERVAL {
            return;
        }
        self.looked = Instant::now();
        let deaf: Vec<Token> = self
            .clients
            .iter()
            .filter(|(_, client)| client.is_deaf())
            .map(|(token, _)| *token)
            .collect();
        for token in deaf {
            debug!("control socket: a client does not take its answer and is closed");
            self.clients.remove(&token);
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Puts a client at the end of those who have something to do, where it is not among them.
fn queue(ready: &mut VecDeque<Token>, token: Token, client: &mut Client) {
    if !std::mem::replace(&mut client.is_queued, true) {
        ready.push_back(token);
    }
}

/// Says why, as far as that goes without waiting.
fn turn_away(stream: &mut UnixStream) {
    let message = format!("{MAX_CLIENTS} clients are connected; ask again later");
    let error = ApiError::new(TOO_MANY_CLIENTS, message);
    let error = error.with_data(json!({ "clients": MAX_CLIENTS }));
    let _ = stream.write_all(error_line(error).as_bytes());
    warn!("control socket: a client was turned away, for {MAX_CLIENTS} are connected");
}

/// Raises the limit of open files towards what the clients may need.
fn make_room_for_files() {
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(FILES, |maximum| maximum.min(FILES));
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(wanted);
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            warn!("cannot raise the limit of open files to {wanted}: {error}");
        }
    }
}

fn group_id(path: &Path, name: &str) -> Result<u32, SocketError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(SocketError::NoSuchGroup {
            path: path.to_owned(),
            group: name.to_owned(),
        }),
        Err(error) => Err(SocketError::Io {
            path: path.to_owned(),
            error: error.into(),
        }),
    }
}

/// Lets a group in: first it is theirs, then they may.
fn share(path: &Path, group: u32) -> io::Result<()> {
    chown(path, None, Some(group))?;
    fs::set_permissions(path, Permissions::from_mode(0o660))
}

/// Removes a socket that nobody answers on.
fn clear_stale(path: &Path) -> Result<(), SocketError> {
    use std::os::unix::fs::FileTypeExt;
    let Ok(meta) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !meta.file_type().is_socket() {
        return Err(SocketError::NotASocket {
            path: path.to_owned(),
        });
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| SocketError::Io {
                path: path.to_owned(),
                error,
            }),
        _ => Err(SocketError::InUse {
            path: path.to_owned(),
        }),
    }
}

#[cfg(test)]
#[path = "socket/tests.rs"]
mod tests;
