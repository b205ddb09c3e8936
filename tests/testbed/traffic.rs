//! Traffic as a user would make it: `ping` and `iperf3` in the hosts' namespaces.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::netns::command_line;
use super::spec::{Family, Site};
use super::{Failure, Result, Testbed, send_signal};

/// A series of echo requests.
#[derive(Clone, Debug)]
pub struct Ping {
    /// Which host asks; the other one answers.
    pub from: Site,
    /// Address family.
    pub family: Family,
    /// Requests to send.
    pub count: u32,
    /// Bytes after the ICMP header.
    pub size: u16,
    /// Requests that go out at once, before the first pause.
    pub at_once: u32,
    /// Pause between requests after that; also the least that `ping` waits for a late answer once it has seen one.
    pub interval: Duration,
    /// Whether no one may fragment on the way; if not, the sender does where it must.
    pub dont_fragment: bool,
    /// Sixteen bytes at most, in hexadecimal, repeated through the payload.
    pub pattern: Option<String>,
    /// How long to wait where no answer comes at all.
    pub patience: Duration,
}

impl Default for Ping {
    fn default() -> Self {
        Self {
            from: Site::West,
            family: Family::V4,
            count: 3,
            size: 56,
            at_once: 3,
            interval: Duration::from_secs(1),
            dont_fragment: true,
            pattern: None,
            patience: Duration::from_secs(1),
        }
    }
}

/// How many echo requests went out and how many answers came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PingResult {
    /// Requests sent. The kernel refuses those that exceed its own MTU, and `ping` counts them all the same.
    pub sent: u32,
    /// Answers received.
    pub received: u32,
}

/// What carries a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TCP, as fast as it goes.
    Tcp,
    /// UDP at a fixed rate.
    Udp {
        /// Payload bits per second.
        rate_bps: u64,
        /// Payload bytes of a datagram.
        datagram_bytes: u16,
    },
}

/// One stream between the hosts. The server is always on host B.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Which host sends the data.
    pub from: Site,
    /// Address family.
    pub family: Family,
    /// TCP or UDP.
    pub transport: Transport,
    /// How long, in seconds.
    pub seconds: u32,
}

/// What of a stream arrived.
#[derive(Clone, Copy, Debug)]
pub struct Throughput {
    /// Payload bits per second, as the receiver counted them.
    pub bits_per_second: f64,
    /// Datagrams sent; 0 for TCP.
    pub packets: u64,
    /// Datagrams lost; 0 for TCP.
    pub lost: u64,
    /// TCP segments sent again; 0 for UDP.
    pub retransmits: u64,
}

impl Testbed {
    /// Sends echo requests and waits for the answers.
    ///
    /// # Errors
    /// Where `ping` does not run at all, or answers come back with other bytes than were sent. No answer is no error.
    pub fn ping(&self, ping: &Ping) -> Result<PingResult> {
        let mut command = self.ping_command(ping);
        let line = command_line(&command);
        let output = command.output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        parse_ping(&text)
            .filter(|_| !text.contains("wrong data byte"))
            .ok_or_else(|| {
                Failure(format!(
                    "{line}: {text}{}",
                    String::from_utf8_lossy(&output.stderr)
                ))
            })
    }

    /// Starts echo requests and returns at once; they go on until `count` is over or the handle is dropped.
    ///
    /// # Errors
    /// Where `ping` does not run at all.
    pub fn start_ping(&self, ping: &Ping) -> Result<RunningPing> {
        let mut command = self.ping_command(ping);
        Ok(RunningPing(
            command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?,
        ))
    }

    fn ping_command(&self, ping: &Ping) -> Command {
        let interval = format!("{:.3}", ping.interval.as_secs_f64());
        let mut command = self.host(ping.from).command("ping", "KILL");
        command.args(["-n", ping.family.ip_option()]);
        command.args(["-c", &ping.count.to_string(), "-s", &ping.size.to_string()]);
        command.args(["-M", if ping.dont_fragment { "do" } else { "dont" }]);
        command.args(["-W", &format!("{:.3}", ping.patience.as_secs_f64())]);
        command.args(["-l", &ping.at_once.to_string(), "-i", &interval]);
        if let Some(pattern) = &ping.pattern {
            command.args(["-p", pattern]);
        }
        command.arg(ping.from.other().host_address(ping.family).to_string());
        command
    }

