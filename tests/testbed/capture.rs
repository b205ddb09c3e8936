//! What passes on the wire between the gateways: `tcpdump` writes it down, and it is read back here.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Stdio};
use std::time::Duration;

use pcap_file::PcapError;
use pcap_file::pcap::PcapReader;
use rustix::process::Signal;

use super::{Failure, Result, Testbed, send_signal};

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// The port of ESP in UDP (RFC 3948).
const ESP_PORT: u16 = 4500;

/// A capture under way. Dropping it ends it.
pub struct Capture {
    process: Child,
    // Kept open and unread until the end: tcpdump writes a few lines only.
    said: BufReader<ChildStderr>,
    file: PathBuf,
}

/// One frame as it was on the wire.
#[derive(Clone, Debug)]
pub struct WireFrame {
    /// From the Ethernet header on, cut at the capture's snapshot length.
    pub bytes: Vec<u8>,
    /// Its length on the wire.
    pub length: u32,
    /// Outer source address; `None` where the frame is not IP.
    pub source: Option<IpAddr>,
    /// Outer destination address; `None` where the frame is not IP.
    pub destination: Option<IpAddr>,
    /// What follows the outer IP header.
    pub protocol: WireProtocol,
}

/// What follows the outer IP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WireProtocol {
    /// ESP, as it is or in UDP.
    Esp {
        /// Whether it came in UDP, port 4500 to port 4500.
        in_udp: bool,
        /// The SPI.
        spi: u32,
        /// The low half of the sequence number: all that is on the wire.
        sequence: u32,
        /// The initialisation vector.
        iv: u64,
    },
    /// Another IP protocol, by number.
    Other(u8),
    /// Not IP, or too short to tell.
    NotIp,
}

impl Testbed {
    /// Begins to write down every frame between the gateways, up to `snapshot` bytes of each.
    ///
    /// # Errors
    /// What `tcpdump` said, where it does not start.
    pub fn capture(&self, snapshot: u32) -> Result<Capture> {
        self.capture_at("w1", snapshot)
    }

    /// As [`Self::capture`], at the wire's end `w1`, towards the west, or `w2`.
    ///
    /// # Errors
    /// As there.
    pub fn capture_at(&self, end: &str, snapshot: u32) -> Result<Capture> {
        let file = self.dir().join(format!("{end}.pcap"));
        let mut command = self.wire.command("tcpdump", "KILL");
        // Without -Z it changes to a user who may not write here. The buffer (KiB) holds several seconds of traffic.
        command
            .args([
                "-i",
                end,
                "-p",
                "-n",
                "-Z",
                "root",
                "-B",
                "65536",
                "-s",
                &snapshot.to_string(),
                "-w",
            ])
            .arg(&file);
        let mut process = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut said = BufReader::new(process.stderr.take().expect("a pipe"));
        let mut words = String::new();
        while !words.contains("listening on") {
            if said.read_line(&mut words)? == 0 {
                let status = process.wait()?;
                return Err(Failure(format!("tcpdump: {status}: {words}")));
            }
        }
        Ok(Capture {
            process,
            said,
            file,
        })
    }
}

impl Capture {
    /// Ends the capture and reads it back.
    ///
    /// # Errors
    /// Where frames were missed, so that the capture proves nothing; or the file cannot be read.
    pub fn frames(self) -> Result<Vec<WireFrame>> {
        match self.end()? {
            (frames, 0) => Ok(frames),
            (_, missed) => Err(Failure(format!("the capture missed {missed} frames"))),
        }
    }

    /// Ends the capture and reads it back; says also how many frames passed unseen because `tcpdump` was too slow.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn end(mut self) -> Result<(Vec<WireFrame>, u64)> {
        // The kernel hands frames over in blocks; an unfinished block is due within tcpdump's second.
        std::thread::sleep(Duration::from_millis(1100));
        send_signal(self.process.id(), Signal::INT);
        let mut words = String::new();
        while self.said.read_line(&mut words)? > 0 {}
        self.process.wait()?;
        let missed = words.lines().find_map(|line| {
            line.trim()
                .strip_suffix(" packets dropped by kernel")?
                .parse()
                .ok()
        });
        let missed = missed
            .ok_or_else(|| Failure(format!("tcpdump does not say what it missed: {words}")))?;
        Ok((captured_frames(&self.file)?, missed))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// Reads a capture file. One that was cut short, as by a crash, ends with its last whole frame.
///
/// # Errors
/// Where it is not such a file.
pub fn captured_frames(file: &Path) -> Result<Vec<WireFrame>> {
    let not_pcap = |why| Failure(format!("{}: {why}", file.display()));
    let mut reader = PcapReader::new(BufReader::new(fs::File::open(file)?)).map_err(not_pcap)?;
    let mut frames = Vec::new();
    // Raw, for otherwise a frame that was longer than the snapshot is an error.
    while let Some(packet) = reader.next_raw_packet() {
        match packet {
            Ok(packet) => frames.push(WireFrame::parse(&packet.data, packet.orig_len)),
            Err(PcapError::IncompleteBuffer) => break,
            Err(why) => return Err(not_pcap(why)),
        }
    }
    Ok(frames)
}

impl WireFrame {
    fn parse(bytes: &[u8], length: u32) -> Self {
        let mut frame = Self {
            bytes: bytes.to_vec(),
            length,
            source: None,
            destination: None,
            protocol: WireProtocol::NotIp,
        };
        let ethertype = be16(bytes, 12);
        let (next_header, payload_at) = match (ethertype, bytes.get(ETHERNET)) {
            (Some(0x0800), Some(first)) => {
                frame.source = array::<4>(bytes, ETHERNET + 12).map(IpAddr::from);
                frame.destination = array::<4>(bytes, ETHERNET + 16).map(IpAddr::from);
                (
                    bytes.get(ETHERNET + 9),
                    ETHERNET + usize::from(first & 15) * 4,
                )
            }
            (Some(0x86dd), Some(_)) => {
                frame.source = array::<16>(bytes, ETHERNET + 8).map(IpAddr::from);
                frame.destination = array::<16>(bytes, ETHERNET + 24).map(IpAddr::from);
                (bytes.get(ETHERNET + 6), ETHERNET + 40)
            }
            _ => return frame,
        };
        let Some(next_header) = next_header else {
            return frame;
        };
        let esp = |at: usize, in_udp: bool| {
            Some(WireProtocol::Esp {
                in_udp,
                spi: array(bytes, at).map(u32::from_be_bytes)?,
                sequence: array(bytes, at + 4).map(u32::from_be_bytes)?,
                iv: array(bytes, at + 8).map(u64::from_be_bytes)?,
            })
        };
        let is_esp_port = |at: usize| be16(bytes, at) == Some(ESP_PORT);
        frame.protocol = match next_header {
            50 => esp(payload_at, false),
            17 if is_esp_port(payload_at) && is_esp_port(payload_at + 2) => {
                esp(payload_at + 8, true)
            }
            _ => None,
        }
        .unwrap_or(WireProtocol::Other(*next_header));
        frame
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}
