//! Ports and their queues: opened and configured on EAL's thread, polled by workers.

use std::cell::Cell;
use std::ffi::CStr;
use std::marker::PhantomData;
use std::ptr;

use crate::ids::{PortId, QueueId};

use super::bond::{Member, narrow};
use super::burst::Burst;
use super::eal::Eal;
use super::error::{DpdkError, Errno};
use super::mempool::Mempool;
use super::rss::{self, Rss};
use super::sys;

/// How a port is to work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortSettings {
    /// What the operator calls it, for messages.
    pub name: String,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// Receive queues, at least one.
    pub rx_queues: u16,
    /// Transmit queues, at least one.
    pub tx_queues: u16,
    /// Descriptors of each receive queue; brought within what the driver takes.
    pub rx_descriptors: u16,
    /// Descriptors of each transmit queue; brought within what the driver takes.
    pub tx_descriptors: u16,
}

/// What a port's driver can do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// The driver's name, such as `net_ice`.
    pub driver: String,
    /// Most receive queues.
    pub max_rx_queues: u16,
    /// Most transmit queues.
    pub max_tx_queues: u16,
    /// Least MTU, in bytes.
    pub min_mtu: u16,
    /// Greatest MTU, in bytes.
    pub max_mtu: u16,
    /// Whether it spreads packets over several receive queues.
    pub has_rss: bool,
}

/// How a port was configured, where that depends on the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Configured {
    /// Whether the device knows the MTU; if not, the driver has no way to set it.
    pub mtu_set: bool,
    /// Whether the device takes packets for any MAC address; if not, the driver has no such switch.
    pub promiscuous: bool,
    /// Whether packets are spread over the receive queues by their addresses.
    pub rss: bool,
}

/// A link's state as last seen by the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// Whether it is up.
    pub up: bool,
    /// Its speed in Mbit/s, if the driver knows.
    pub speed_mbps: Option<u32>,
}

/// The driver's counters since start. Zero also where a driver does not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortStats {
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets that the device dropped since its receive queues were full.
    pub rx_missed: u64,
    /// Packets received in error.
    pub rx_errors: u64,
    /// Times that no mbuf was left for a packet.
    pub rx_no_mbuf: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets that the device failed to send.
    pub tx_errors: u64,
}

/// The right to a DPDK port. Dropping it stops and closes the port, for good: a closed port cannot be opened again.
#[derive(Debug)]
struct Handle<'eal> {
    // INVARIANT: a valid port, marked as open in `eal` by this handle.
    id: PortId,
    eal: &'eal Eal,
    started: bool,
    promiscuous: bool,
    /// Valid ports too, marked as open: what a bond bonds, and what it configures, starts and stops.
    members: Vec<Member>,
}

/// A port that is open and does not run yet. Dropping it closes it.
#[derive(Debug)]
pub struct Port<'eal> {
    handle: Handle<'eal>,
    configured: Option<Configured>,
    queues: (u16, u16),
    rss_key: &'static [u8],
}

/// A port that runs. Dropping it stops and closes it; its queues borrow it, so that they are gone by then.
#[derive(Debug)]
pub struct StartedPort<'eal> {
    handle: Handle<'eal>,
    configured: Configured,
    queues: (u16, u16),
    rss: Option<Rss>,
    handed_out: Cell<bool>,
}

impl<'eal> Port<'eal> {
    /// Opens `id`, which no one else has open.
    ///
    /// # Errors
    /// [`DpdkError::NoSuchPort`], [`DpdkError::PortTaken`].
    pub fn open(eal: &'eal Eal, id: PortId) -> Result<Self, DpdkError> {
        eal.take_port(id)?;
        Ok(Self {
            handle: Handle {
                id,
                eal,
                started: false,
                promiscuous: false,
                members: Vec::new(),
            },
            configured: None,
            queues: (0, 0),
            rss_key: &[],
        })
    }