    /// Runs one stream from start to end.
    ///
    /// # Errors
    /// What `iperf3` said, where it did not work out.
    pub fn stream(&self, flow: &Flow) -> Result<Throughput> {
        let mut server = self.iperf_server(flow)?;
        let mut command = self.host_a.command("iperf3", "KILL");
        let seconds = flow.seconds.to_string();
        command.args([
            "-J",
            flow.family.ip_option(),
            "--connect-timeout",
            "5000",
            "-t",
            &seconds,
            "-c",
        ]);
        command.arg(Site::East.host_address(flow.family).to_string());
        if let Transport::Udp {
            rate_bps,
            datagram_bytes,
        } = flow.transport
        {
            command.args([
                "-u",
                "-b",
                &rate_bps.to_string(),
                "-l",
                &datagram_bytes.to_string(),
            ]);
        }
        if flow.from == Site::East {
            command.arg("-R");
        }
        // iperf3 has no limit of its own on a control connection that hangs.
        let line = command_line(&command);
        let output = with_deadline(
            command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?,
            flow.seconds + 15,
        );
        server.end();
        let text = String::from_utf8_lossy(&output?.stdout).into_owned();
        parse_iperf3(&text, flow.transport).map_err(|why| Failure(format!("{line}: {why}")))
    }

    /// Starts a server for one stream and returns once it listens.
    fn iperf_server(&self, flow: &Flow) -> Result<Server> {
        let mut command = self.host_b.command("iperf3", "KILL");
        command.args(["-s", "-1", "--forceflush", flow.family.ip_option()]);
        let mut process = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut said = BufReader::new(process.stdout.take().expect("a pipe"));
        let mut words = String::new();
        while !words.contains("listening") {
            if said.read_line(&mut words)? == 0 {
                return Err(Failure(format!("iperf3 -s: {}: {words}", process.wait()?)));
            }
        }
        Ok(Server {
            process,
            _said: said,
        })
    }
}

/// Echo requests under way. Dropping it ends them.
pub struct RunningPing(Child);

impl Drop for RunningPing {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An `iperf3` server for one stream.
struct Server {
    process: Child,
    // Open to the end: the server may write to it, and what it writes fits the pipe.
    _said: BufReader<ChildStdout>,
}

impl Server {
    fn end(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits for the end of a process; ends it after `seconds`.
fn with_deadline(process: Child, seconds: u32) -> Result<std::process::Output> {
    let pid = process.id();
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let deadline = Duration::from_secs(seconds.into());
        if is_done.recv_timeout(deadline) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            send_signal(pid, Signal::KILL);
        }
    });
    let output = process.wait_with_output();
    drop(done);
    let _ = watchdog.join();
    Ok(output?)
}

/// Reads `3 packets transmitted, 3 received, 0% packet loss, time 402ms`.
fn parse_ping(text: &str) -> Option<PingResult> {
    let summary = text
        .lines()
        .find(|line| line.contains("packets transmitted"))?;
    let number_before = |word: &str| -> Option<u32> {
        let part = summary.split(", ").find(|part| part.contains(word))?;
        part.split(' ').next()?.parse().ok()
    };
    Some(PingResult {
        sent: number_before("transmitted")?,
        received: number_before("received")?,
    })
}

fn parse_iperf3(text: &str, transport: Transport) -> Result<Throughput> {
    let report: Value =
        serde_json::from_str(text).map_err(|why| Failure(format!("{why}: {text:?}")))?;
    if let Some(error) = report["error"].as_str() {
        return Err(Failure::new(error));
    }
    let end = &report["end"];
    let received = match transport {
        Transport::Tcp => &end["sum_received"],
        Transport::Udp { .. } => &end["sum"],
    };
    let bits_per_second = received["bits_per_second"]
        .as_f64()
        .ok_or_else(|| Failure(format!("no rate in {end}")))?;
    Ok(Throughput {
        bits_per_second,
        packets: received["packets"].as_u64().unwrap_or(0),
        lost: received["lost_packets"].as_u64().unwrap_or(0),
        retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or(0),
    })
}
