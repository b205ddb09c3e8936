//! A gateway pair between two hosts, in network namespaces of this machine.
//!
//! ```text
//! host A            west              wire             east            host B
//! a0 ─────────── lan0  wan0 ─────── w1  w2 ─────── wan0  lan0 ─────────── b0
//! 10.1.0.10     10.1.0.1  192.0.2.1   bridge   192.0.2.2  10.2.0.1     10.2.0.10
//! fd00:1::10   fd00:1::1  2001:db8::1        2001:db8::2  fd00:2::1   fd00:2::10
//! ```
//!
//! The kernel has no address on the gateways' interfaces and forwards nothing, so whatever gets across went through
//! `simplon`. The wire is a bridge in a namespace of its own because a port that DPDK holds hides its packets from
//! `tcpdump`: packets that enter by XDP, or leave past the queueing layer, never reach a tap.
//!
//! Everything is taken down when a [`Testbed`] is dropped, also by a panic. What a killed process left behind is
//! swept when the next test bed is made. Only one test bed exists at a time on a machine: a file lock sees to it,
//! since polling workers of two of them would only measure the scheduler.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "shared by several test programs and the demo, each of which uses its own part"
)]

mod capture;
mod checks;
mod frr;
mod gateway;
mod nat;
mod netns;
pub mod router;
mod spec;
mod traffic;

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

pub use capture::{Capture, WireFrame, WireProtocol, captured_frames};
pub use checks::{
    assert_balanced, assert_clean_stop, assert_too_big_stops_at_limit, assert_tshark_agrees,
    assert_wire_shows_only_esp, is_balanced, run_course, sa_packets, shows_inner_packet,
};
pub use frr::{Bgp, BgpSpec};
pub use gateway::{Exit, Gateway};
pub use nat::{Nat, Outside};
pub use netns::{Netns, command_line, run};
pub use spec::{Cipher, Encapsulation, Family, PortKind, Site, TunnelSpec};
pub use traffic::{Flow, Ping, PingResult, RunningPing, Throughput, Transport};

/// Why something about the test bed did not work, in words for whoever runs it.
///
/// `Debug` prints the words as they are, so that `?` in a test shows them readably.
pub struct Failure(pub String);

