//! One gateway: its namespace, its files, and the `simplon run` process while there is one.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::spec::{KeyFiles, Places, Site, TunnelSpec, policy_text};
use super::{Failure, Netns, Result, run, send_signal, wait_until};

/// How long a gateway may take to drain and stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A gateway of the test bed. Dropping the test bed ends its process.
pub struct Gateway {
    site: Site,
    name: String,
    netns: Netns,
    policy: PathBuf,
    state_dir: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    process: Option<Child>,
    /// Where in the log the present process began to write.
    log_start: u64,
}

/// How a gateway's process ended.
#[derive(Debug)]
pub struct Exit {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it wrote to standard error.
    pub stderr: String,
    /// How long it took from the signal.
    pub took: Duration,
}

impl Gateway {
    pub(super) fn new(
        site: Site,
        stem: &str,
        dir: &Path,
        spec: &TunnelSpec,
        keys: &KeyFiles,
    ) -> Result<Self> {
        let name = format!("{stem}-{}", site.name());
        let at = |suffix: &str| dir.join(format!("{}{suffix}", site.name()));
        let gateway = Self {
            site,
            netns: Netns::new(name.clone()),
            policy: at(".toml"),
            state_dir: at(".state"),
            socket: at(".sock"),
            log: at(".log"),
            process: None,
            log_start: 0,
            name,
        };
        let places = Places {
            name: &gateway.name,
            state_dir: &gateway.state_dir,
            socket: &gateway.socket,
        };
        fs::write(&gateway.policy, policy_text(site, spec, keys, &places))?;
        Ok(gateway)
    }

    /// Which end it is.
    pub fn site(&self) -> Site {
        self.site
    }

    /// Its name in the policy file, which is DPDK's file prefix and the namespace's name too.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace it runs in.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The directory where it leases sequence numbers.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Its control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its policy file.
    pub fn policy(&self) -> &Path {
        &self.policy
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Everything that its processes have written to standard error, from the first one on.
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Declares the keys fresh: `simplon state init`.
    ///
    /// # Errors
    /// What the command said.
    pub fn state_init(&self) -> Result<()> {
        let (binary, policy) = (binary()?, self.policy.to_string_lossy());
        run(&[
            &binary.to_string_lossy(),
            "state",
            "init",
            "--config",
            &policy,
        ])
        .map(drop)
    }

    /// Starts `simplon run` and returns at once.
    ///
    /// # Errors
    /// Where the process cannot be made, or one runs already.
    pub fn start(&mut self) -> Result<()> {
        if self.process.is_some() {
            return Err(Failure(format!("{} runs already", self.name)));
        }
        let log = File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.log)?;
        self.log_start = log.metadata()?.len();
        let mut command = self.netns.command(binary()?, "TERM");
        command
            .args(["run", "--log-format", "text", "--config"])
            .arg(&self.policy);
        command.stdout(Stdio::null()).stderr(log);
        self.process = Some(command.spawn()?);
        Ok(())
    }

    /// Waits until it answers on its control socket.
    ///
    /// # Errors
    /// Its log, where it ended or did not answer in time.
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<()> {
        let mut ended = None;
        let mut last_answer = String::new();
        let answered = wait_until(timeout, || {
            ended = self
                .process
                .as_mut()
                .and_then(|process| process.try_wait().ok().flatten());
            ended.is_some()
                || self.socket.exists()
                    && self
                        .show("ports")
                        .inspect_err(|why| last_answer = why.to_string())
                        .is_ok()
        });
        if answered && ended.is_none() {
            return Ok(());
        }
        let state = ended.map_or_else(
            || format!("no answer in {timeout:?} ({last_answer})"),
            |status| status.to_string(),
        );
        Err(Failure(format!(
            "{} did not come up: {state}\n{}",
            self.name,
            self.present_log()
        )))
    }

    /// Whether its process is still there.
    pub fn is_running(&mut self) -> bool {
        self.process
            .as_mut()
            .is_some_and(|process| matches!(process.try_wait(), Ok(None)))
    }

    /// What `simplon show WHAT --json` says.
    ///
    /// # Errors
    /// What the command said, or that it is not JSON.
    pub fn show(&self, what: &str) -> Result<Value> {
        let (binary, socket) = (binary()?, self.socket.to_string_lossy());
        let text = run(&[
            &binary.to_string_lossy(),
            "show",
            what,
            "--json",
            "--socket",
            &socket,
        ])?;
        serde_json::from_str(&text).map_err(|why| Failure(format!("show {what}: {why}: {text}")))
    }

