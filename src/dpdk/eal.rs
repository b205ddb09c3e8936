//! DPDK's Environment Abstraction Layer: started once, stopped last.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt;
use std::fs;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::ids::PortId;

use super::error::{DpdkError, Errno};
use super::lcore::{Threads, allowed_cores};
use super::mempool::checked_name;
use super::sys;

const MAX_PORTS: usize = sys::RTE_MAX_ETHPORTS as usize;

/// Whether this process has started EAL. It cannot be started again, not even after its end.
static STARTED: AtomicBool = AtomicBool::new(false);

/// What becomes a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Device {
    /// A card, by its PCI address, with or without the domain: `0000:3b:00.0` or `3b:00.0`.
    Pci(String),
    /// A virtual device as DPDK writes it: driver and number, and arguments after a comma, as in
    /// `net_af_packet0,iface=eth1`.
    Virtual(String),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(text) | Self::Virtual(text) => f.write_str(text),
        }
    }
}

impl Device {
    /// What DPDK calls the port: the full PCI address, or the virtual device without its arguments.
    fn port_name(&self) -> Result<String, DpdkError> {
        let refused = |reason| DpdkError::BadDevice {
            device: self.to_string(),
            reason,
        };
        match self {
            Self::Pci(address) => full_pci_address(address).ok_or_else(|| {
                refused("a PCI address looks like 0000:3b:00.0 or 3b:00.0, as `lspci` prints it")
            }),
            Self::Virtual(text) => {
                let name = text.split(',').next().unwrap_or_default();
                let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
                if !name.starts_with("net_") || !name.bytes().all(good) || text.contains('\0') {
                    return Err(refused(
                        "a virtual device is a network driver and a number, then its arguments, \
                         as in `net_af_packet0,iface=eth1`",
                    ));
                }
                Ok(name.into())
            }
        }
    }
}

/// `dddd:bb:dd.f` in lower case from that or from `bb:dd.f`; `None` for anything else.
fn full_pci_address(text: &str) -> Option<String> {
    let hex = |part: &str, len: usize| {
        part.len() == len && part.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let (rest, function) = text.rsplit_once('.')?;
    let mut parts: Vec<&str> = rest.split(':').collect();
    if parts.len() == 2 {
        parts.insert(0, "0000");
    }
    let [domain, bus, device] = parts.as_slice() else {
        return None;
    };
    let good = hex(domain, 4) && hex(bus, 2) && hex(device, 2) && hex(function, 1);
    good.then(|| format!("{domain}:{bus}:{device}.{function}").to_ascii_lowercase())
}

/// How to start EAL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EalConfig {
    /// Tells this instance from others on the machine (EAL's file prefix).
    pub name: String,
    /// Memory for mbufs and all else of DPDK's, in MiB.
    pub memory_mib: u32,
    /// What becomes a port. Nothing else is touched.
    pub devices: Vec<Device>,
}

/// EAL, running. Dropping it closes what is left open and gives back all of DPDK's memory.
///
/// Neither `Send` nor `Sync`: DPDK's set-up calls are made on the thread that started it, one after another. Workers get
/// queues, pools and [`Threads`].
#[derive(Debug)]
pub struct Eal {
    runtime_dir: PathBuf,
    /// Which ports are open, by number.
    open: [Cell<bool>; MAX_PORTS],
    /// Longest packet that a `net_null` device was told to make up. The driver does not check it against the mbuf.
    longest_null_packet: u32,
    _thread: PhantomData<*mut ()>,
}

impl Eal {
    /// The longest name.
    pub const NAME_MAX: usize = 32;

