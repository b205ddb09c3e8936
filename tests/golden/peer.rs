//! scapy in a process of its own: `peer.py` says what it is asked and answers.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::rig::{hex, unhex};

/// Debian's own, for which `python3-scapy` is packaged; another `python3` may come first in `PATH`.
const PYTHON: &str = "/usr/bin/python3";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/peer.py");
const INSTALL: &str = "the golden tests need Python and scapy: install the Debian packages `python3-scapy` and `python3-cryptography`";

/// What an inner packet carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Transport {
    None,
    Udp,
    Tcp,
    Icmp,
}

/// An inner packet.
#[derive(Clone, Debug)]
pub(crate) struct InnerSpec {
    pub(crate) source: &'static str,
    pub(crate) destination: &'static str,
    pub(crate) transport: Transport,
    pub(crate) payload_len: usize,
    pub(crate) tos: u8,
    pub(crate) hop_limit: u8,
    pub(crate) df: bool,
}

impl InnerSpec {
    /// A small UDP packet.
    pub(crate) fn small(source: &'static str, destination: &'static str) -> Self {
        Self {
            source,
            destination,
            transport: Transport::Udp,
            payload_len: 30,
            tos: 0,
            hop_limit: 64,
            df: false,
        }
    }
}

/// An inner packet as it arrives, and as it goes on: one hop later.
pub(crate) struct Inner {
    pub(crate) packet: Vec<u8>,
    pub(crate) forwarded: Vec<u8>,
}

/// An SA as scapy has it, for one packet.
#[derive(Clone)]
pub(crate) struct PeerSa {
    pub(crate) spi: u32,
    pub(crate) key: Vec<u8>,
    pub(crate) esn: bool,
    pub(crate) seq: u64,
    pub(crate) source: &'static str,
    pub(crate) destination: &'static str,
    pub(crate) tos: u8,
    pub(crate) hop_limit: u8,
    pub(crate) df: bool,
    pub(crate) id: u16,
    pub(crate) udp: Option<(u16, u16)>,
}

impl PeerSa {
    fn to_json(&self) -> Value {
        json!({
            "spi": self.spi,
            "key": hex(&self.key),
            "esn": self.esn,
            "seq": self.seq,
            "outer": {
                "source": self.source,
                "destination": self.destination,
                "tos": self.tos,
                "hop_limit": self.hop_limit,
                "df": self.df,
                "id": self.id,
            },
            "udp": self.udp,
        })
    }
}

/// The Python process. Ends with this handle.
pub(crate) struct Peer {
    child: Child,
    /// `None` only while it is dropped.
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts it.
    ///
    /// # Panics
    /// Where Python or scapy is missing: a golden test that does not run is no test.
    pub(crate) fn start() -> Self {
        let mut child = Command::new(PYTHON)
            .args(["-B", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {PYTHON} ({error}); {INSTALL}"));
        let requests = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        let mut peer = Self {
            child,
            requests,
            answers,
        };
        let hello = peer.answer();
        if hello["ready"] != json!(true) {
            panic!("{INSTALL} ({hello})");
        }
        peer
    }

    /// Builds an inner packet.
    pub(crate) fn inner(&mut self, spec: &InnerSpec) -> Inner {
        let transport = match spec.transport {
            Transport::None => "none",
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
            Transport::Icmp => "icmp",
        };
        let answer = self.ask(&json!({
            "op": "inner",
            "source": spec.source,
            "destination": spec.destination,
            "transport": transport,
            "payload_len": spec.payload_len,
            "tos": spec.tos,
            "hop_limit": spec.hop_limit,
            "df": spec.df,
        }));
        Inner {
            packet: bytes(&answer, "packet"),
            forwarded: bytes(&answer, "forwarded"),
        }
    }

    /// Seals an inner packet. Returns the outer IP packet.
    pub(crate) fn seal(&mut self, sa: &PeerSa, inner: &[u8], iv: [u8; 8]) -> Vec<u8> {
        let answer = self.ask(&json!({
            "op": "seal",
            "sa": sa.to_json(),
            "inner": hex(inner),
            "iv": hex(&iv),
        }));
        bytes(&answer, "packet")
    }

    /// Encrypts `plain`, which ends with pad length and next header, whatever they say. Returns the outer IP packet.
    pub(crate) fn forge(&mut self, sa: &PeerSa, plain: &[u8], iv: [u8; 8]) -> Vec<u8> {
        let answer = self.ask(&json!({
            "op": "forge",
            "sa": sa.to_json(),
            "plain": hex(plain),
            "iv": hex(&iv),
        }));
        bytes(&answer, "packet")
    }

    /// Opens an outer IP packet; `None` where scapy finds the ICV wrong.
    pub(crate) fn open(&mut self, sa: &PeerSa, packet: &[u8]) -> Option<Vec<u8>> {
        let answer = self.ask(&json!({
            "op": "open",
            "sa": sa.to_json(),
            "packet": hex(packet),
        }));
        let refused = answer.get("refused").is_some();
        (!refused).then(|| bytes(&answer, "inner"))
    }

    fn ask(&mut self, request: &Value) -> Value {
        let requests = self.requests.as_mut().expect("running");
        writeln!(requests, "{request}").expect("peer.py reads");
        let answer = self.answer();
        if let Some(error) = answer.get("error") {
            panic!("peer.py: {error} for {request}");
        }
        answer
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("peer.py answers");
        serde_json::from_str(&line).unwrap_or_else(|error| {
            panic!("peer.py answered {line:?} ({error}); its own words are on standard error")
        })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Its standard input ends, and so does it.
        self.requests = None;
        let _ = self.child.wait();
    }
}

fn bytes(answer: &Value, key: &str) -> Vec<u8> {
    unhex(
        answer[key]
            .as_str()
            .unwrap_or_else(|| panic!("no {key} in {answer}")),
    )
}
