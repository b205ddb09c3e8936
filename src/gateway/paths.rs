//! Path MTUs that routers on the way have told, by SA (RFC 4301 section 8.2, RFC 1191, RFC 8201).

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tracing::info;

use crate::control::peers::Moved;
use crate::control::rows::SaRow;
use crate::host::PathReport;
use crate::ids::SaIndex;
use crate::ipsec::sa::OutboundSa;
use crate::ipsec::sad::Sad;
use crate::rcu::Writer;
use crate::wire::{ipv4, ipv6};

/// Time after which a path is taken to be as it was at the beginning, to find out whether it became wider (RFC 1191
/// section 6.3).
const AGE: Duration = Duration::from_secs(600);
/// Time between two looks for what is that old.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long ago a packet may have been sent that a router complains of, in packets of its SA: what 10 million a second are
/// in a good second's round trip.
const RECENT: u32 = 1 << 24;
/// Reports taken in one turn.
const TURN: usize = 64;

/// What is known of the paths to peers.
pub(super) struct Paths {
    /// By the peer's address and SPI.
    slots: HashMap<(IpAddr, u32), Path>,
    /// When a smaller MTU was learned.
    learned: HashMap<(IpAddr, u32), Instant>,
    looked: Instant,
}

/// One path.
struct Path {
    slot: SaIndex,
    local: IpAddr,
    tunnel: String,
    /// What the policy says of it.
    configured: u16,
}

impl Paths {
    pub(super) fn new(rows: &[SaRow], sad: &Sad, writer: &Writer) -> Self {
        let mut paths = Self {
            slots: HashMap::new(),
            learned: HashMap::new(),
            looked: Instant::now(),
        };
        for row in rows {
            paths.add(row, sad, writer);
        }
        paths
    }

    /// Takes in a pair whose SAs are in their slot.
    pub(super) fn add(&mut self, row: &SaRow, sad: &Sad, writer: &Writer) {
        let Some(sa) = sad.outbound().get_owned(writer, row.slot.index()) else {
            return;
        };
        let path = Path {
            slot: row.slot,
            local: row.outbound.local,
            tunnel: row.tunnel.clone(),
            configured: sa.path_mtu(),
        };
        let key = (row.outbound.remote, row.outbound.spi.get());
        self.slots.insert(key, path);
    }

    /// Forgets the path of an SA that is still in its slot, and will not be.
    pub(super) fn remove(&mut self, slot: SaIndex, sad: &Sad, writer: &Writer) {
        if let Some(sa) = sad.outbound().get_owned(writer, slot.index()) {
            let key = (sa.remote(), sa.identity().spi.get());
            if self.slots.get(&key).is_some_and(|path| path.slot == slot) {
                self.slots.remove(&key);
                self.learned.remove(&key);
            }
        }
    }

    /// Takes in what routers said, as far as they can have seen one of our packets, and forgets what is old.
    pub(super) fn follow(
        &mut self,
        reports: impl Iterator<Item = PathReport>,
        sad: &Sad,
        writer: &Writer,
    ) {
        for report in reports.take(TURN) {
            self.take(&report, sad, writer);
        }
        if self.looked.elapsed() < LOOK_INTERVAL {
            return;
        }
        self.looked = Instant::now();
        let slots = &self.slots;
        self.learned.retain(|key, since| {
            let is_young = since.elapsed() < AGE;
            if !is_young
                && let Some(path) = slots.get(key)
                && let Some(sa) = sad.outbound().get_owned(writer, path.slot.index())
            {
                sa.set_path_mtu(path.configured);
            }
            is_young
        });
    }

