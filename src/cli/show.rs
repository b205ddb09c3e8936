//! `simplon show`: tables for people, JSON for machines.

use std::io::{self, IsTerminal};

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Failure, ShowArgs, What, client, print};
use crate::control::lifetimes::LimitKind;
use crate::control::policies::PoliciesReport;
use crate::control::protocol::Method;
use crate::control::report::{
    DropsReport, HostReport, LifetimeReport, NeighboursReport, PortsReport, SaReport,
    TunnelsReport, WorkersReport,
};

/// Has a terminal clear itself, and begin at its top.
const CLEAR: &str = "\x1b[H\x1b[2J";

pub(super) fn show(args: &ShowArgs) -> Result<(), Failure> {
    let socket = client::socket_path(
        args.gateway.socket.as_deref(),
        args.gateway.config.as_deref(),
    )?;
    let Some(interval) = args.watch else {
        let result = client::ask(&socket, method(args.what))?;
        let text = if args.json {
            format!("{result:#}\n")
        } else {
            render(args.what, result)?
        };
        return print(text.as_bytes()).map(drop);
    };
    let before = if io::stdout().is_terminal() && !args.json {
        CLEAR
    } else {
        ""
    };
    loop {
        let result = client::ask(&socket, method(args.what))?;
        let text = if args.json {
            format!("{result}\n")
        } else {
            render(args.what, result)?
        };
        // Until Ctrl-C, or until nobody reads it.
        if !print(format!("{before}{text}").as_bytes())? {
            return Ok(());
        }
        std::thread::sleep(interval);
    }
}

fn method(what: What) -> Method {
    match what {
        What::Policies => Method::ShowPolicies,
        What::Ports => Method::ShowPorts,
        What::Neighbours => Method::ShowNeighbours,
        What::Tunnels => Method::ShowTunnels,
        What::Sa => Method::ShowSa,
        What::Drops => Method::ShowDrops,
        What::Workers => Method::ShowWorkers,
    }
}

fn render(what: What, result: Value) -> Result<String, Failure> {
    Ok(match what {
        What::Policies => policies(&read(result)?),
        What::Ports => ports(&read(result)?),
        What::Neighbours => neighbours(&read(result)?),
        What::Tunnels => tunnels(&read(result)?),
        What::Sa => sas(&read(result)?),
        What::Drops => drops(&read(result)?),
        What::Workers => workers(&read(result)?),
    })
}

pub(super) fn read<T: DeserializeOwned>(value: Value) -> Result<T, Failure> {
    serde_json::from_value(value).map_err(|error| {
        Failure::new(format_args!(
            "answer not understood, is the gateway of another version? {error}"
        ))
    })
}