    /// What `simplon` says to these arguments and the control socket's name.
    ///
    /// # Errors
    /// What the command said, where it failed.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        let (binary, socket) = (binary()?, self.socket.to_string_lossy());
        let binary = binary.to_string_lossy();
        let mut command = vec![&*binary];
        command.extend(arguments);
        command.extend(["--socket", &*socket]);
        run(&command)
    }

    /// A command of `simplon` that asks this gateway.
    ///
    /// # Errors
    /// Where there is no `simplon`.
    pub fn client(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command.args(arguments).arg("--socket").arg(&self.socket);
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// Packets dropped so far for `reason`, in `direction`: `outbound` is what entered on the protected side.
    ///
    /// # Errors
    /// What `simplon show drops` said.
    pub fn dropped_for(&self, direction: &str, reason: &str) -> Result<u64> {
        let shown = self.show("drops")?;
        let rows = shown["drops"].as_array().into_iter().flatten();
        Ok(rows
            .filter(|row| row["direction"] == direction && row["reason"] == reason)
            .filter_map(|row| row["packets"].as_u64())
            .sum())
    }

    /// Sends a signal to its process.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            send_signal(pid, signal);
        }
    }

    /// Asks it to drain and stop, by SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// Its log, where it does not end; it is killed then.
    pub fn stop(&mut self) -> Result<Exit> {
        self.signal(Signal::TERM);
        self.wait_end()
    }

    /// Ends it by SIGKILL, as a crash would.
    ///
    /// # Errors
    /// Where there is no process.
    pub fn kill9(&mut self) -> Result<Exit> {
        self.signal(Signal::KILL);
        self.wait_end()
    }

    /// Waits for the end of a process that has had its signal.
    ///
    /// # Errors
    /// Its log, where it does not end; it is killed then.
    pub fn wait_end(&mut self) -> Result<Exit> {
        let started = Instant::now();
        let Some(mut process) = self.process.take() else {
            return Err(Failure(format!("{} does not run", self.name)));
        };
        let mut status = None;
        wait_until(STOP_TIMEOUT, || {
            status = process.try_wait().ok().flatten();
            status.is_some()
        });
        let took = started.elapsed();
        match status {
            Some(status) => Ok(Exit {
                status,
                stderr: self.present_log(),
                took,
            }),
            None => {
                process.kill()?;
                process.wait()?;
                Err(Failure(format!(
                    "{} did not stop in {STOP_TIMEOUT:?}\n{}",
                    self.name,
                    self.present_log()
                )))
            }
        }
    }

    /// Stops it, starts it again and waits until it answers.
    ///
    /// # Errors
    /// As [`Self::stop`], [`Self::start`] and [`Self::wait_ready`]; also where it did not exit with 0.
    pub fn restart(&mut self) -> Result<()> {
        let exit = self.stop()?;
        if !exit.status.success() {
            return Err(Failure(format!(
                "{} stopped with {}\n{}",
                self.name, exit.status, exit.stderr
            )));
        }
        self.start()?;
        self.wait_ready(super::READY_TIMEOUT)
    }

    /// Ends the process, by SIGTERM first and then by SIGKILL, and asks for nothing.
    pub(super) fn end(&mut self) {
        if self.process.is_some() {
            let _ = self.stop();
        }
    }

    /// What the present process, or the last one, has written to standard error.
    fn present_log(&self) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            let mut file = File::open(&self.log)?;
            file.seek(SeekFrom::Start(self.log_start))?;
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read()
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }
}

/// The `simplon` binary: the one that `SIMPLON_BINARY` names, the one that cargo built for this test, or the one beside
/// this program.
///
/// # Errors
/// Where there is none.
fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SIMPLON_BINARY") {
        return Ok(path.into());
    }
    if let Some(path) = option_env!("CARGO_BIN_EXE_simplon") {
        return Ok(path.into());
    }
    let program = std::env::current_exe()?;
    let beside = program
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("simplon"));
    beside
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| {
            Failure(format!(
                "no simplon binary near {}; build it first: cargo build --release",
                program.display()
            ))
        })
}