    /// DPDK's number for it.
    pub fn id(&self) -> PortId {
        self.handle.id
    }

    /// Says that this port is a bond, and that `id`, which no one else has open, is one of its members. It configures them and
    /// can do what all of them can; they are closed after it.
    ///
    /// # Errors
    /// [`DpdkError::NoSuchPort`], [`DpdkError::PortTaken`].
    pub fn add_member(&mut self, id: PortId) -> Result<(), DpdkError> {
        self.handle.eal.take_port(id)?;
        self.handle.members.push(Member::new(id));
        Ok(())
    }

    /// What the driver can do.
    ///
    /// # Errors
    /// [`DpdkError::Call`] where the driver does not say.
    pub fn limits(&self) -> Result<Limits, DpdkError> {
        Ok(Limits::new(&self.handle.dev_info()?))
    }

    /// The port's MAC address.
    ///
    /// # Errors
    /// [`DpdkError::Call`].
    pub fn mac(&self) -> Result<[u8; 6], DpdkError> {
        self.handle.mac()
    }

    /// Makes the head of `key` the hash key of RSS, where the driver has keys and they are no longer. To be called before
    /// [`Self::configure`]; without it the driver chooses.
    pub fn set_rss_key(&mut self, key: &'static [u8]) {
        self.rss_key = key;
    }

    /// Sets queues, MTU and receive mode; received packets will be mbufs of `pool`. Needed once before [`Self::start`].
    ///
    /// RSS is on if there is more than one receive queue and the device has it. Some drivers act on a kernel interface:
    /// `net_af_packet` and `net_af_xdp` set *its* MTU and promiscuous mode.
    ///
    /// `net_af_xdp` takes 2,048 mbufs for each receive queue here and does not give them back when it is closed, nor what
    /// it sent and did not look after since: DPDK 22.11 has no code for that. All other drivers tried do.
    ///
    /// # Errors
    /// [`DpdkError::Queues`], [`DpdkError::DataRoom`] and [`DpdkError::PoolInPieces`] change nothing; after [`DpdkError::Mtu`] and
    /// [`DpdkError::Call`] the port must be configured again before it can start.
    pub fn configure(
        &mut self,
        settings: &PortSettings,
        pool: &Mempool<'eal>,
    ) -> Result<Configured, DpdkError> {
        self.configured = None;
        let device = self.handle.dev_info()?;
        let limits = Limits::new(&device);
        check_queues(settings, &limits)?;
        self.check_pool(settings, &limits, pool)?;
        let rss = settings.rx_queues > 1 && limits.has_rss;
        self.configure_device(settings, &device, rss)?;
        let mtu_set = self.set_mtu(settings, &limits)?;
        self.set_up_queues(settings, &device, pool)?;
        // SAFETY: the handle holds a valid port, on EAL's thread.
        let promiscuous = unsafe { sys::rte_eth_promiscuous_enable(self.handle.id.0) } == 0;
        self.handle.promiscuous = promiscuous;
        self.queues = (settings.rx_queues, settings.tx_queues);
        let configured = Configured {
            mtu_set,
            promiscuous,
            rss,
        };
        self.configured = Some(configured);
        Ok(configured)
    }