/// What the functions of the test bed return.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure with these words.
    pub fn new(words: impl Into<String>) -> Self {
        Self(words.into())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

/// How long a gateway may take from its start to its first answer.
pub const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// Every name that a test bed gives to something outside its own directory starts with this.
const PREFIX: &str = "simplon-tb-";
/// Where DPDK, run by root, keeps a directory per process.
const DPDK_RUNTIME_DIR: &str = "/var/run/dpdk";
/// Where hugepages are usually mounted.
const HUGEPAGES_DIR: &str = "/dev/hugepages";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The two hosts, the two gateways and the wire between them.
pub struct Testbed {
    /// The gateway of host A.
    pub west: Gateway,
    /// The gateway of host B.
    pub east: Gateway,
    /// The host behind the west gateway.
    pub host_a: Netns,
    /// The host behind the east gateway.
    pub host_b: Netns,
    /// The bridge between the gateways.
    pub wire: Netns,
    spec: TunnelSpec,
    dir: PathBuf,
    /// Namespaces beside those above.
    extra: Vec<Netns>,
    // Held while the test bed exists; declared last, so that it is given back last.
    _lock: File,
}

impl Testbed {
    /// Whether this process can make network namespaces.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn available() -> std::result::Result<(), String> {
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces need root: run this with sudo -E".into());
        }
        let probe = format!("{}-probe", new_stem());
        let made = run(&["ip", "netns", "add", &probe]).and_then(|_| {
            run(&[
                "ip", "-n", &probe, "link", "add", "v0", "type", "veth", "peer", "name", "v1",
            ])?;
            run(&["ip", "-n", &probe, "link", "add", "br0", "type", "bridge"])
        });
        let _ = run(&["ip", "netns", "del", &probe]);
        made.map(drop).map_err(|why| {
            format!("this machine makes no network namespaces with veth and bridge devices: {why}")
        })
    }

    /// Makes the test bed for an integration test and starts both gateways; `None` where the person who runs the
    /// tests asked to leave out those that need namespaces, by `SIMPLON_SKIP_NETNS=1`.
    ///
    /// # Errors
    /// Whatever kept the test bed from standing; nothing is left behind.
    pub fn for_test(spec: TunnelSpec) -> Result<Option<Self>> {
        if std::env::var("SIMPLON_SKIP_NETNS").is_ok_and(|value| value == "1") {
            eprintln!("left out, as SIMPLON_SKIP_NETNS=1 asks");
            return Ok(None);
        }
        Self::available().map_err(Failure)?;
        let mut bed = Self::new(spec)?;
        bed.start_gateways()?;
        Ok(Some(bed))
    }

    /// Makes namespaces, interfaces, keys and policy files, and declares the keys fresh. Starts no gateway.
    ///
    /// # Errors
    /// Whatever kept the test bed from standing; nothing is left behind.
    pub fn new(spec: TunnelSpec) -> Result<Self> {
        let lock = lock()?;
        sweep();
        let stem = new_stem();
        let dir = std::env::temp_dir().join(&stem);
        remove_traces(&stem);
        fs::create_dir(&dir).map_err(|why| Failure(format!("{}: {why}", dir.display())))?;
        let keys = spec::write_keys(&dir, &spec)?;
        let bed = Self {
            west: Gateway::new(Site::West, &stem, &dir, &spec, &keys)?,
            east: Gateway::new(Site::East, &stem, &dir, &spec, &keys)?,
            host_a: Netns::new(format!("{stem}-hostA")),
            host_b: Netns::new(format!("{stem}-hostB")),
            wire: Netns::new(format!("{stem}-wire")),
            spec,
            dir,
            extra: Vec::new(),
            _lock: lock,
        };
        // From here on, dropping `bed` cleans up.
        netns::build(&bed)?;
        bed.west.state_init()?;
        bed.east.state_init()?;
        Ok(bed)
    }

    /// Starts both gateways and waits until both answer.
    ///
    /// # Errors
    /// The log of the gateway that did not come up.
    pub fn start_gateways(&mut self) -> Result<()> {
        self.west.start()?;
        self.east.start()?;
        self.west.wait_ready(READY_TIMEOUT)?;
        self.east.wait_ready(READY_TIMEOUT)
    }

    /// What the tunnel is.
    pub fn spec(&self) -> &TunnelSpec {
        &self.spec
    }

    /// The directory that goes with the test bed: keys, policies, state, logs, captures.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The gateway of a site.
    pub fn gateway(&self, site: Site) -> &Gateway {
        match site {
            Site::West => &self.west,
            Site::East => &self.east,
        }
    }

    /// The host of a site.
    pub fn host(&self, site: Site) -> &Netns {
        match site {
            Site::West => &self.host_a,
            Site::East => &self.host_b,
        }
    }

    /// One more namespace, which goes with the test bed; the last part of its name is `role`.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn extra_namespace(&mut self, role: &str) -> Result<Netns> {
        let stem = self.west.name().trim_end_matches("-west");
        let netns = Netns::new(format!("{stem}-{role}"));
        run(&["ip", "netns", "add", netns.name()])?;
        self.extra.push(netns.clone());
        run(&["ip", "-n", netns.name(), "link", "set", "lo", "up"])?;
        Ok(netns)
    }

    fn namespaces(&self) -> [&Netns; 5] {
        [
            &self.host_a,
            &self.host_b,
            &self.wire,
            self.west.netns(),
            self.east.netns(),
        ]
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        self.west.end();
        self.east.end();
        if std::thread::panicking() || std::env::var_os("SIMPLON_TESTBED_LOGS").is_some() {
            eprintln!("--- log of {}\n{}", self.west.name(), self.west.log());
            eprintln!("--- log of {}\n{}", self.east.name(), self.east.log());
        }
        for netns in self.namespaces().into_iter().chain(&self.extra) {
            netns.delete();
        }
        for gateway in [&self.west, &self.east] {
            remove_dpdk_traces(gateway.name());
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Asks `condition` again and again until it holds or `timeout` is over; says which.
pub fn wait_until(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if started.elapsed() > timeout {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What the names of one test bed have in common; no other one of this process or another has it.
fn new_stem() -> String {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{number}", std::process::id())
}

/// Waits for the machine's one test bed to be free.
fn lock() -> Result<File> {
    let path = std::env::temp_dir().join("simplon-testbed.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.map_err(|why| Failure(format!("{}: {why}", path.display())))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        eprintln!("another test bed is at work on this machine; waiting for it to end");
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|why| Failure(format!("{}: {why}", path.display())))?;
    }
    Ok(file)
}

/// Removes what test beds of processes that are no more have left behind.
fn sweep() {
    for folder in [
        Path::new("/run/netns"),
        &std::env::temp_dir(),
        Path::new(DPDK_RUNTIME_DIR),
    ] {
        for name in names_in(folder) {
            let Some(rest) = name.strip_prefix(PREFIX) else {
                continue;
            };
            let mut parts = rest.split('-');
            let (Some(pid), Some(count)) = (parts.next(), parts.next()) else {
                continue;
            };
            if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
                remove_traces(&format!("{PREFIX}{pid}-{count}"));
            }
        }
    }
}

/// Removes the namespaces, with the processes in them, and the directories of one test bed.
fn remove_traces(stem: &str) {
    let is_of_stem = |name: &String| name == stem || name.starts_with(&format!("{stem}-"));
    for name in names_in(Path::new("/run/netns"))
        .into_iter()
        .filter(is_of_stem)
    {
        Netns::new(name).delete();
    }
    for name in names_in(Path::new(DPDK_RUNTIME_DIR))
        .into_iter()
        .filter(is_of_stem)
    {
        remove_dpdk_traces(&name);
    }
    let _ = fs::remove_dir_all(std::env::temp_dir().join(stem));
}

/// Removes what DPDK leaves behind when a process with this file prefix is killed.
fn remove_dpdk_traces(file_prefix: &str) {
    let _ = fs::remove_dir_all(Path::new(DPDK_RUNTIME_DIR).join(file_prefix));
    for name in names_in(Path::new(HUGEPAGES_DIR)) {
        if name.starts_with(&format!("{file_prefix}map_")) {
            let _ = fs::remove_file(Path::new(HUGEPAGES_DIR).join(name));
        }
    }
}

/// What DPDK keeps on disk for a process with this file prefix, while it runs or because it was killed.
pub fn dpdk_traces(file_prefix: &str) -> Vec<PathBuf> {
    let runtime = Path::new(DPDK_RUNTIME_DIR).join(file_prefix);
    let pages = names_in(Path::new(HUGEPAGES_DIR))
        .into_iter()
        .filter(|n| n.starts_with(&format!("{file_prefix}map_")));
    let pages = pages.map(|name| Path::new(HUGEPAGES_DIR).join(name));
    std::iter::once(runtime)
        .filter(|path| path.exists())
        .chain(pages)
        .collect()
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Sends a signal to one process; not being there is no failure.
pub fn send_signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}
