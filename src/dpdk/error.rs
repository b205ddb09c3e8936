//! What can go wrong while DPDK is set up, and what the operator can do about it.

use std::ffi::c_int;
use std::{fmt, io};

use crate::ids::PortId;

use super::sys;

/// An errno value as DPDK reports it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

impl Errno {
    /// What the last DPDK call of this thread left in `rte_errno`.
    pub(super) fn last() -> Self {
        // SAFETY: reads a thread-local of the calling thread, which exists from the thread's start.
        Self(unsafe { sys::gw_errno() })
    }

    /// From a return value that is a negative errno.
    pub(super) fn from_return(value: c_int) -> Self {
        Self(value.saturating_abs())
    }

    /// Whether the call is one that the driver does not have.
    pub(super) fn is_unsupported(self) -> bool {
        self.0 == rustix::io::Errno::NOTSUP.raw_os_error()
            || self.0 == rustix::io::Errno::NOSYS.raw_os_error()
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("no reason given"),
            number => write!(f, "{}", io::Error::from_raw_os_error(number)),
        }
    }
}

/// Why DPDK could not be set up as asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DpdkError {
    /// EAL can be started once in the life of a process.
    #[error("DPDK was already started in this process, and can be started only once")]
    AlreadyStarted,
    /// A name that DPDK would refuse, cut, or use as a path.
    #[error(
        "`{name}` cannot be used as a name: 1 to {max} letters, digits, `_` and `-` are allowed"
    )]
    BadName {
        /// The name as given.
        name: String,
        /// Most characters allowed.
        max: usize,
    },
    /// A device string that cannot be right.
    #[error("device `{device}`: {reason}")]
    BadDevice {
        /// The device as given.
        device: String,
        /// What is wrong with it and what would be right.
        reason: &'static str,
    },
    /// `rte_eal_init` failed.
    #[error("rte_eal_init failed with {}: {errno}; {hint}. DPDK's own messages are above", named(.devices))]
    Init {
        /// The devices as given.
        devices: Vec<String>,
        /// Why, as far as DPDK says.
        errno: Errno,
        /// What most often helps.
        hint: &'static str,
    },
    /// EAL started and one of its devices did not become a port.
    #[error("device `{device}` did not become a port; {hint}. DPDK's own messages are above")]
    DeviceMissing {
        /// The device as given.
        device: String,
        /// What most often helps.
        hint: &'static str,
    },
    /// There is no port of that number.
    #[error("there is no port {}", .0.0)]
    NoSuchPort(PortId),
    /// The port was opened before and not closed.
    #[error("port {} is open already", .0.0)]
    PortTaken(PortId),
    /// A pool of mbufs could not be made.
    #[error(
        "a pool of {count} mbufs of {data_room} bytes could not be made: {errno}; \
         it takes about {mib} MiB, of the memory that EAL was given"
    )]
    Pool {
        /// How many mbufs were asked for.
        count: u32,
        /// Their data room, in bytes, headroom included.
        data_room: u16,
        /// About what it takes, in MiB.
        mib: u64,
        /// Why.
        errno: Errno,
    },
    /// More queues than the driver has, or none.
    #[error(
        "port `{port}`: {rx} receive and {tx} transmit queues were asked for; its driver, {driver}, has 1 to {max_rx} and 1 to {max_tx}"
    )]
    Queues {
        /// The port's name.
        port: String,
        /// Its driver.
        driver: String,
        /// Receive queues asked for.
        rx: u16,
        /// Transmit queues asked for.
        tx: u16,
        /// Most receive queues.
        max_rx: u16,
        /// Most transmit queues.
        max_tx: u16,
    },
    /// The MTU was refused.
    #[error(
        "port `{port}`: its driver, {driver}, refused an MTU of {mtu} bytes: {errno}; it takes {min} to {max}{hint}"
    )]
    Mtu {
        /// The port's name.
        port: String,
        /// Its driver.
        driver: String,
        /// The MTU asked for, in bytes.
        mtu: u16,
        /// Least MTU, in bytes.
        min: u16,
        /// Greatest MTU, in bytes.
        max: u16,
        /// Why.
        errno: Errno,
        /// What else may limit it, for this driver.
        hint: &'static str,
    },
    /// Packets of this port would not fit the pool's mbufs.
    #[error(
        "port `{port}`: packets of up to {needed} bytes do not fit the pool's mbufs, which have room for {room}"
    )]
    DataRoom {
        /// The port's name.
        port: String,
        /// Bytes that a packet may have.
        needed: u32,
        /// Bytes that an mbuf has after its headroom.
        room: u16,
    },
    /// `net_af_xdp` needs a pool whose memory is in one piece.
    #[error(
        "port `{0}`: its driver needs a pool in one piece of memory; give DPDK more memory, or the pool fewer mbufs"
    )]
    PoolInPieces(String),
    /// A port was started before it was configured.
    #[error("port {} was not configured", .0.0)]
    NotConfigured(PortId),
    /// The thread is known to EAL already.
    #[error("this thread is an lcore already")]
    ThreadRegistered,
    /// The core cannot be used.
    #[error("cannot run on core {core}: {errno}; this process may use {}", list(.allowed))]
    Core {
        /// The core asked for.
        core: usize,
        /// Cores this thread may use.
        allowed: Vec<usize>,
        /// Why.
        errno: Errno,
    },
    /// Any other call that failed.
    #[error("{call} failed for {what}: {errno}")]
    Call {
        /// The function that failed.
        call: &'static str,
        /// What it was called for.
        what: String,
        /// Why.
        errno: Errno,
    },
}

impl DpdkError {
    /// `Ok` for 0 and above, else the error of `call`, which returned a negative errno.
    pub(super) fn check(
        value: c_int,
        call: &'static str,
        what: impl FnOnce() -> String,
    ) -> Result<(), Self> {
        if value >= 0 {
            return Ok(());
        }
        Err(Self::Call {
            call,
            what: what(),
            errno: Errno::from_return(value),
        })
    }
}

fn named(devices: &[String]) -> String {
    if devices.is_empty() {
        return "no devices".into();
    }
    let words: Vec<String> = devices.iter().map(|device| format!("`{device}`")).collect();
    words.join(", ")
}

fn list(cores: &[usize]) -> String {
    let words: Vec<String> = cores.iter().map(usize::to_string).collect();
    words.join(", ")
}
