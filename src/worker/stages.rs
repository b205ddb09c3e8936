//! The stages between rx and tx in their order, over any buffers: what a burst goes through in each direction.

use crate::buf::PacketBuf;
use crate::ipsec::sad::{BurstSas, SadView};
use crate::ipsec::{esp_in, esp_out};
use crate::meta::PacketMeta;
use crate::policy::model::Side;
use crate::policy::tables::{PortTable, Tables};
use crate::worker::probe::{Probe, Stage};
use crate::worker::{classify, forward, parse};

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
}

/// Takes a burst of Ethernet frames, as received, to Ethernet frames, ready to send; or to the fates of those that are
/// not. `packets` and `metas` have the same length, and `metas` may hold anything on entry.
pub fn process_burst<B: PacketBuf, P: Probe>(
    packets: &mut [B],
    metas: &mut [PacketMeta],
    view: View<'_>,
    probe: &mut P,
) {
    parse::parse_burst(packets, metas, view.ingress);
    probe.mark(Stage::Parse);
    classify::classify_burst(packets, metas, view.ingress);
    probe.mark(Stage::Classify);
    match view.ingress.side {
        Side::Unprotected => open_burst(packets, metas, view, probe),
        Side::Protected => seal_burst(packets, metas, view, probe),
    }
    forward::link_header_burst(packets, metas, view.tables);
    probe.mark(Stage::Route);
}

fn open_burst<B: PacketBuf, P: Probe>(
    packets: &mut [B],
    metas: &mut [PacketMeta],
    view: View<'_>,
    probe: &mut P,
) {
    let mut sas = BurstSas::default();
    esp_in::sad_lookup_burst(packets, metas, &view.tables.spis, view.sad, &mut sas);
    probe.mark(Stage::SaLookup);
    esp_in::replay_check_burst(packets, metas, &sas);
    probe.mark(Stage::Sequence);
    esp_in::esp_open_burst(packets, metas, &sas);
    probe.mark(Stage::Esp);
    esp_in::spd_check_inbound_burst(packets, metas, &sas);
    probe.mark(Stage::Policy);
    forward::route_burst(packets, metas, view.tables, view.egress);
}

fn seal_burst<B: PacketBuf, P: Probe>(
    packets: &mut [B],
    metas: &mut [PacketMeta],
    view: View<'_>,
    probe: &mut P,
) {
    forward::spd_lookup_burst(packets, metas, view.tables, view.egress, view.sad);
    probe.mark(Stage::Policy);
    let mut sas = BurstSas::default();
    esp_out::seq_assign_burst(metas, view.sad, &mut sas);
    probe.mark(Stage::Sequence);
    esp_out::esp_seal_burst(packets, metas, &sas);
    probe.mark(Stage::Esp);
}