    /// Lets packets in.
    ///
    /// # Errors
    /// [`DpdkError::NotConfigured`]; [`DpdkError::Call`] where the driver refuses. Either way the port is closed.
    pub fn start(mut self) -> Result<StartedPort<'eal>, DpdkError> {
        let id = self.handle.id;
        let configured = self.configured.ok_or(DpdkError::NotConfigured(id))?;
        // SAFETY: the handle holds a valid port, configured as just checked, on EAL's thread.
        let started = unsafe { sys::rte_eth_dev_start(id.0) };
        DpdkError::check(started, "rte_eth_dev_start", || format!("port {}", id.0))?;
        self.handle.started = true;
        let rss = if configured.rss {
            Some(self.settle_rss()?)
        } else {
            None
        };
        Ok(StartedPort {
            handle: self.handle,
            configured,
            queues: self.queues,
            rss,
            handed_out: Cell::new(false),
        })
    }

    fn settle_rss(&self) -> Result<Rss, DpdkError> {
        let device = self.handle.dev_info()?;
        let wanted = rss::Wanted {
            fields: sys::GW_RSS_FIELDS & device.flow_type_rss_offloads,
            key: rss::fitting(self.rss_key, &device),
            queues: self.queues.0,
        };
        Ok(rss::settle(self.handle.id, &device, wanted))
    }

    /// What drivers should check themselves. `net_null` writes the packet size it was told without a look at the mbuf, and
    /// `net_af_xdp` takes the pool for one array.
    fn check_pool(
        &self,
        settings: &PortSettings,
        limits: &Limits,
        pool: &Mempool<'eal>,
    ) -> Result<(), DpdkError> {
        let needed = self.handle.eal.longest_null_packet();
        if limits.driver == "net_null" && needed > u32::from(pool.data_room()) {
            return Err(DpdkError::DataRoom {
                port: settings.name.clone(),
                needed,
                room: pool.data_room(),
            });
        }
        let members = self.handle.members.iter();
        let members: Result<Vec<_>, _> = members.map(|member| dev_info(member.id)).collect();
        let all_limits = members?.iter().map(Limits::new).collect::<Vec<_>>();
        let any_af_xdp = all_limits
            .iter()
            .chain([limits])
            .any(|limits| limits.driver == "net_af_xdp");
        if any_af_xdp && !pool.is_one_piece() {
            return Err(DpdkError::PoolInPieces(settings.name.clone()));
        }
        Ok(())
    }

    fn configure_device(
        &self,
        settings: &PortSettings,
        device: &sys::rte_eth_dev_info,
        rss: bool,
    ) -> Result<(), DpdkError> {
        let id = self.handle.id;
        let mut conf = sys::rte_eth_conf::default();
        conf.rxmode.mtu = u32::from(settings.mtu);
        if rss {
            conf.rxmode.mq_mode = sys::rte_eth_rx_mq_mode_RTE_ETH_MQ_RX_RSS;
            // A driver that says nothing of keys gets none here.
            let key = match device.hash_key_size {
                0 => &[],
                _ => rss::fitting(self.rss_key, device),
            };
            let (key, len) = rss::key_pointer(key);
            conf.rx_adv_conf.rss_conf = sys::rte_eth_rss_conf {
                rss_key: key,
                rss_key_len: len,
                rss_hf: sys::GW_RSS_FIELDS & device.flow_type_rss_offloads,
            };
        }
        // SAFETY: the handle holds a valid port that is not started, on EAL's thread; `conf` is read during the call, and
        // the key that it points to, which drivers read at later times too, lives as long as the process.
        let done = unsafe {
            sys::rte_eth_dev_configure(
                id.0,
                settings.rx_queues,
                settings.tx_queues,
                &raw const conf,
            )
        };
        let limits = Limits::new(device);
        if done < 0 && !(limits.min_mtu..=limits.max_mtu).contains(&settings.mtu) {
            return Err(mtu_refused(settings, &limits, done));
        }
        DpdkError::check(done, "rte_eth_dev_configure", || named(settings, id))
    }

    /// Whether the driver could be told.
    fn set_mtu(&self, settings: &PortSettings, limits: &Limits) -> Result<bool, DpdkError> {
        // SAFETY: the handle holds a valid port, on EAL's thread.
        let done = unsafe { sys::rte_eth_dev_set_mtu(self.handle.id.0, settings.mtu) };
        match done {
            0.. => Ok(true),
            _ if Errno::from_return(done).is_unsupported() => Ok(false),
            _ => Err(mtu_refused(settings, limits, done)),
        }
    }

    fn set_up_queues(
        &self,
        settings: &PortSettings,
        device: &sys::rte_eth_dev_info,
        pool: &Mempool<'eal>,
    ) -> Result<(), DpdkError> {
        let id = self.handle.id;
        let rx_descriptors = within(settings.rx_descriptors, &device.rx_desc_lim);
        let tx_descriptors = within(settings.tx_descriptors, &device.tx_desc_lim);
        for queue in 0..settings.rx_queues {
            // SAFETY: the port is valid, configured with more queues than `queue`, and not started, on EAL's thread. The
            // pool lives until EAL ends, and so longer than the port.
            let done = unsafe {
                sys::rte_eth_rx_queue_setup(
                    id.0,
                    queue,
                    rx_descriptors,
                    sys::GW_SOCKET_ID_ANY.cast_unsigned(),
                    ptr::null(),
                    pool.as_ptr(),
                )
            };
            DpdkError::check(done, "rte_eth_rx_queue_setup", || {
                format!("{}, queue {queue}", named(settings, id))
            })?;
        }
        for queue in 0..settings.tx_queues {
            // SAFETY: as above.
            let done = unsafe {
                sys::rte_eth_tx_queue_setup(
                    id.0,
                    queue,
                    tx_descriptors,
                    sys::GW_SOCKET_ID_ANY.cast_unsigned(),
                    ptr::null(),
                )
            };
            DpdkError::check(done, "rte_eth_tx_queue_setup", || {
                format!("{}, queue {queue}", named(settings, id))
            })?;
        }
        Ok(())
    }
}

