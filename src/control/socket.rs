//! The control socket: a Unix socket of its owner's, served by the control thread between its other duties.
//!
//! Nothing a client does can hold the control thread: clients, lines and unread answers are all bounded.

use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mio::net::{UnixListener, UnixStream};
use mio::{Events, Interest, Poll, Token};
use rustix::fs::Mode;
use rustix::process::umask;
use serde_json::Value;

use crate::control::protocol::{Method, answer_line};

/// Most clients at one time; more are turned away.
const MAX_CLIENTS: usize = 64;
/// Longest request line, in bytes.
const MAX_REQUEST: usize = 64 << 10;
/// Most bytes of answers that a client may leave unread.
const MAX_UNREAD: usize = 64 << 20;
/// Bytes taken from a client before the next one has its turn.
const READ_CHUNK: usize = 16 << 10;

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
    next_token: usize,
}

struct Client {
    stream: UnixStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

impl ControlSocket {
    /// Listens at `path`, for the owner only. A socket left behind by a process that is gone is replaced.
    ///
    /// # Errors
    /// [`SocketError`]; nothing of another process is touched.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let io = |error| SocketError::Io {
            path: path.to_owned(),
            error,
        };
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
            next_token: 1,
        })
    }

    /// Waits up to `timeout` for clients and serves those that are there. `answer` gives the result of a method.
    ///
    /// # Errors
    /// Where waiting itself fails; a client's failure only closes that client.
    pub fn serve(
        &mut self,
        timeout: Duration,
        mut answer: impl FnMut(Method) -> Value,
    ) -> io::Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        let ready: Vec<Token> = self.events.iter().map(mio::event::Event::token).collect();
        for token in ready {
            if token == LISTENER {
                self.accept();
            } else if let Some(client) = self.clients.get_mut(&token)
                && client.serve(&mut answer).is_err()
                && let Some(mut client) = self.clients.remove(&token)
            {
                let _ = self.poll.registry().deregister(&mut client.stream);
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        while let Ok((mut stream, _)) = self.listener.accept() {
            if self.clients.len() >= MAX_CLIENTS {
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
                let client = Client {
                    stream,
                    incoming: Vec::new(),
                    outgoing: Vec::new(),
                };
                self.clients.insert(token, client);
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Client {
    /// Reads what is there, answers whole lines, writes what fits. An error means that the client is to be closed.
    fn serve(&mut self, answer: &mut impl FnMut(Method) -> Value) -> io::Result<()> {
        let mut chunk = [0; READ_CHUNK];
        let mut at_end = false;
        // Readiness is told once, so everything is read; each line is answered as it comes, which bounds what is held.
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    at_end = true;
                    break;
                }
                Ok(count) => {
                    self.incoming.extend_from_slice(&chunk[..count]);
                    self.answer_lines(answer)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.flush()?;
        if at_end {
            Err(io::ErrorKind::UnexpectedEof.into())
        } else {
            Ok(())
        }
    }

    fn answer_lines(&mut self, answer: &mut impl FnMut(Method) -> Value) -> io::Result<()> {
        while let Some(end) = self.incoming.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.incoming.drain(..=end).collect();
            if self.outgoing.len() > MAX_UNREAD {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            self.outgoing
                .extend_from_slice(answer_line(&line, &mut *answer).as_bytes());
        }
        if self.incoming.len() > MAX_REQUEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
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
mod tests {
    use super::*;
    use crate::control::protocol::request_line;
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Serves while `client` runs.
    fn with_server<T: Send>(client: impl FnOnce(&Path) -> T + Send) -> T {
        let dir = tempfile::TempDir::new().expect("dir");
        let path = dir.path().join("s.sock");
        let mut socket = ControlSocket::bind(&path).expect("bound");
        let done = AtomicBool::new(false);
        let result = std::thread::scope(|scope| {
            let handle = scope.spawn(|| {
                let result = client(&path);
                done.store(true, Ordering::SeqCst);
                result
            });
            while !done.load(Ordering::SeqCst) && !handle.is_finished() {
                socket
                    .serve(Duration::from_millis(5), |method| method.name().into())
                    .expect("served");
            }
            handle.join().expect("client")
        });
        drop(socket);
        assert!(!path.exists());
        result
    }

    fn ask(path: &Path, line: &str) -> String {
        let mut stream = StdUnixStream::connect(path).expect("connected");
        stream.write_all(line.as_bytes()).expect("asked");
        let mut answer = String::new();
        BufReader::new(stream)
            .read_line(&mut answer)
            .expect("answered");
        answer
    }

    #[test]
    fn socket_is_its_owners_only_and_answers() {
        let (mode, answer) = with_server(|path| {
            let mode = fs::metadata(path).expect("socket").permissions().mode() & 0o777;
            (mode, ask(path, &request_line(Method::ShowSa)))
        });
        assert_eq!(mode, 0o600);
        assert!(answer.contains("show.sa"), "{answer}");
    }

    #[test]
    fn clients_that_are_silent_noisy_or_gone_do_not_keep_others_waiting() {
        let answer = with_server(|path| {
            let _silent: Vec<_> = (0..10)
                .map(|_| StdUnixStream::connect(path).expect("connected"))
                .collect();
            let mut noisy = StdUnixStream::connect(path).expect("connected");
            let _ = noisy.write_all(&vec![b'x'; MAX_REQUEST * 2]);
            let mut gone = StdUnixStream::connect(path).expect("connected");
            gone.write_all(b"{\"half\":").expect("wrote");
            drop(gone);
            let mut deaf = StdUnixStream::connect(path).expect("connected");
            for _ in 0..100 {
                let _ = deaf.write_all(request_line(Method::ShowPorts).as_bytes());
            }
            ask(path, &request_line(Method::ShowDrops))
        });
        assert!(answer.contains("show.drops"), "{answer}");
    }

    #[test]
    fn live_socket_is_not_taken_over_and_a_stale_one_is() {
        let dir = tempfile::TempDir::new().expect("dir");
        let path = dir.path().join("s.sock");
        let first = ControlSocket::bind(&path).expect("bound");
        assert!(matches!(
            ControlSocket::bind(&path),
            Err(SocketError::InUse { .. })
        ));
        // As a killed process leaves it: the file stays, nobody listens.
        std::mem::forget(first);
        let stale = dir.path().join("stale.sock");
        drop(std::os::unix::net::UnixListener::bind(&stale).expect("bound"));
        assert!(ControlSocket::bind(&stale).is_ok());
        fs::write(dir.path().join("file"), b"").expect("file");
        assert!(matches!(
            ControlSocket::bind(&dir.path().join("file")),
            Err(SocketError::NotASocket { .. })
        ));
    }
}
