//! The host side: what the packet path does not own goes to the kernel, and what the kernel sends comes back.
//!
//! Each port has a twin, a TAP interface of its name with its MAC address, MTU and addresses. ARP, neighbour discovery,
//! ICMP, IKE, routing protocols and ssh end there: the kernel's stack answers. A thread of its own carries frames between
//! the twins and the workers' rings, so that neither workers make a system call nor a flood holds up the control thread.
#![forbid(unsafe_code)]

mod icmp;
mod keepalive;
mod known;
mod monitor;
mod netlink;
mod next_hop;
mod path;
mod twin;

pub use keepalive::keepalive_frame;
pub use monitor::Monitor;
pub use path::PathReport;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use ipnet::IpNet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::warn;

use crate::buf::PacketBuf;
use crate::dpdk::mbuf::Mbuf;
use crate::dpdk::mempool::Mempool;
use crate::drop::PuntReason;
use crate::host::icmp::{Own, error_frame};
use crate::host::twin::Twin;
use crate::ids::PortIndex;
use crate::worker::counters::Counter;
use crate::worker::datapath::Shared;

/// Longest time that a punted packet waits for this thread to look. Workers cannot wake it: that is a system call.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};
/// Frames taken from one place before it is another's turn.
const TURN: usize = 64;
/// Time between two refills of the punt limits.
const REFILL: Duration = Duration::from_millis(10);
/// Reports of path MTUs that may wait for the control thread.
const REPORTS: usize = 64;
/// Bytes of an Ethernet header with two VLAN tags, before the IP packet.
const LINK_HEADERS: usize = 14 + 8;

/// What the host side has to know of a port.
#[derive(Clone, Debug)]
pub struct TwinSettings {
    /// Whether it is to have a twin.
    pub twin: bool,
    /// Its name, and its twin's.
    pub name: String,
    /// The port's MAC address.
    pub mac: [u8; 6],
    /// The port's MTU.
    pub mtu: u16,
    /// The port's addresses.
    pub addresses: Vec<IpNet>,
}

/// A twin that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the host interface {name}: {what}: {error}\n  help: {help}")]
pub struct HostError {
    name: String,
    what: &'static str,
    error: io::Error,
    help: &'static str,
}

/// What the host thread and the control thread both see of a port.
#[derive(Default)]
pub struct HostPort {
    /// Whether the port's link is up, as the control thread saw it last.
    pub link_up: AtomicBool,
    /// Whether there is a twin.
    pub has_twin: bool,
    /// Punted frames that the kernel took.
    pub to_host: Counter,
    /// Those that it did not take, or that had nowhere to go.
    pub to_host_dropped: Counter,
    /// Frames of the kernel's that went to a worker's ring.
    pub from_host: Counter,
    /// Those that had no room there, or no buffer.
    pub from_host_dropped: Counter,
    /// Packets to leave by the port that waited for a MAC address, and went on then.
    pub waited: Counter,
    /// Those that waited too long, or for whom there was no room.
    pub waited_dropped: Counter,
    /// ICMP errors made for packets that the port brought or should have taken.
    pub icmp_errors: Counter,
}

/// The twins, and what carries frames to and from them.
pub struct Host<'p> {
    twins: Vec<Option<Twin>>,
    own: Vec<Own>,
    ports: Arc<[HostPort]>,
    paths: Arc<ArrayQueue<PathReport>>,
    pool: &'p Mempool<'p>,
    /// A buffer that was taken for a frame and not used.
    spare: Option<Mbuf<'p>>,
    max_frame: usize,
}

/// Sends frames by the ports, whether they have twins or not.
pub struct Sender<'p> {
    pool: &'p Mempool<'p>,
}