impl StartedPort<'_> {
    /// DPDK's number for it.
    pub fn id(&self) -> PortId {
        self.handle.id
    }

    /// How it spreads packets over its receive queues; `None` where it does not.
    pub fn rss(&self) -> Option<&Rss> {
        self.rss.as_ref()
    }

    /// How it was configured, where that depends on the driver.
    pub fn configured(&self) -> Configured {
        self.configured
    }

    /// The port's MAC address.
    ///
    /// # Errors
    /// [`DpdkError::Call`].
    pub fn mac(&self) -> Result<[u8; 6], DpdkError> {
        self.handle.mac()
    }

    /// The link as it is; does not wait for one that is coming up. To be asked of a bond now and then: some drivers,
    /// `net_tap` among them, promise to say when their link changes and do not, so the bond is told here what became of its
    /// members' links.
    ///
    /// # Errors
    /// [`DpdkError::Call`] where the driver does not say.
    pub fn link(&self) -> Result<Link, DpdkError> {
        for member in &self.handle.members {
            member.tell_link(link_of(member.id)?);
        }
        link_of(self.handle.id)
    }

    /// The driver's counters.
    ///
    /// # Errors
    /// [`DpdkError::Call`] where the driver has none.
    pub fn stats(&self) -> Result<PortStats, DpdkError> {
        let mut stats = sys::rte_eth_stats::default();
        // SAFETY: the handle holds a valid port, on EAL's thread, and `stats` is ours.
        let done = unsafe { sys::rte_eth_stats_get(self.handle.id.0, &raw mut stats) };
        DpdkError::check(done, "rte_eth_stats_get", || self.handle.describe())?;
        Ok(PortStats {
            rx_packets: stats.ipackets,
            rx_bytes: stats.ibytes,
            rx_missed: stats.imissed,
            rx_errors: stats.ierrors,
            rx_no_mbuf: stats.rx_nombuf,
            tx_packets: stats.opackets,
            tx_bytes: stats.obytes,
            tx_errors: stats.oerrors,
        })
    }

    /// The queues, in order. There is one handle for each: the second call returns none.
    pub fn queues(&self) -> Queues<'_> {
        let (rx, tx) = if self.handed_out.replace(true) {
            (0, 0)
        } else {
            self.queues
        };
        let port = self.handle.id;
        let rx = (0..rx).map(|queue| RxQueue {
            port,
            queue: QueueId(queue),
            _not_sync: PhantomData,
            _port: PhantomData,
        });
        let tx = (0..tx).map(|queue| TxQueue {
            port,
            queue: QueueId(queue),
            _not_sync: PhantomData,
            _port: PhantomData,
        });
        Queues {
            rx: rx.collect(),
            tx: tx.collect(),
        }
    }
}

