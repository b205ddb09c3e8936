//! The stages between rx and tx in their order, over any buffers: what a burst goes through in each direction.

use crate::buf::PacketBuf;
use crate::ipsec::esp_out::SealJobs;
use crate::ipsec::flow_cache::FlowCache;
use crate::ipsec::sa_counters::WorkerId;
use crate::ipsec::sad::{BurstSas, SadView};
use crate::ipsec::selector::AddressPair;
use crate::ipsec::{esp_in, esp_out};
use crate::meta::PacketMeta;
use crate::policy::model::Side;
use crate::policy::tables::{PortTable, Tables};
use crate::worker::classify::Sorted;
use crate::worker::counters::count_sa_burst;
use crate::worker::probe::{Probe, Stage};
use crate::worker::{classify, fit, forward, parse};

/// What the stages look things up in, for one burst.
#[derive(Clone, Copy)]
pub struct View<'g> {
    /// The published tables.
    pub tables: &'g Tables,
    /// The SAs.
    pub sad: SadView<'g>,
    /// The port the burst came in by.
    pub ingress: &'g PortTable,
    /// The port it leaves by.
    pub egress: &'g PortTable,
    /// Whom SAs count for, and who may own them.
    pub worker: &'g WorkerId,
    /// What the worker remembers of flows.
    pub flows: &'g FlowCache,
}

/// Takes a burst of Ethernet frames, as received, to Ethernet frames, ready to send; or to the fates of those that are
/// not. `packets` and `metas` have the same length, and `metas` may hold anything on entry. SAs have counted the burst then;
/// what a worker counts is the caller's.
///
/// It is [`sort_burst`] and then [`carry_burst`]. Between them a caller may take out what has ended, and the rest goes on as if
/// it had come alone: stages that meet the ended among the others pass them over, one by one.
pub fn process_burst<B: PacketBuf, P: Probe>(
    packets: &mut [B],
    metas: &mut [PacketMeta],
    view: View<'_>,
    probe: &mut P,
) {
    let sorted = sort_burst(packets, metas, view, probe);
    carry_burst(packets, metas, sorted, view, probe);
}

/// Finds out what each packet of a burst is to this gateway.
pub fn sort_burst<B: PacketBuf, P: Probe>(
    packets: &mut [B],
    metas: &mut [PacketMeta],
    view: View<'_>,
    probe: &mut P,
) -> Sorted {
    let (port, tables) = (view.ingress, view.tables);
    if port.side == Side::Protected && tables.spis.is_vast() {
        // With very many SAs their policies are out of the cache, and come while the other packets are parsed.
        parse::parse_burst_and(packets, metas, port, |meta| {
            let addresses = AddressPair::V4(meta.source, meta.destination);
            tables.spd.prefetch(addresses);
        });
    } else {
        parse::parse_burst(packets, metas, port);
    }
    probe.passed(Stage::Parse, metas);
    let sorted = classify::classify_burst(packets, metas, view);
    probe.passed(Stage::Classify, metas);
    sorted
}

/// Takes a sorted burst to its end.
pub fn carry_burst<B: PacketBuf, P: Probe>(
    packets: &mut [B],
    metas: &mut [PacketMeta],
    sorted: Sorted,
    view: View<'_>,
    probe: &mut P,
) {
    match view.ingress.side {
        Side::Unprotected => open_burst(packets, metas, view, sorted.has_udp, probe),
        Side::Protected => seal_burst(packets, metas, view, probe),
    }
}

fn open_burst<B: PacketBuf, P: Probe>(
    packets: &mut [B],
    metas: &mut [PacketMeta],
    view: View<'_>,
    has_udp: bool,
    probe: &mut P,
) {
    let mut sas = BurstSas::default();
    esp_in::sad_lookup_burst(packets, metas, &view.tables.spis, view.sad, &mut sas);
    probe.passed(Stage::SaLookup, metas);
    esp_in::replay_check_burst(packets, metas, &sas);
    probe.passed(Stage::Sequence, metas);
    esp_in::esp_open_burst(packets, metas, &sas);
    probe.passed(Stage::Aead, metas);
    esp_in::window_commit_burst(metas, &sas);
    if has_udp {
        esp_in::note_peers_burst(packets, metas, &sas);
    }
    esp_in::esp_decapsulate_burst(packets, metas);
    probe.passed(Stage::Header, metas);
    let policies = (&*view.tables.spd, view.flows);
    esp_in::spd_check_inbound_burst(packets, metas, &sas, policies);
    probe.passed(Stage::Policy, metas);
    let mut cuts = forward::route_burst(packets, metas, view);
    if view.tables.spd.has_bypass() {
        cuts |= forward::route_bypassed_burst(packets, metas, view);
    }
    forward::link_header_burst(packets, metas, view.tables);
    probe.passed(Stage::Route, metas);
    count_sa_burst(metas, &sas, view.worker);
    if cuts {
        fit::cut_burst(packets, metas, view.tables, None);
    }
    probe.passed(Stage::Count, metas);
}

fn seal_burst<B: PacketBuf, P: Probe>(
    packets: &mut [B],
    metas: &mut [PacketMeta],
    view: View<'_>,
    probe: &mut P,
) {
    let mut sas = BurstSas::default();
    let mut cuts = forward::spd_lookup_burst(packets, metas, view, &mut sas);
    probe.passed(Stage::Policy, metas);
    esp_out::seq_assign_burst(metas, &sas, view.worker);
    probe.passed(Stage::Sequence, metas);
    let mut jobs = SealJobs::new();
    let has_udp6 = esp_out::esp_encapsulate_burst(packets, metas, &sas, &mut jobs);
    probe.passed(Stage::Header, metas);
    esp_out::esp_seal_burst(&mut jobs, metas);
    drop(jobs);
    probe.passed(Stage::Aead, metas);
    if has_udp6 {
        esp_out::fill_udp6_checksum_burst(packets, metas, &sas);
    }
    if view.tables.spd.has_bypass() {
        cuts |= forward::route_bypassed_burst(packets, metas, view);
    }
    forward::link_header_burst(packets, metas, view.tables);
    probe.passed(Stage::Route, metas);
    count_sa_burst(metas, &sas, view.worker);
    if cuts {
        fit::cut_burst(packets, metas, view.tables, Some(&sas));
    }
    probe.passed(Stage::Count, metas);
}