impl<'p> Sender<'p> {
    /// Hands a frame to the worker that fills `port`'s first transmit queue. False where there is no buffer or no room.
    pub fn send(&self, shared: &Shared<'p>, port: PortIndex, frame: &[u8]) -> bool {
        let Some(mut mbuf) = self.pool.alloc() else {
            return false;
        };
        let Some(room) = mbuf.append(frame.len()) else {
            return false;
        };
        room.copy_from_slice(frame);
        let ring = shared.host.to_send.get(port.index());
        ring.is_some_and(|ring| ring.push(mbuf).is_ok())
    }
}

impl<'p> Host<'p> {
    /// Makes the twins of those ports that are to have one; `settings` are in the order of the ports.
    ///
    /// # Errors
    /// [`HostError`]; no twin is left then.
    pub fn new(settings: &[TwinSettings], pool: &'p Mempool<'p>) -> Result<Self, HostError> {
        let twins: Vec<Option<Twin>> = settings
            .iter()
            .map(|settings| settings.twin.then(|| Twin::new(settings)).transpose())
            .collect::<Result<_, _>>()?;
        let ports: Arc<[HostPort]> = twins
            .iter()
            .map(|twin| HostPort {
                has_twin: twin.is_some(),
                // As the kernel takes it for, until the control thread has looked.
                link_up: AtomicBool::new(true),
                ..HostPort::default()
            })
            .collect();
        let max_mtu = settings.iter().map(|settings| settings.mtu).max();
        let own = |settings: &TwinSettings| Own::new(settings.mac, &settings.addresses);
        Ok(Self {
            twins,
            own: settings.iter().map(own).collect(),
            ports,
            paths: Arc::new(ArrayQueue::new(REPORTS)),
            pool,
            spare: None,
            max_frame: usize::from(max_mtu.unwrap_or(0)).saturating_add(LINK_HEADERS),
        })
    }