    fn take(&mut self, report: &PathReport, sad: &Sad, writer: &Writer) {
        let key = (report.remote, report.spi);
        let Some(path) = self.slots.get(&key) else {
            return;
        };
        let Some(sa) = sad.outbound().get_owned(writer, path.slot.index()) else {
            return;
        };
        if path.local != report.local || !was_sent(sa, report.seq) {
            return;
        }
        let least = match report.remote {
            IpAddr::V4(_) => ipv4::LEAST_MTU,
            IpAddr::V6(_) => ipv6::LEAST_MTU,
        };
        let mtu = report.mtu.max(least);
        // Larger ones are found out by trying, when the present one is old.
        if mtu > sa.path_mtu() {
            return;
        }
        if mtu < sa.path_mtu() {
            info!(tunnel = path.tunnel, remote = %report.remote, mtu, "the path to the peer takes smaller packets");
            sa.set_path_mtu(mtu);
        }
        self.learned.insert(key, Instant::now());
    }

    /// The path to a peer that moved is another one, of which nothing is known yet. Of several SAs with one SPI at one address,
    /// as two gateways behind one NAT may have chosen it, the last to move there is told of.
    pub(super) fn move_peer(&mut self, moved: &Moved, sad: &Sad, writer: &Writer) {
        let Some(sa) = sad.outbound().get_owned(writer, moved.slot.index()) else {
            return;
        };
        let spi = sa.identity().spi.get();
        let key = (moved.from, spi);
        let is_its = self
            .slots
            .get(&key)
            .is_some_and(|path| path.slot == moved.slot);
        if is_its && let Some(path) = self.slots.remove(&key) {
            sa.set_path_mtu(path.configured);
            self.learned.remove(&key);
            self.slots.insert((moved.to, spi), path);
        }
    }

    /// How long ago the path MTU of this SA was learned; `None` where it was not.
    pub(super) fn age(&self, remote: IpAddr, spi: u32) -> Option<Duration> {
        self.learned.get(&(remote, spi)).map(Instant::elapsed)
    }
}

