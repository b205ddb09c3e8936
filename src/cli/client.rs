//! Asks a running gateway over its control socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::{Failure, check};
use crate::control::protocol::{Method, Response, request_line};
use crate::policy;

/// Where sockets are looked for when none is named.
const SOCKET_DIR: &str = "/run/simplon";
/// How long a gateway may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The control socket that is meant: named, found by policy file, or the only one there is.
pub(super) fn socket_path(
    socket: Option<&Path>,
    config: Option<&Path>,
) -> Result<PathBuf, Failure> {
    if let Some(socket) = socket {
        return Ok(socket.to_owned());
    }
    if let Some(config) = config {
        // Without its keys where possible: they may be in the environment of the gateway alone.
        return match policy::control_socket(config) {
            Some(socket) => Ok(socket),
            None => Ok(check::load(config)?.gateway.control_socket),
        };
    }
    let is_socket = |path: &PathBuf| {
        path.metadata()
            .is_ok_and(|meta| meta.file_type().is_socket())
    };
    let mut found: Vec<PathBuf> = std::fs::read_dir(SOCKET_DIR)
        .map(|entries| {
            entries
                .flatten()
                .map(|entry| entry.path())
                .filter(is_socket)
                .collect()
        })
        .unwrap_or_default();
    found.sort();
    match found.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(Failure::new(format_args!(
            "no control socket in {SOCKET_DIR}: is a gateway running? Name its socket with --socket or its policy with --config"
        ))),
        several => {
            let names: Vec<_> = several
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            Err(Failure::new(format_args!(
                "several gateways are running; choose one with --socket: {}",
                names.join(", ")
            )))
        }
    }
}

/// A connection to a running gateway.
pub(super) struct Connection<'a> {
    socket: &'a Path,
    reader: BufReader<UnixStream>,
}

impl<'a> Connection<'a> {
    pub(super) fn open(socket: &'a Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(socket)
            .and_then(|stream| stream.set_read_timeout(Some(TIMEOUT)).map(|()| stream))
            .map_err(|error| failed(socket, &error))?;
        let reader = BufReader::new(stream);
        Ok(Self { socket, reader })
    }

    /// Asks for `method` and returns its result.
    pub(super) fn ask(
        &mut self,
        method: Method,
        params: &impl Serialize,
    ) -> Result<Value, Failure> {
        let line = request_line(method, params);
        match self.reader.get_mut().write_all(line.as_bytes()) {
            // Who is turned away is told why before.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                return Err(failed(self.socket, &error));
            }
            _ => {}
        }
        let line = self.line()?;
        let response: Response = serde_json::from_str(&line).map_err(|error| {
            Failure::new(format_args!(
                "{}: answer not understood: {error}",
                self.socket.display()
            ))
        })?;
        match (response.result, response.error) {
            (Some(result), _) => Ok(result),
            (None, Some(error)) => Err(Failure::new(error.message)),
            (None, None) => Err(Failure::new("the gateway gave an empty answer")),
        }
    }

    /// From here on waits for as long as it takes.
    pub(super) fn wait_for_ever(&mut self) -> Result<(), Failure> {
        let set = self.reader.get_mut().set_read_timeout(None);
        set.map_err(|error| failed(self.socket, &error))
    }

    /// The next line from the gateway.
    pub(super) fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Err(error) => Err(failed(self.socket, &error)),
            Ok(0) => Err(Failure::new(format_args!(
                "{}: the gateway has closed the connection",
                self.socket.display()
            ))),
            Ok(_) => Ok(line),
        }
    }
}

/// Asks for `method`, which has no parameters, over a connection of its own.
pub(super) fn ask(socket: &Path, method: Method) -> Result<Value, Failure> {
    Connection::open(socket)?.ask(method, &serde_json::Map::new())
}

fn failed(socket: &Path, error: &std::io::Error) -> Failure {
    let hint = match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
            " (is the gateway running?)"
        }
        std::io::ErrorKind::PermissionDenied => " (only the user that runs the gateway may ask)",
        _ => "",
    };
    Failure::new(format_args!("{}: {error}{hint}", socket.display()))
}
