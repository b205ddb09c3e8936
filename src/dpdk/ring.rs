//! Two ports joined back to back, for tests and for measuring without a card.

use std::marker::PhantomData;
use std::ptr::NonNull;

use crate::ids::PortId;

use super::burst::Burst;
use super::eal::Eal;
use super::error::{DpdkError, Errno};
use super::mempool::checked_name;
use super::sys;

/// The rings between two ports: what is sent on queue `n` of one is received on queue `n` of the other.
///
/// Drop it after both ports: packets that were still on their way then go back to their pools. The rings' own memory is
/// given back when the [`Eal`] is dropped.
#[derive(Debug)]
pub struct RingPair<'eal> {
    // INVARIANT: rings made by `rte_ring_create` for several producers and consumers, and never freed by themselves. What
    // is in them are mbufs that a burst gave up.
    rings: Vec<NonNull<sys::rte_ring>>,
    ports: (PortId, PortId),
    _eal: PhantomData<&'eal Eal>,
}

impl RingPair<'_> {
    /// The longest name.
    pub const NAME_MAX: usize = 12;
    /// Most queues.
    pub const QUEUES_MAX: u16 = 16;

    /// The two ports, to be opened.
    pub fn ports(&self) -> (PortId, PortId) {
        self.ports
    }
}

impl Drop for RingPair<'_> {
    fn drop(&mut self) {
        for ring in &self.rings {
            let mut burst = Burst::new();
            loop {
                let spare = burst.spare_mut();
                let room = u32::try_from(spare.len()).unwrap_or(0);
                // SAFETY: the ring lives for `'eal` and takes any number of consumers; `spare` has room for `room`
                // pointers.
                let count =
                    unsafe { sys::gw_ring_dequeue_burst(ring.as_ptr(), spare.as_mut_ptr(), room) };
                if count == 0 {
                    break;
                }
                // SAFETY: the ring held mbufs that a `tx_burst` gave up, and these `count` are now out of it.
                unsafe { burst.grow(count.min(room) as usize) };
                burst.clear();
            }
        }
    }
}

/// Makes two ports joined back to back, with `queues` (1 to 16) queues each way, each for at least `size` packets.
///
/// # Errors
/// [`DpdkError::BadName`]; [`DpdkError::Call`] where memory is short, a name is taken or a number is out of range. What
/// was made before stays until EAL ends.
pub fn ring_pair<'eal>(
    _eal: &'eal Eal,
    name: &str,
    queues: u16,
    size: u32,
) -> Result<RingPair<'eal>, DpdkError> {
    checked_name(name, RingPair::NAME_MAX)?;
    let there = rings(name, "ab", queues, size)?;
    let back = rings(name, "ba", queues, size)?;
    let a = port(&format!("{name}_a"), &back, &there)?;
    let b = port(&format!("{name}_b"), &there, &back)?;
    Ok(RingPair {
        rings: [there, back]
            .concat()
            .into_iter()
            .filter_map(NonNull::new)
            .collect(),
        ports: (a, b),
        _eal: PhantomData,
    })
}

fn rings(
    name: &str,
    way: &str,
    queues: u16,
    size: u32,
) -> Result<Vec<*mut sys::rte_ring>, DpdkError> {
    let refused = |errno| DpdkError::Call {
        call: "rte_ring_create",
        what: format!("ring pair `{name}` of {queues} queues for {size} packets"),
        errno,
    };
    // A ring holds one less than its size, which is a power of two.
    let size = size.checked_add(1).and_then(u32::checked_next_power_of_two);
    let Some(size) = size.filter(|_| (1..=RingPair::QUEUES_MAX).contains(&queues)) else {
        return Err(refused(Errno(rustix::io::Errno::INVAL.raw_os_error())));
    };
    (0..queues)
        .map(|queue| {
            let ring_name = checked_name(&format!("{name}_{way}{queue}"), RingPair::NAME_MAX + 6)?;
            // SAFETY: EAL runs, as the caller's borrow of it says, on this thread; the name is copied. No flags: several
            // producers and consumers.
            let ring =
                unsafe { sys::rte_ring_create(ring_name.as_ptr(), size, sys::GW_SOCKET_ID_ANY, 0) };
            if ring.is_null() {
                return Err(refused(Errno::last()));
            }
            Ok(ring)
        })
        .collect()
}

fn port(
    name: &str,
    rx: &[*mut sys::rte_ring],
    tx: &[*mut sys::rte_ring],
) -> Result<PortId, DpdkError> {
    let c_name = checked_name(name, RingPair::NAME_MAX + 2)?;
    let count = |rings: &[_]| u32::try_from(rings.len()).unwrap_or(0);
    // SAFETY: EAL runs, as the caller's borrow of it says, on this thread. Both arrays are read during the call; the rings
    // in them live as long as EAL, and so longer than the port.
    let port = unsafe {
        sys::rte_eth_from_rings(
            c_name.as_ptr(),
            rx.as_ptr(),
            count(rx),
            tx.as_ptr(),
            count(tx),
            0,
        )
    };
    u16::try_from(port)
        .map(PortId)
        .map_err(|_| DpdkError::Call {
            call: "rte_eth_from_rings",
            what: format!("port `{name}`"),
            errno: Errno::last(),
        })
}