    /// Starts EAL, with the calling thread as its only lcore, and the thread's choice of cores left as it is.
    ///
    /// Uses hugepages where enough are free and a hugetlbfs is mounted, else ordinary pages. DPDK's log goes to standard
    /// error, from warnings up. Block signals before: EAL makes threads.
    ///
    /// # Errors
    /// [`DpdkError::AlreadyStarted`], [`DpdkError::BadName`] and [`DpdkError::BadDevice`] start nothing;
    /// [`DpdkError::Init`] where DPDK refuses; [`DpdkError::DeviceMissing`] where it started and a device did not come
    /// up. After the last two this process cannot try again.
    pub fn init(config: &EalConfig) -> Result<Self, DpdkError> {
        checked_name(&config.name, Self::NAME_MAX)?;
        let args = arguments(config)?;
        if STARTED.swap(true, Ordering::AcqRel) {
            return Err(DpdkError::AlreadyStarted);
        }
        start(args).map_err(|errno| init_error(config, errno))?;
        let eal = Self {
            runtime_dir: runtime_dir(),
            open: [const { Cell::new(false) }; MAX_PORTS],
            longest_null_packet: config
                .devices
                .iter()
                .map(null_packet_size)
                .max()
                .unwrap_or(0),
            _thread: PhantomData,
        };
        match config
            .devices
            .iter()
            .find(|device| eal.port_by_device(device).is_none())
        {
            None => Ok(eal),
            Some(missing) => Err(DpdkError::DeviceMissing {
                device: missing.to_string(),
                hint: missing_hint(missing),
            }),
        }
    }

    /// Whether DPDK's memory is hugepages.
    pub fn uses_hugepages(&self) -> bool {
        // SAFETY: EAL runs for as long as `self`; the call reads its configuration.
        unsafe { sys::rte_eal_has_hugepages() != 0 }
    }

    /// The port that `device` became.
    pub fn port_by_device(&self, device: &Device) -> Option<PortId> {
        let name = CString::new(device.port_name().ok()?).ok()?;
        let mut port = 0;
        // SAFETY: EAL runs and ports come and go on this thread only, as `Eal` is not `Sync`; the name is a C string and
        // `port` is ours.
        let found = unsafe { sys::rte_eth_dev_get_port_by_name(name.as_ptr(), &raw mut port) };
        (found == 0).then_some(PortId(port))
    }

    /// Ticks of [`super::tsc`] in a second.
    pub fn tsc_hz(&self) -> u64 {
        // SAFETY: reads a number that `rte_eal_init` measured.
        unsafe { sys::rte_get_tsc_hz() }
    }

    /// What other threads need to register with EAL.
    pub fn threads(&self) -> Threads<'_> {
        Threads::new()
    }

    pub(super) fn longest_null_packet(&self) -> u32 {
        self.longest_null_packet
    }

    /// Marks `port` as open; false where it was.
    pub(super) fn take_port(&self, port: PortId) -> Result<(), DpdkError> {
        // SAFETY: EAL runs; the call compares the number with a table, on the only thread that changes it.
        let exists = unsafe { sys::rte_eth_dev_is_valid_port(port.0) } != 0;
        match self.open.get(port.index()) {
            Some(open) if exists => {
                if open.replace(true) {
                    return Err(DpdkError::PortTaken(port));
                }
                Ok(())
            }
            _ => Err(DpdkError::NoSuchPort(port)),
        }
    }

    pub(super) fn release_port(&self, port: PortId) {
        if let Some(open) = self.open.get(port.index()) {
            open.set(false);
        }
    }
}

impl Drop for Eal {
    fn drop(&mut self) {
        // SAFETY: EAL runs, and nothing that safe code can still reach uses its memory: pools, ports, queues, mbufs and
        // thread registrations borrow `self`. Ports that were leaked have no queues any more and are closed by it.
        unsafe { sys::rte_eal_cleanup() };
        // EAL leaves its files behind. They are this instance's alone, by its name.
        if !self.runtime_dir.as_os_str().is_empty() {
            let _ = fs::remove_dir_all(&self.runtime_dir);
        }
    }
}

