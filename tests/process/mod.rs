//! A `simplon run` process of a test without namespaces: started from the text of a policy, asked, stopped.
#![allow(dead_code)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A gateway's process. Dropping it kills it.
pub(crate) struct Gateway {
    process: Child,
    policy: PathBuf,
    log: PathBuf,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `simplon` with arguments and a policy.
pub(crate) fn simplon(arguments: &[&str], policy: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simplon"));
    command.args(arguments).arg("--config").arg(policy);
    command
}

/// Makes a key file.
pub(crate) fn genkey(cipher: &str, file: &Path) {
    let done = Command::new(env!("CARGO_BIN_EXE_simplon"))
        .args(["genkey", "--cipher", cipher])
        .arg(file)
        .output()
        .expect("simplon");
    assert!(done.status.success());
}

impl Gateway {
    /// Writes `NAME.toml` into `dir`, declares its keys fresh, and starts it.
    pub(crate) fn start(dir: &Path, name: &str, text: &str) -> Self {
        let policy = dir.join(format!("{name}.toml"));
        std::fs::write(&policy, text).expect("policy");
        let done = simplon(&["state", "init"], &policy)
            .output()
            .expect("simplon");
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        let log = dir.join(format!("{name}.log"));
        let process = simplon(&["run"], &policy)
            .stderr(File::create(&log).expect("log"))
            .spawn()
            .expect("simplon");
        Self {
            process,
            policy,
            log,
        }
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What `simplon show WHAT --json` says; null where it does not answer.
    pub(crate) fn show(&self, what: &str) -> Value {
        let shown = simplon(&["show", what, "--json"], &self.policy)
            .stderr(Stdio::null())
            .output()
            .expect("simplon");
        serde_json::from_slice(&shown.stdout).unwrap_or_default()
    }

    /// Waits until what `show WHAT` says is `good`, and returns it.
    pub(crate) fn wait(&mut self, what: &str, good: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let shown = self.show(what);
            if good(&shown) {
                return shown;
            }
            assert!(Instant::now() < deadline, "{shown:#}\n{}", self.log());
            assert!(
                self.process.try_wait().expect("status").is_none(),
                "the gateway ended\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until so many frames have come in by `direction`, and returns what became of them.
    pub(crate) fn wait_received(&mut self, direction: &str, frames: u64) -> Value {
        self.wait("drops", |drops| {
            drops["totals"][direction]["received"].as_u64() == Some(frames)
        })
    }

    /// Stops it by SIGTERM. It must end in order, every buffer back and every frame accounted for.
    pub(crate) fn stop(mut self) {
        let id = i32::try_from(self.process.id()).expect("a process id");
        let pid = rustix::process::Pid::from_raw(id).expect("a process id");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
        let status = self.process.wait().expect("ended");
        assert!(status.success(), "{status}\n{}", self.log());
    }
}
