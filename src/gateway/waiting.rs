//! First packets, which wait until the kernel has found their next hop's MAC address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::host::HostPort;
use crate::ids::PortIndex;
use crate::policy::plan::Plan;
use crate::policy::tables::Tables;
use crate::worker::datapath::Shared;
use crate::worker::forward::forward_late;
use crate::worker::host::{HostRings, Towards, Waiting};

/// Most packets that wait.
const MOST: usize = 256;
/// Most packets that wait for one destination (RFC 1122 section 2.3.2.2 asks for one at least).
const MOST_EACH: usize = 8;
/// Longest time that a packet waits: the kernel asks once a second, so that it asks a second time.
const PATIENCE: Duration = Duration::from_millis(1500);

/// A packet, whom it is for, and since when it waits.
struct Guest<'p> {
    packet: Waiting<'p>,
    destination: IpAddr,
    since: Instant,
}

/// Those that wait, in the order in which they came.
#[derive(Default)]
pub(super) struct WaitingRoom<'p> {
    guests: Vec<Guest<'p>>,
    each: HashMap<(PortIndex, IpAddr), usize>,
}

impl<'p> WaitingRoom<'p> {
    /// Takes in what workers have handed over. What there is no room for, and what nothing will come of, is dropped.
    pub(super) fn take_in(&mut self, rings: &HostRings<'p>, plan: &Plan, ports: &[HostPort]) {
        for _ in 0..rings.waiting.capacity() {
            let Some(packet) = rings.waiting.pop() else {
                return;
            };
            let destination = match packet.towards {
                Towards::Station(address) => Some(address),
                Towards::Peer(slot) => plan.peer(slot),
            };
            let is_full = self.guests.len() >= MOST;
            let Some(destination) = destination.filter(|_| !is_full) else {
                count_dropped(ports, packet.egress);
                continue;
            };
            let count = self.each.entry((packet.egress, destination)).or_default();
            if *count >= MOST_EACH {
                count_dropped(ports, packet.egress);
                continue;
            }
            *count += 1;
            self.guests.push(Guest {
                packet,
                destination,
                since: Instant::now(),
            });
        }
    }

    /// Puts those back on their way whose next hop `tables` know, which are the ones published, and drops those that have
    /// waited too long.
    pub(super) fn let_go(
        &mut self,
        shared: &Shared<'p>,
        tables: &Tables,
        plan: &Plan,
        ports: &[HostPort],
    ) {
        if self.guests.is_empty() {
            self.each.clear();
            return;
        }
        for guest in std::mem::take(&mut self.guests) {
            let egress = guest.packet.egress;
            if plan.is_reachable(egress, guest.destination) {
                self.forget(egress, guest.destination);
                put_back(guest.packet, shared, tables, ports);
            } else if guest.since.elapsed() >= PATIENCE {
                self.forget(egress, guest.destination);
                count_dropped(ports, egress);
                if shared.host.may_owe_error()
                    && let Some(failed) = guest.packet.into_failed()
                {
                    // What there is no room for gets no error.
                    let _ = shared.host.failed.push(failed);
                }
            } else {
                self.guests.push(guest);
            }
        }
    }

    /// Whom packets wait for, each once.
    pub(super) fn destinations(&self) -> Vec<(PortIndex, IpAddr)> {
        self.each.keys().copied().collect()
    }

    fn forget(&mut self, egress: PortIndex, destination: IpAddr) {
        if let Some(count) = self.each.get_mut(&(egress, destination)) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.each.remove(&(egress, destination));
            }
        }
    }
}

/// What is yet to be sealed is taken once more as if it had been received; what was opened leaves as a frame.
fn put_back<'p>(packet: Waiting<'p>, shared: &Shared<'p>, tables: &Tables, ports: &[HostPort]) {
    let Waiting {
        mut mbuf,
        mut meta,
        ingress,
        egress,
        is_opened,
        ..
    } = packet;
    let frames = if is_opened {
        let late = tables
            .port(egress)
            .is_some_and(|port| forward_late(&mut mbuf, &mut meta, tables, port).is_ok());
        let ring = shared.host.to_send.get(egress.index());
        ring.filter(|_| late)
    } else {
        shared.host.to_take.get(ingress.index())
    };
    if frames.is_some_and(|frames| frames.push(mbuf).is_ok()) {
        if let Some(port) = ports.get(egress.index()) {
            port.waited.add(1);
        }
    } else {
        count_dropped(ports, egress);
    }
}

fn count_dropped(ports: &[HostPort], egress: PortIndex) {
    if let Some(port) = ports.get(egress.index()) {
        port.waited_dropped.add(1);
    }
}