/// DPDK's version, such as `DPDK 22.11.11`. Works without [`Eal`].
pub fn version() -> String {
    // SAFETY: needs no EAL, and returns a string made at first use.
    let text = unsafe { sys::rte_version() };
    // SAFETY: it is a C string in static memory.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

fn start(args: Vec<CString>) -> Result<(), Errno> {
    // EAL reorders the array and keeps the last program name it saw, so the strings stay for good.
    let mut argv: Vec<*mut c_char> = args.into_iter().map(CString::into_raw).collect();
    let count = c_int::try_from(argv.len()).unwrap_or(c_int::MAX);
    argv.push(std::ptr::null_mut());
    // SAFETY: sets a pointer, before EAL has threads. Without it the log goes to syslog too.
    unsafe { sys::gw_log_to_stderr() };
    // SAFETY: called once in this process (`STARTED`), with `count` C strings and a null after them.
    if unsafe { sys::rte_eal_init(count, argv.as_mut_ptr()) } >= 0 {
        return Ok(());
    }
    let errno = Errno::last();
    // EAL has made it, if nothing more. Whatever is in it may be another process's of the same name.
    let _ = fs::remove_dir(runtime_dir());
    Err(errno)
}

fn init_error(config: &EalConfig, errno: Errno) -> DpdkError {
    let hint = match rustix::io::Errno::from_raw_os_error(errno.0) {
        rustix::io::Errno::ACCESS | rustix::io::Errno::PERM => "DPDK wants to run as root",
        rustix::io::Errno::NOMEM => "see that the machine has the memory, or ask for less",
        rustix::io::Errno::NODEV | rustix::io::Errno::INVAL => {
            "see that drivers and their arguments are spelled right"
        }
        _ => "another process may run under this name, or this user may not write to /var/run/dpdk",
    };
    DpdkError::Init {
        devices: config.devices.iter().map(Device::to_string).collect(),
        errno,
        hint,
    }
}

fn arguments(config: &EalConfig) -> Result<Vec<CString>, DpdkError> {
    let mut args: Vec<String> = vec![
        "simplon".into(),
        format!("--file-prefix={}", config.name),
        "--log-level=warning".into(),
        // It warns at every start of a legacy socket that nothing needs.
        "--log-level=lib.telemetry:error".into(),
        format!("--lcores={}", main_lcore(&allowed_cores())),
        format!("-m{}", config.memory_mib),
    ];
    if free_hugepage_mib() >= u64::from(config.memory_mib) {
        args.push("--huge-unlink=always".into());
    } else {
        args.push("--no-huge".into());
    }
    let mut any_pci = false;
    for device in &config.devices {
        let name = device.port_name()?;
        match device {
            Device::Pci(_) => {
                any_pci = true;
                args.push(format!("--allow={name}"));
            }
            Device::Virtual(text) => args.push(format!("--vdev={text}")),
        }
    }
    if !any_pci {
        args.push("--no-pci".into());
        args.push("--iova-mode=va".into());
    }
    args.into_iter()
        .map(|arg| {
            CString::new(arg).map_err(|_| DpdkError::BadDevice {
                device: String::new(),
                reason: "a NUL byte",
            })
        })
        .collect()
}

/// One lcore on all of `cores`: with a single core EAL would narrow this thread, and every later one, to it.
fn main_lcore(cores: &[usize]) -> String {
    if cores.is_empty() {
        return "0".into();
    }
    let list: Vec<String> = cores.iter().map(usize::to_string).collect();
    format!("0@({})", list.join(","))
}

/// MiB of free hugepages that a mounted hugetlbfs can hand out.
fn free_hugepage_mib() -> u64 {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = |kib: u64| {
        fs::read_to_string(format!(
            "/sys/kernel/mm/hugepages/hugepages-{kib}kB/free_hugepages"
        ))
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .unwrap_or(0)
    };
    mounted_page_kib(&mounts, &meminfo)
        .into_iter()
        .map(|kib| kib.saturating_mul(free(kib)) / 1024)
        .sum()
}

/// The page sizes, in KiB, for which a hugetlbfs is mounted.
fn mounted_page_kib(mounts: &str, meminfo: &str) -> Vec<u64> {
    let default_kib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("Hugepagesize:"))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok());
    let mut sizes: Vec<u64> = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(2);
            let (kind, options) = (words.next()?, words.next()?);
            if kind != "hugetlbfs" {
                return None;
            }
            let size = options
                .split(',')
                .find_map(|option| option.strip_prefix("pagesize="));
            match size {
                None => default_kib,
                Some(text) => kib(text),
            }
        })
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// `2M` or `1G` or `64K` in KiB.
fn kib(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    match unit {
        "K" | "k" => Some(number),
        "M" | "m" => number.checked_mul(1 << 10),
        "G" | "g" => number.checked_mul(1 << 20),
        _ => None,
    }
}