/// A port's queues, to be given to workers.
#[derive(Debug)]
pub struct Queues<'port> {
    /// Receive queues by number.
    pub rx: Vec<RxQueue<'port>>,
    /// Transmit queues by number.
    pub tx: Vec<TxQueue<'port>>,
}

/// The receive side of one port/queue pair. Neither `Clone` nor `Sync`: DPDK allows one poller per queue.
#[derive(Debug)]
pub struct RxQueue<'port> {
    // INVARIANT: a queue of a port that runs for `'port`, and the only handle for it.
    port: PortId,
    queue: QueueId,
    _not_sync: PhantomData<*mut ()>,
    _port: PhantomData<&'port ()>,
}

// SAFETY: two numbers; moving the handle moves the right to poll. `Sync` stays off, so one thread has it at a time.
unsafe impl Send for RxQueue<'_> {}

impl<'port> RxQueue<'port> {
    /// The port's number.
    pub fn port(&self) -> PortId {
        self.port
    }

    /// The queue's number.
    pub fn queue(&self) -> QueueId {
        self.queue
    }

    /// Adds packets that came in to `burst`, as many as it has room for, and returns how many.
    ///
    /// Best with an empty burst: some drivers fetch nothing when asked for just a few.
    #[inline]
    pub fn rx_burst(&mut self, burst: &mut Burst<'port>) -> usize {
        let spare = burst.spare_mut();
        // At most the capacity of a burst.
        #[expect(clippy::cast_possible_truncation)]
        let room = spare.len() as u16;
        // SAFETY: the port runs for `'port`, and `&mut self` is the only poller of the queue. `spare` has room for `room`
        // pointers.
        let count =
            unsafe { sys::gw_eth_rx_burst(self.port.0, self.queue.0, spare.as_mut_ptr(), room) };
        let count = usize::from(count.min(room));
        // SAFETY: the driver wrote `count` mbufs to the first spare slots and gave them up, each filled as `Mbuf` has it;
        // they are of the port's pool, which lives as long as EAL.
        unsafe { burst.grow(count) };
        count
    }
}

/// The transmit side of one port/queue pair. Neither `Clone` nor `Sync`: DPDK allows one sender per queue.
#[derive(Debug)]
pub struct TxQueue<'port> {
    // INVARIANT: a queue of a port that runs for `'port`, and the only handle for it.
    port: PortId,
    queue: QueueId,
    _not_sync: PhantomData<*mut ()>,
    _port: PhantomData<&'port ()>,
}

// SAFETY: as for `RxQueue`.
unsafe impl Send for TxQueue<'_> {}

impl TxQueue<'_> {
    /// The port's number.
    pub fn port(&self) -> PortId {
        self.port
    }

    /// The queue's number.
    pub fn queue(&self) -> QueueId {
        self.queue
    }

    /// Hands as much of `burst` to the device as its ring takes, in order, and returns how many that were. They are the
    /// driver's; the rest stays in `burst`.
    #[inline]
    pub fn tx_burst(&mut self, burst: &mut Burst<'_>) -> usize {
        let held = burst.held_mut();
        // At most the capacity of a burst.
        #[expect(clippy::cast_possible_truncation)]
        let count = held.len() as u16;
        // SAFETY: the port runs for `'port`, and `&mut self` is the only sender on the queue. `held` are mbufs that the
        // burst owns (its invariant), of pools that live as long as EAL, and so longer than the driver holds them.
        let sent =
            unsafe { sys::gw_eth_tx_burst(self.port.0, self.queue.0, held.as_mut_ptr(), count) };
        let sent = usize::from(sent);
        burst.forget_front(sent);
        sent
    }
}