/// Whether a packet with these low 32 bits of a sequence number was sent on `sa` not long ago: who was not on the path has to
/// guess that, and the SPI.
fn was_sent(sa: &OutboundSa, seq: u32) -> bool {
    // What is beyond the lease was not used.
    let next = sa.seq().unused();
    let low = crate::bits::low_32(next);
    let age = low.wrapping_sub(seq);
    (1..=RECENT).contains(&age) && u64::from(age) < next
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::rows::SaRow;
    use crate::crypto::aead::{Cipher, KeyMaterial};
    use crate::ids::Spi;
    use crate::ipsec::outer::{DontFragment, Dscp, EcnMode, Encapsulation, OuterHeader, SizeRules};
    use crate::ipsec::sa::{OutboundParams, SaParams};
    use crate::rcu::domain;

    struct Rig {
        sad: Sad,
        writer: Writer,
        paths: Paths,
    }

    /// One SA that has sent numbers up to `next - 1`.
    fn rig(next: u64, configured: u16) -> Rig {
        let (mut writer, _) = domain(1);
        let sad = Sad::new(&writer, 1);
        let key = KeyMaterial::new(Cipher::Aes128Gcm, zeroize::Zeroizing::new(vec![7; 20]))
            .expect("20 bytes");
        let params = || SaParams {
            spi: Spi::new(0x1001).expect("not reserved"),
            key: &key,
            esn: true,
            local: IpAddr::from([192, 0, 2, 1]),
            remote: IpAddr::from([192, 0, 2, 2]),
            encapsulation: Encapsulation::None,
        };
        let sa = OutboundSa::new(&OutboundParams {
            sa: params(),
            next_seq: next,
            outer: OuterHeader {
                hop_limit: 64,
                dscp: Dscp::Copy,
                df: DontFragment::Copy,
                ecn: EcnMode::Normal,
            },
            sizes: SizeRules {
                path_mtu: configured,
                ..SizeRules::default()
            },
        });
        sa.seq().extend_lease(u64::MAX);
        assert!(
            writer
                .replace(sad.outbound(), 0, Some(Box::new(sa)))
                .is_ok()
        );
        let row = SaRow {
            tunnel: "t".into(),
            slot: SaIndex(0),
            outbound: params().identity(),
            inbound: params().identity(),
            outbound_refused: None,
            inbound_refused: None,
        };
        let paths = Paths::new(&[row], &sad, &writer);
        Rig { sad, writer, paths }
    }

    fn report(seq: u32, mtu: u16) -> PathReport {
        PathReport {
            local: IpAddr::from([192, 0, 2, 1]),
            remote: IpAddr::from([192, 0, 2, 2]),
            spi: 0x1001,
            seq,
            mtu,
        }
    }

    impl Rig {
        fn after(&mut self, report: PathReport) -> u16 {
            self.paths
                .follow([report].into_iter(), &self.sad, &self.writer);
            let sa = self.sad.outbound().get_owned(&self.writer, 0).expect("one");
            sa.path_mtu()
        }
    }

    #[test]
    fn smaller_mtu_is_believed_of_a_packet_that_was_sent() {
        let mut rig = rig(1000, u16::MAX);
        assert_eq!(rig.after(report(999, 1400)), 1400);
        assert_eq!(rig.after(report(1, 1300)), 1300);
        assert!(rig.paths.age(report(1, 1).remote, 0x1001).is_some());
        assert_eq!(rig.after(report(999, 1350)), 1300, "no larger one");
        assert_eq!(
            rig.after(report(999, 68)),
            ipv4::LEAST_MTU,
            "never below the floor"
        );
    }

    #[test]
    fn who_did_not_see_a_packet_of_ours_is_not_believed() {
        let mut rig = rig(1000, 1450);
        for wrong in [
            report(1000, 1300),
            report(0, 1300),
            report(u32::MAX, 1300),
            PathReport {
                spi: 0x1002,
                ..report(999, 1300)
            },
            PathReport {
                local: IpAddr::from([192, 0, 2, 3]),
                ..report(999, 1300)
            },
            PathReport {
                remote: IpAddr::from([192, 0, 2, 3]),
                ..report(999, 1300)
            },
        ] {
            assert_eq!(rig.after(wrong), 1450, "{wrong:?}");
        }
        let mut long = self::rig((5 << 32) + 10, u16::MAX);
        assert_eq!(long.after(report(11, 1300)), u16::MAX);
        assert_eq!(
            long.after(report(0xffff_0000, 1300)),
            1300,
            "before the low half wrapped"
        );
        let mut late = self::rig((5 << 32) + 10, u16::MAX);
        assert_eq!(
            late.after(report(0x8000_0000, 1300)),
            u16::MAX,
            "too long ago"
        );
    }

    #[test]
    fn path_to_a_peer_that_moved_is_another_one() {
        let mut rig = rig(1000, 1450);
        assert_eq!(rig.after(report(999, 1300)), 1300);
        let to = IpAddr::from([198, 51, 100, 7]);
        let moved = Moved {
            slot: SaIndex(0),
            from: report(1, 1).remote,
            to,
        };
        rig.paths.move_peer(&moved, &rig.sad, &rig.writer);
        assert_eq!(rig.after(report(999, 1200)), 1450, "of the old path");
        assert!(rig.paths.age(moved.from, 0x1001).is_none());
        let there = PathReport {
            remote: to,
            ..report(999, 1200)
        };
        assert_eq!(rig.after(there), 1200);
        assert!(rig.paths.age(to, 0x1001).is_some());
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let mut rig = rig(1000, 1450);
        assert_eq!(rig.after(report(999, 1300)), 1300);
        let old = Instant::now()
            .checked_sub(AGE)
            .expect("the machine has run for longer");
        rig.paths
            .learned
            .values_mut()
            .for_each(|since| *since = old);
        rig.paths.looked = old;
        let nothing = PathReport {
            spi: 1,
            ..report(1, 1)
        };
        assert_eq!(rig.after(nothing), 1450);
    }
}