    /// Follows what the kernel knows on the twins.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn monitor(&self) -> io::Result<Monitor> {
        let twins = (0u16..).map(PortIndex).zip(&self.twins);
        let twins = twins.filter_map(|(port, twin)| Some((port, twin.as_ref()?.index())));
        Monitor::new(self.twins.len(), twins)
    }

    /// What sends frames that are the gateway's own and not the kernel's.
    pub fn sender(&self) -> Sender<'p> {
        Sender { pool: self.pool }
    }

    /// What the control thread sees of each port.
    pub fn ports(&self) -> Arc<[HostPort]> {
        Arc::clone(&self.ports)
    }

    /// What routers say of our outer packets.
    pub fn path_reports(&self) -> Arc<ArrayQueue<PathReport>> {
        Arc::clone(&self.paths)
    }

    /// Carries frames until told to stop.
    pub fn run(&mut self, shared: &Shared<'p>, stop: &AtomicBool) {
        let mut refilled = Instant::now();
        let mut was_ready = false;
        while !stop.load(Ordering::Relaxed) {
            let passed = refilled.elapsed();
            if passed >= REFILL {
                shared.host.limits.refill(passed);
                refilled = Instant::now();
                self.follow_links();
            }
            let carried =
                self.give_punted(shared) + self.take_frames(shared) + self.send_errors(shared);
            was_ready = if carried > 0 {
                false
            } else if was_ready {
                // A twin that somebody deleted is ready all the time, and so is one whose frames find no buffer.
                std::thread::sleep(Duration::from_millis(1));
                false
            } else {
                self.wait()
            };
        }
    }

    /// Hands punted frames to the twins of the ports they came in by.
    fn give_punted(&self, shared: &Shared<'p>) -> usize {
        let mut carried = 0;
        while carried < TURN
            && let Some(punted) = shared.host.punts.pop()
        {
            carried += 1;
            if punted.reason == PuntReason::Icmp
                && let Some(report) = PathReport::of(punted.mbuf.data())
            {
                // What there is no room for is said again.
                let _ = self.paths.push(report);
            }
            let at = punted.port.index();
            let Some(port) = self.ports.get(at) else {
                continue;
            };
            let twin = self.twins.get(at).and_then(Option::as_ref);
            if twin.is_some_and(|twin| twin.send(punted.mbuf.data()).is_ok()) {
                port.to_host.add(1);
            } else {
                port.to_host_dropped.add(1);
            }
        }
        carried
    }

    /// Hands the kernel's frames to the workers.
    fn take_frames(&mut self, shared: &Shared<'p>) -> usize {
        let mut carried = 0usize;
        for at in 0..self.twins.len() {
            for _ in 0..TURN {
                if !self.take_frame(at, shared) {
                    break;
                }
                carried += 1;
            }
        }
        carried
    }

    /// Takes one frame from the twin of port `at`; false where there is none.
    fn take_frame(&mut self, at: usize, shared: &Shared<'p>) -> bool {
        let (Some(Some(twin)), Some(port)) = (self.twins.get(at), self.ports.get(at)) else {
            return false;
        };
        let Some(mut mbuf) = self.spare.take().or_else(|| self.pool.alloc()) else {
            // Frames stay with the kernel until there are buffers again.
            return false;
        };
        let room = self.max_frame.min(mbuf.tailroom());
        let Some(bytes) = mbuf.append(room) else {
            return false;
        };
        let len = match twin.receive(bytes) {
            Ok(len) => len.min(room),
            Err(_) => {
                mbuf.trim(room);
                self.spare = Some(mbuf);
                return false;
            }
        };
        mbuf.trim(room.saturating_sub(len));
        let ring = shared.host.to_send.get(at);
        if ring.is_some_and(|ring| ring.push(mbuf).is_ok()) {
            port.from_host.add(1);
        } else {
            port.from_host_dropped.add(1);
        }
        true
    }

    /// Sends the ICMP errors that are owed: back to the station on the port's link that the packet came from in clear, and to
    /// a host behind a tunnel as if it had come in by the protected port, so that it is sealed as any packet is.
    fn send_errors(&mut self, shared: &Shared<'p>) -> usize {
        let mut carried = 0;
        while carried < TURN
            && let Some(failed) = shared.host.failed.pop()
        {
            carried += 1;
            let at = failed.port.index();
            let (Some(own), Some(port)) = (self.own.get(at), self.ports.get(at)) else {
                continue;
            };
            let packet = failed.mbuf.data();
            let frame = error_frame(own, packet, failed.reason, failed.limit, failed.sender);
            let rings = match failed.sender {
                Some(_) => &shared.host.to_send,
                None => &shared.host.to_take,
            };
            let (Some(frame), Some(ring)) = (frame, rings.get(at)) else {
                continue;
            };
            let Some(mut mbuf) = self.spare.take().or_else(|| self.pool.alloc()) else {
                continue;
            };
            let Some(room) = mbuf.append(frame.len()) else {
                continue;
            };
            room.copy_from_slice(&frame);
            if ring.push(mbuf).is_ok() {
                port.icmp_errors.add(1);
            }
        }
        carried
    }

    /// Waits until a twin has a frame, but no longer than punted packets may wait. Returns whether one has.
    fn wait(&self) -> bool {
        let mut twins: Vec<PollFd<'_>> = self
            .twins
            .iter()
            .flatten()
            .map(|twin| PollFd::new(twin, PollFlags::IN))
            .collect();
        // An error is a signal, and then there is a reason to look around.
        poll(&mut twins, Some(&PAUSE)).is_ok_and(|ready| ready > 0)
    }

    /// Gives each twin the carrier that its port has.
    fn follow_links(&mut self) {
        for (twin, port) in self.twins.iter_mut().zip(self.ports.iter()) {
            if let Some(twin) = twin
                && let Err(error) = twin.set_carrier(port.link_up.load(Ordering::Relaxed))
            {
                warn!(
                    port = twin.name(),
                    "host interface: cannot set the carrier: {error}"
                );
            }
        }
    }
}