impl Limits {
    fn new(device: &sys::rte_eth_dev_info) -> Self {
        let driver = if device.driver_name.is_null() {
            String::new()
        } else {
            // SAFETY: a driver's name is a C string in its static data, and drivers are never unloaded.
            let name = unsafe { CStr::from_ptr(device.driver_name) };
            name.to_string_lossy().into_owned()
        };
        Self {
            driver,
            max_rx_queues: device.max_rx_queues,
            max_tx_queues: device.max_tx_queues,
            min_mtu: device.min_mtu,
            max_mtu: max_mtu(device),
            has_rss: device.flow_type_rss_offloads & sys::GW_RSS_FIELDS != 0,
        }
    }
}

impl Handle<'_> {
    fn describe(&self) -> String {
        format!("port {}", self.id.0)
    }

    /// A bond that is not configured yet says that it can do everything, so its members are asked as well.
    fn dev_info(&self) -> Result<sys::rte_eth_dev_info, DpdkError> {
        let mut device = dev_info(self.id)?;
        for member in &self.members {
            narrow(&mut device, &dev_info(member.id)?);
        }
        Ok(device)
    }

    fn mac(&self) -> Result<[u8; 6], DpdkError> {
        let mut mac = sys::rte_ether_addr::default();
        // SAFETY: the handle holds a valid port, on EAL's thread, and `mac` is ours.
        let done = unsafe { sys::rte_eth_macaddr_get(self.id.0, &raw mut mac) };
        DpdkError::check(done, "rte_eth_macaddr_get", || self.describe())?;
        Ok(mac.addr_bytes)
    }
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        if self.promiscuous {
            // A kernel interface would stay promiscuous.
            // SAFETY: the handle holds a valid port, on EAL's thread.
            unsafe { sys::rte_eth_promiscuous_disable(self.id.0) };
        }
        if self.started {
            // SAFETY: the handle holds a valid port that runs, on EAL's thread. No queue handle is left: they borrow the
            // `StartedPort` that this handle is in.
            unsafe { sys::rte_eth_dev_stop(self.id.0) };
        }
        // A bond leaves its members stopped, and they are still there.
        let members = self.members.drain(..).map(|member| member.id);
        for id in std::iter::once(self.id).chain(members) {
            // SAFETY: the port is stopped, and this is the only handle to it.
            if unsafe { sys::rte_eth_dev_close(id.0) } == 0 {
                self.eal.release_port(id);
            }
        }
    }
}

/// What the driver of a port that a handle holds says of it, on EAL's thread.
fn dev_info(id: PortId) -> Result<sys::rte_eth_dev_info, DpdkError> {
    let mut device = sys::rte_eth_dev_info::default();
    // SAFETY: DPDK checks the number, and `device` is ours.
    let done = unsafe { sys::rte_eth_dev_info_get(id.0, &raw mut device) };
    DpdkError::check(done, "rte_eth_dev_info_get", || format!("port {}", id.0))?;
    Ok(device)
}

fn link_of(id: PortId) -> Result<Link, DpdkError> {
    let mut link = sys::rte_eth_link::default();
    // SAFETY: DPDK checks the number, and `link` is ours.
    let done = unsafe { sys::rte_eth_link_get_nowait(id.0, &raw mut link) };
    DpdkError::check(done, "rte_eth_link_get_nowait", || format!("port {}", id.0))?;
    let known = link.link_speed != 0 && link.link_speed != sys::RTE_ETH_SPEED_NUM_UNKNOWN;
    Ok(Link {
        up: link.link_status() != 0,
        speed_mbps: known.then_some(link.link_speed),
    })
}