/// The `size=` of a `net_null` device, which makes up packets of that length; as good as endless where it is no number.
fn null_packet_size(device: &Device) -> u32 {
    match device {
        Device::Virtual(text) if text.starts_with("net_null") => text
            .split(',')
            .filter_map(|argument| argument.strip_prefix("size="))
            .map(|size| size.parse().unwrap_or(u32::MAX))
            .max()
            .unwrap_or(64),
        _ => 0,
    }
}

fn runtime_dir() -> PathBuf {
    // SAFETY: EAL has read its arguments, so the path is set; it is a static buffer at any rate.
    let path = unsafe { sys::rte_eal_get_runtime_dir() };
    if path.is_null() {
        return PathBuf::new();
    }
    // SAFETY: it is a C string in static memory.
    let path = unsafe { CStr::from_ptr(path) };
    PathBuf::from(path.to_string_lossy().into_owned())
}

fn missing_hint(device: &Device) -> &'static str {
    match device {
        Device::Pci(_) => {
            "see `dpdk-devbind.py --status`: the card must be bound to vfio-pci, or have a driver that shares it"
        }
        Device::Virtual(text) if text.contains("iface=") => {
            "see that the driver is spelled right and the interface exists (`ip link`), and that this is root"
        }
        Device::Virtual(_) => "see that the driver and its arguments are spelled right",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_address_gains_its_domain() {
        assert_eq!(full_pci_address("3B:00.0").as_deref(), Some("0000:3b:00.0"));
        assert_eq!(
            full_pci_address("0001:3b:00.1").as_deref(),
            Some("0001:3b:00.1")
        );
        for bad in ["", "3b:00", "eth0", "3b:0.0", "00000:3b:00.0", "3b:00.0,x"] {
            assert_eq!(full_pci_address(bad), None, "{bad}");
        }
    }

    #[test]
    fn virtual_device_must_be_a_network_driver() {
        let name = |text: &str| Device::Virtual(text.into()).port_name();
        assert_eq!(name("net_pcap0,rx_pcap=a.pcap").as_deref(), Ok("net_pcap0"));
        for bad in ["", "eth0", "crypto_null0", "net_null0 --x"] {
            assert!(
                matches!(name(bad), Err(DpdkError::BadDevice { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn hugetlbfs_mounts_tell_their_page_size() {
        let meminfo = "HugePages_Free: 0\nHugepagesize:       2048 kB\n";
        let mounts = "none /a hugetlbfs rw,relatime 0 0\nnone /b hugetlbfs rw,pagesize=1G 0 0\nx /c tmpfs rw 0 0\n";
        assert_eq!(mounted_page_kib(mounts, meminfo), [2048, 1 << 20]);
        assert!(mounted_page_kib("", meminfo).is_empty());
    }

    #[test]
    fn main_lcore_floats_over_all_allowed_cores() {
        assert_eq!(main_lcore(&[0, 3]), "0@(0,3)");
        assert_eq!(main_lcore(&[]), "0");
    }

    #[test]
    fn null_device_size_is_read() {
        let size = |text: &str| null_packet_size(&Device::Virtual(text.into()));
        assert_eq!(size("net_null0"), 64);
        assert_eq!(size("net_null0,copy=1,size=1400"), 1400);
        assert_eq!(size("net_null0,size=0xffff"), u32::MAX);
        assert_eq!(size("net_pcap0,size=9"), 0);
    }
}
