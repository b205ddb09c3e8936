//! What a bond's driver leaves to who uses it.

use std::cell::Cell;

use crate::ids::PortId;

use super::port::{Link, max_mtu};
use super::sys;

/// A port that a bond bonds.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: PortId,
    /// Its link as the bond was last told, if it ever was.
    link: Cell<Option<bool>>,
}

impl Member {
    pub(super) fn new(id: PortId) -> Self {
        Self {
            id,
            link: Cell::new(None),
        }
    }

    /// Tells the bond of the member's link where it is another than before. That is the member's driver's to do, but `net_tap`
    /// for one says that it does, so that the bond does not look itself, and does not.
    pub(super) fn tell_link(&self, link: Link) {
        if self.link.replace(Some(link.up)) != Some(link.up) {
            // SAFETY: DPDK checks the number. What it calls are functions that the bond registered, which may be called on any
            // thread: they take a lock.
            unsafe { sys::gw_tell_link(self.id.0) };
        }
    }
}

/// Brings what a bond says that it can do down to what its member can.
pub(super) fn narrow(bond: &mut sys::rte_eth_dev_info, member: &sys::rte_eth_dev_info) {
    bond.max_rx_queues = bond.max_rx_queues.min(member.max_rx_queues);
    bond.max_tx_queues = bond.max_tx_queues.min(member.max_tx_queues);
    bond.min_mtu = bond.min_mtu.max(member.min_mtu);
    bond.max_mtu = max_mtu(bond).min(max_mtu(member));
    bond.flow_type_rss_offloads &= member.flow_type_rss_offloads;
    let descriptors = [
        (&mut bond.rx_desc_lim, member.rx_desc_lim),
        (&mut bond.tx_desc_lim, member.tx_desc_lim),
    ];
    for (own, other) in descriptors {
        // 0 is no limit.
        let limits = [own.nb_max, other.nb_max].into_iter();
        own.nb_max = limits.filter(|limit| *limit != 0).min().unwrap_or(0);
        own.nb_min = own.nb_min.max(other.nb_min);
        own.nb_align = own.nb_align.max(other.nb_align);
    }
}

#[cfg(test)]
mod tests {
    use super::super::port::within;
    use super::*;

    #[test]
    fn bond_can_do_what_all_its_members_can() {
        let mut bond = sys::rte_eth_dev_info {
            max_rx_queues: u16::MAX,
            max_tx_queues: u16::MAX,
            max_mtu: u16::MAX,
            max_rx_pktlen: 9728,
            flow_type_rss_offloads: u64::MAX,
            ..Default::default()
        };
        for (queues, max_mtu, rss) in [(4, 9000, 0b110), (2, 3000, 0b011)] {
            let member = sys::rte_eth_dev_info {
                max_rx_queues: queues,
                max_tx_queues: queues + 1,
                max_mtu,
                max_rx_pktlen: 9728,
                flow_type_rss_offloads: rss,
                rx_desc_lim: sys::rte_eth_desc_lim {
                    nb_min: queues,
                    nb_max: 1024 * queues,
                    nb_align: 1,
                    ..Default::default()
                },
                ..Default::default()
            };
            narrow(&mut bond, &member);
        }
        assert_eq!((bond.max_rx_queues, bond.max_tx_queues), (2, 3));
        assert_eq!(max_mtu(&bond), 3000);
        assert_eq!(bond.flow_type_rss_offloads, 0b010);
        assert_eq!(within(9999, &bond.rx_desc_lim), 2048);
        assert_eq!(within(9999, &bond.tx_desc_lim), 9999);
    }
}