/// What `rte_eth_dev_configure` holds an MTU against: the driver's own limit, and its longest frame. What a frame has
/// around its packet is the difference of the two if the driver gives both, else a header and a checksum.
pub(super) fn max_mtu(device: &sys::rte_eth_dev_info) -> u16 {
    let own = u32::from(device.max_mtu);
    let longest = device.max_rx_pktlen;
    let around = if device.max_mtu != u16::MAX && longest > own {
        longest - own
    } else {
        18
    };
    u16::try_from(own.min(longest.saturating_sub(around))).unwrap_or(u16::MAX)
}

fn check_queues(settings: &PortSettings, limits: &Limits) -> Result<(), DpdkError> {
    let fits = (1..=limits.max_rx_queues).contains(&settings.rx_queues)
        && (1..=limits.max_tx_queues).contains(&settings.tx_queues);
    if fits {
        return Ok(());
    }
    Err(DpdkError::Queues {
        port: settings.name.clone(),
        driver: limits.driver.clone(),
        rx: settings.rx_queues,
        tx: settings.tx_queues,
        max_rx: limits.max_rx_queues,
        max_tx: limits.max_tx_queues,
    })
}

/// `wanted` brought within what the driver takes. Limits of 0 mean that it does not care.
pub(super) fn within(wanted: u16, limits: &sys::rte_eth_desc_lim) -> u16 {
    let most = if limits.nb_max == 0 {
        u16::MAX
    } else {
        limits.nb_max
    };
    let align = limits.nb_align.max(1);
    let count = wanted.max(1).clamp(limits.nb_min.min(most), most);
    let down = count - count % align;
    if down >= limits.nb_min.max(1) {
        down
    } else {
        down.saturating_add(align).min(most)
    }
}

fn named(settings: &PortSettings, id: PortId) -> String {
    format!("port `{}` (DPDK port {})", settings.name, id.0)
}

fn mtu_refused(settings: &PortSettings, limits: &Limits, returned: i32) -> DpdkError {
    let hint = match limits.driver.as_str() {
        "net_af_packet" => {
            ", less where its `framesz=` is smaller, and what the kernel interface takes"
        }
        "net_af_xdp" => ", and what the kernel interface takes with XDP",
        _ => "",
    };
    DpdkError::Mtu {
        port: settings.name.clone(),
        driver: limits.driver.clone(),
        mtu: settings.mtu,
        min: limits.min_mtu,
        max: limits.max_mtu,
        errno: Errno::from_return(returned),
        hint,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(nb_min: u16, nb_max: u16, nb_align: u16) -> sys::rte_eth_desc_lim {
        sys::rte_eth_desc_lim {
            nb_min,
            nb_max,
            nb_align,
            ..Default::default()
        }
    }

    #[test]
    fn greatest_mtu_fits_the_longest_frame() {
        let device = |max_mtu, max_rx_pktlen| sys::rte_eth_dev_info {
            max_mtu,
            max_rx_pktlen,
            ..Default::default()
        };
        assert_eq!(max_mtu(&device(u16::MAX, 1518)), 1500);
        assert_eq!(max_mtu(&device(u16::MAX, u32::MAX)), u16::MAX);
        assert_eq!(max_mtu(&device(9000, 9026)), 9000);
        assert_eq!(max_mtu(&device(9000, 2000)), 1982);
        assert_eq!(max_mtu(&device(1500, 0)), 0);
    }

    #[test]
    fn descriptor_counts_are_brought_within_limits() {
        assert_eq!(within(1024, &limits(0, 0, 0)), 1024);
        assert_eq!(within(1024, &limits(32, 512, 32)), 512);
        assert_eq!(within(10, &limits(32, 4096, 32)), 32);
        assert_eq!(within(100, &limits(64, 4096, 32)), 96);
        assert_eq!(within(50, &limits(50, 4096, 32)), 64);
        assert_eq!(within(0, &limits(0, 0, 1)), 1);
    }
}