fn table(head: &[&str], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(head);
    for column in numbers {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn finish(table: &Table) -> String {
    let lines: Vec<_> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n") + "\n"
}

fn policies(report: &PoliciesReport) -> String {
    let head = [
        "#", "name", "action", "tunnel", "local", "remote", "traffic",
    ];
    let mut table = table(&head, &[0]);
    for (at, policy) in (1usize..).zip(&report.policies) {
        let number = if policy.ordered {
            at.to_string()
        } else {
            "-".to_owned()
        };
        table.add_row([
            number,
            policy.name.clone(),
            policy.action.clone(),
            policy.tunnel.clone().unwrap_or_else(|| "-".to_owned()),
            policy.local.join(" "),
            policy.remote.join(" "),
            policy.traffic.join(", "),
        ]);
    }
    finish(&table)
}

fn ports(report: &PortsReport) -> String {
    let head = [
        "port",
        "side",
        "pair",
        "vlan",
        "link",
        "mtu",
        "queues",
        "rss",
        "rx packets",
        "rx bytes",
        "tx packets",
        "tx bytes",
        "missed",
        "to host",
        "from host",
        "mac",
        "driver",
    ];
    let mut table = table(&head, &[5, 6, 8, 9, 10, 11, 12, 13, 14]);
    for port in &report.ports {
        let host = |of: fn(&HostReport) -> u64| {
            let host = port.host.as_ref();
            host.map_or_else(|| "-".to_owned(), |host| of(host).to_string())
        };
        table.add_row([
            port.name.clone(),
            port.side.clone(),
            port.pair.clone(),
            vlan(&port.vlan),
            port.link.clone(),
            port.mtu.to_string(),
            port.queues.to_string(),
            port.rss
                .as_ref()
                .map_or_else(|| "-".to_owned(), |rss| rss.functions.join(" ")),
            port.rx_packets.to_string(),
            port.rx_bytes.to_string(),
            port.tx_packets.to_string(),
            port.tx_bytes.to_string(),
            port.rx_missed.to_string(),
            host(|host| host.to_host),
            host(|host| host.from_host),
            port.mac.clone(),
            port.driver.clone(),
        ]);
    }
    finish(&table)
}

fn neighbours(report: &NeighboursReport) -> String {
    let mut table = table(&["address", "mac", "port", "origin", "state"], &[]);
    for neighbour in &report.neighbours {
        table.add_row([
            neighbour.address.clone(),
            neighbour.mac.clone().unwrap_or_else(|| "-".into()),
            neighbour.port.clone(),
            neighbour.origin.clone(),
            neighbour.state.clone(),
        ]);
    }
    finish(&table)
}

fn tunnels(report: &TunnelsReport) -> String {
    let head = [
        "tunnel",
        "local",
        "remote",
        "cipher",
        "encap",
        "sas",
        "state",
        "link mtu",
        "path mtu",
        "mtu",
        "mss ipv4",
        "mss ipv6",
        "clamped",
        "fragments",
    ];
    let mut table = table(&head, &[5, 7, 8, 9, 10, 11]);
    let size = |size: Option<u16>| size.map_or_else(|| "-".to_owned(), |size| size.to_string());
    for tunnel in &report.tunnels {
        let path_mtu = match tunnel.path_mtu_age_s {
            Some(age) => format!("{} ({age} s ago)", size(tunnel.path_mtu)),
            None => size(tunnel.path_mtu),
        };
        table.add_row([
            tunnel.tunnel.clone(),
            tunnel.local.clone(),
            tunnel.remote.clone(),
            tunnel.cipher.clone(),
            tunnel.encapsulation.clone(),
            tunnel.sas.to_string(),
            tunnel.state.clone(),
            size(tunnel.link_mtu),
            path_mtu,
            size(tunnel.mtu),
            size(tunnel.mss_v4),
            size(tunnel.mss_v6),
            if tunnel.clamp_mss { "yes" } else { "no" }.to_owned(),
            tunnel.fragmentation.clone(),
        ]);
    }
    finish(&table)
}

fn vlan(tags: &[u16]) -> String {
    if tags.is_empty() {
        return "-".into();
    }
    let numbers: Vec<_> = tags.iter().map(u16::to_string).collect();
    numbers.join(".")
}

fn sas(report: &SaReport) -> String {
    let head = [
        "tunnel",
        "direction",
        "spi",
        "local",
        "remote",
        "cipher",
        "esn",
        "encap",
        "moved",
        "keepalives",
        "state",
        "sequence",
        "packets",
        "bytes",
        "lifetime",
        "dropped",
    ];
    let mut table = table(&head, &[8, 9, 11, 12, 13, 15]);
    let mut reasons = String::new();
    for sa in &report.sas {
        let dropped: u64 = sa.drops.iter().map(|count| count.packets).sum();
        let udp = sa.udp.as_ref();
        let of_udp = |number: Option<u64>| number.map_or_else(|| "-".into(), |n| n.to_string());
        table.add_row([
            sa.tunnel.clone(),
            sa.direction.clone(),
            sa.spi.clone(),
            end(&sa.local, udp.map(|udp| udp.local_port)),
            end(&sa.remote, udp.map(|udp| udp.remote_port)),
            sa.cipher.clone(),
            if sa.esn {
                "yes".into()
            } else {
                "no".to_owned()
            },
            sa.encapsulation.clone(),
            of_udp(udp.map(|udp| udp.moves)),
            of_udp(udp.and_then(|udp| udp.keepalives)),
            sa.state.clone(),
            sa.sequence.to_string(),
            sa.packets.to_string(),
            sa.bytes.to_string(),
            sa.lifetime.as_ref().map_or_else(|| "-".into(), lifetime),
            dropped.to_string(),
        ]);
        // One cause is often that of every SA: told once.
        if let Some(reason) = &sa.reason
            && !reasons.contains(reason.as_str())
        {
            reasons.push_str(&format!("\nrefused: {reason}\n"));
        }
    }
    finish(&table) + &reasons
}

/// What is used of each limit.
fn lifetime(report: &LifetimeReport) -> String {
    let limits = report.limits().map(|(kind, limit)| {
        let [used, hard] = [limit.used, limit.hard].map(|amount| kind.show(amount));
        match kind {
            LimitKind::Packets => format!("{used} of {hard} packets"),
            LimitKind::Bytes | LimitKind::Time => format!("{used} of {hard}"),
        }
    });
    limits.collect::<Vec<_>>().join(", ")
}

/// An address, and the port where there is one.
fn end(address: &str, port: Option<u16>) -> String {
    match port {
        None => address.to_owned(),
        Some(port) if address.contains(':') => format!("[{address}]:{port}"),
        Some(port) => format!("{address}:{port}"),
    }
}

fn drops(report: &DropsReport) -> String {
    let mut totals = table(
        &[
            "direction",
            "received",
            "made",
            "sent",
            "dropped",
            "punted",
            "aside",
            "held",
            "bypassed",
            "bypassed bytes",
        ],
        &[1, 2, 3, 4, 5, 6, 7, 8, 9],
    );
    for (direction, sum) in [
        ("outbound", report.totals.outbound),
        ("inbound", report.totals.inbound),
    ] {
        totals.add_row([
            direction.to_owned(),
            sum.received.to_string(),
            sum.made.to_string(),
            sum.sent.to_string(),
            sum.dropped.to_string(),
            sum.punted.to_string(),
            sum.aside.to_string(),
            sum.held.to_string(),
            sum.bypassed.to_string(),
            sum.bypassed_bytes.to_string(),
        ]);
    }
    let mut text = finish(&totals);
    for (what, counts) in [
        ("dropped", &report.drops),
        ("punted", &report.punts),
        ("taken aside", &report.asides),
    ] {
        if counts.is_empty() {
            continue;
        }
        let mut reasons = table(&["direction", what, "packets", "meaning"], &[2]);
        for directed in counts {
            let count = &directed.count;
            reasons.add_row([
                directed.direction.clone(),
                count.reason.clone(),
                count.packets.to_string(),
                count.help.clone(),
            ]);
        }
        text.push('\n');
        text.push_str(&finish(&reasons));
    }
    text
}

fn workers(report: &WorkersReport) -> String {
    let mut text = format!("AES-GCM tier: {}\n\n", report.aead_tier);
    let mut overview = table(
        &[
            "core",
            "packets",
            "busy polls",
            "idle polls",
            "cpu s",
            "lanes",
        ],
        &[0, 1, 2, 3, 4],
    );
    for worker in &report.workers {
        overview.add_row([
            worker.core.to_string(),
            worker.packets.to_string(),
            worker.busy_polls.to_string(),
            worker.idle_polls.to_string(),
            format!("{:.2}", worker.cpu_ns as f64 / 1e9),
            worker.lanes.join(", "),
        ]);
    }
    text.push_str(&finish(&overview));
    for worker in report
        .workers
        .iter()
        .filter(|worker| !worker.stages.is_empty())
    {
        let mut stages = table(&["core", "stage", "TSC cycles/packet"], &[0, 2]);
        for stage in &worker.stages {
            let each = stage.cycles as f64 / worker.packets.max(1) as f64;
            stages.add_row([
                worker.core.to_string(),
                stage.stage.clone(),
                format!("{each:.1}"),
            ]);
        }
        text.push('\n');
        text.push_str(&finish(&stages));
    }
    text
}
