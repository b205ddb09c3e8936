//! `show tunnels`: whether tunnels are up, and what fits into them.

use super::paths::Paths;
use crate::control::report::{TunnelEntry, TunnelsReport};
use crate::control::rows::SaRow;
use crate::drop::DropReason;
use crate::ipsec::outer::Encapsulation;
use crate::ipsec::sa::{InboundSa, OutboundSa};
use crate::ipsec::sad::Sad;
use crate::policy::model::Side;
use crate::policy::tables::Tables;
use crate::rcu::Writer;
use crate::wire::{ipv4, ipv6, tcp};

/// What the report is made from.
#[derive(Clone, Copy)]
pub(super) struct Sources<'a> {
    pub(super) rows: &'a [SaRow],
    pub(super) sad: &'a Sad,
    pub(super) tables: Option<&'a Tables>,
    pub(super) paths: &'a Paths,
    pub(super) writer: &'a Writer,
}

/// Describes every endpoint set.
pub(super) fn report(sources: Sources<'_>) -> TunnelsReport {
    let mut report = TunnelsReport::default();
    let is_one_set =
        |a: &SaRow, b: &SaRow| a.tunnel == b.tunnel && a.outbound.local == b.outbound.local;
    for rows in sources.rows.chunk_by(is_one_set) {
        report.tunnels.extend(entry(rows, sources));
    }
    report
}

/// The SA pairs of one endpoint set, in one line.
fn entry(rows: &[SaRow], sources: Sources<'_>) -> Option<TunnelEntry> {
    let first = &rows.first()?.outbound;
    let sa_of = |row: &SaRow| {
        sources
            .sad
            .outbound()
            .get_owned(sources.writer, row.slot.index())
    };
    // What limits the set is the SA that takes the least.
    let (row, sa) = rows
        .iter()
        .filter_map(|row| Some((row, sa_of(row)?)))
        .min_by_key(|(_, sa)| sa.path_mtu())
        .unzip();
    let link = match row {
        Some(row) => link_mtu(row, sources.tables),
        None => Err(DropReason::SaDown),
    };
    let (link_mtu, state) = match link {
        Ok(mtu) => (Some(mtu), "up"),
        Err(reason) => (None, reason.name()),
    };
    let state = match has_expired(rows, sources) {
        true => DropReason::SaExpired.name(),
        false => state,
    };
    let path_mtu = sa.map(OutboundSa::path_mtu).filter(|mtu| *mtu != u16::MAX);
    let age = row.and_then(|row| sources.paths.age(sa?.remote(), row.outbound.spi.get()));
    let mtu = sa
        .zip(link_mtu)
        .map(|(sa, link)| sa.largest_inner(sa.outer_mtu(link)));
    let mss = |headers: usize, mtu: u16| {
        let headers = headers.saturating_add(tcp::HEADER_LEN);
        mtu.saturating_sub(u16::try_from(headers).unwrap_or(u16::MAX))
    };
    Some(TunnelEntry {
        tunnel: rows.first()?.tunnel.clone(),
        local: first.local.to_string(),
        remote: sa.map_or(first.remote, OutboundSa::remote).to_string(),
        cipher: first.cipher.name().into(),
        encapsulation: match first.encapsulation {
            Encapsulation::None => "none".into(),
            Encapsulation::Udp { .. } => "udp".into(),
        },
        sas: rows.len(),
        state: state.into(),
        link_mtu,
        path_mtu,
        path_mtu_age_s: age.map(|age| age.as_secs()),
        mtu,
        mss_v4: mtu.map(|mtu| mss(ipv4::HEADER_LEN, mtu)),
        mss_v6: mtu.map(|mtu| mss(ipv6::HEADER_LEN, mtu.max(ipv6::LEAST_MTU))),
        clamp_mss: sa.is_some_and(OutboundSa::clamps_mss),
        fragmentation: match sa.is_some_and(OutboundSa::fragments_after) {
            true => "after".into(),
            false => "before".into(),
        },
    })
}

/// Whether every SA that there is in one of the two directions was stopped.
fn has_expired(rows: &[SaRow], sources: Sources<'_>) -> bool {
    let (sad, writer) = (sources.sad, sources.writer);
    let slots = || rows.iter().map(|row| row.slot.index());
    let outbound = slots()
        .filter_map(|slot| sad.outbound().get_owned(writer, slot))
        .map(OutboundSa::is_stopped);
    let inbound = slots()
        .filter_map(|slot| sad.inbound().get_owned(writer, slot))
        .map(InboundSa::is_stopped);
    all_and_any(outbound) || all_and_any(inbound)
}

/// Whether there is something, and all of it is so.
fn all_and_any(mut verdicts: impl Iterator<Item = bool>) -> bool {
    verdicts
        .next()
        .is_some_and(|first| first && verdicts.all(|verdict| verdict))
}

/// The MTU of the link towards the SA's peer: of the unprotected port by which it is reached.
fn link_mtu(row: &SaRow, tables: Option<&Tables>) -> Result<u16, DropReason> {
    let tables = tables.ok_or(DropReason::NoRoute)?;
    let ports = tables.ports.iter();
    let hops = ports
        .filter(|port| port.side == Side::Unprotected)
        .map(|port| port.sa_hop(row.slot));
    // A way that only wants a neighbour is better than none.
    let best = hops.reduce(|one, other| match (one, other) {
        (Ok(_), _) | (Err(DropReason::NoNeighbour), Err(_)) => one,
        _ => other,
    });
    best.unwrap_or(Err(DropReason::NoRoute))
        .map(|hop| tables.mtu(hop))
}
