//! Has tables follow the peers of tunnels in UDP, and sends the keepalives that those need.

use std::net::IpAddr;
use std::time::Instant;

use super::Control;
use crate::control::peers::Path;
use crate::host::{Sender, keepalive_frame};
use crate::ids::PortIndex;
use crate::policy::model::Side;
use crate::policy::tables::{LocalAddresses, NextHop, Tables};
use crate::worker::datapath::Shared;

/// One turn.
pub(super) fn follow_peers(control: &mut Control<'_, '_>) {
    let (shared, writer, sender) = (&control.shared, &control.writer, &control.sender);
    let tables = shared.tables.get_owned(writer, 0);
    let moved = control
        .records
        .peers
        .tick(&shared.sad, writer, Instant::now(), |path| {
            tables.is_some_and(|tables| send_keepalive(path, tables, shared, sender).is_some())
        });
    for moved in moved {
        control.hops.move_peer(moved.slot, moved.to);
        control.records.paths.move_peer(&moved, &shared.sad, writer);
    }
}

/// `None` where there is no way to the peer, or no room.
fn send_keepalive<'p>(
    path: &Path,
    tables: &Tables,
    shared: &Shared<'p>,
    sender: &Sender<'p>,
) -> Option<()> {
    let (port, hop) = way(path, tables)?;
    let frame = keepalive_frame(hop.macs, path.local, path.peer, path.hop_limit)?;
    sender.send(shared, port, &frame).then_some(())
}

/// The port that packets on `path` leave by: one that has the address they come from, if it leads there.
fn way<'t>(path: &Path, tables: &'t Tables) -> Option<(PortIndex, &'t NextHop)> {
    let ports = (0u16..).map(PortIndex).zip(&tables.ports);
    let ways = ports.filter_map(|(at, port)| {
        let hop = port.sa_hop(path.slot).ok()?;
        let is_own = has_address(&port.local, path.local.ip());
        (port.side == Side::Unprotected).then_some((!is_own, at, tables.next_hop(hop)?))
    });
    let (_, at, hop) = ways.min_by_key(|(is_other, ..)| *is_other)?;
    Some((at, hop))
}

fn has_address(local: &LocalAddresses, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => local.has_v4(address.to_bits()),
        IpAddr::V6(address) => local.v6.contains(&address.to_bits()),
    }
}
