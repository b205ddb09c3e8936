//! Network namespaces, the interfaces in them, and commands that run there.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use super::spec::{Family, Site};
use super::{Failure, Result, Testbed, router, send_signal, wait_until};

/// A network namespace, by name. It exists from [`build`] to [`Netns::delete`].
#[derive(Clone)]
pub struct Netns {
    name: String,
}

impl Netns {
    pub(super) fn new(name: String) -> Self {
        Self { name }
    }

    /// Its name, for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside. It gets `on_orphaned` should the thread that starts it end before it does, so
    /// that even a killed test leaves no process behind; and it is in a process group of its own, so that Ctrl-C
    /// reaches whoever owns the test bed and nobody else.
    ///
    /// The process that `spawn` returns is the program itself: both wrappers end in `exec`.
    pub fn command(&self, program: impl AsRef<OsStr>, on_orphaned: &str) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args([
                "--pdeathsig",
                on_orphaned,
                "ip",
                "netns",
                "exec",
                &self.name,
            ])
            .arg(program);
        command.stdin(Stdio::null()).process_group(0);
        command
    }

    /// Runs a command inside and returns its standard output.
    ///
    /// # Errors
    /// What the command said, where it did not exit with 0.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let (program, arguments) = arguments.split_first().expect("a program to run");
        output_of(self.command(program, "KILL").args(arguments))
    }

    /// Kills every process inside.
    pub fn end_processes(&self) {
        let pids = || -> Vec<u32> {
            let listed = run(&["ip", "netns", "pids", &self.name]).unwrap_or_default();
            listed
                .split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect()
        };
        let inside = pids();
        inside
            .iter()
            .for_each(|pid| send_signal(*pid, Signal::KILL));
        if !inside.is_empty() {
            wait_until(Duration::from_secs(2), || pids().is_empty());
        }
    }

    /// Ends every process inside and deletes the namespace, with the interfaces in it.
    pub(super) fn delete(&self) {
        self.end_processes();
        let _ = run(&["ip", "netns", "del", &self.name]);
    }
}

/// Runs a command and returns its standard output.
///
/// # Errors
/// What the command said, where it did not exit with 0.
pub fn run(arguments: &[&str]) -> Result<String> {
    let (program, arguments) = arguments.split_first().expect("a program to run");
    output_of(Command::new(program).args(arguments).stdin(Stdio::null()))
}

/// A command as one would type it.
pub fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

fn output_of(command: &mut Command) -> Result<String> {
    let line = command_line(command);
    let output = command
        .output()
        .map_err(|why| Failure(format!("{line}: {why}")))?;
    if !output.status.success() {
        let said = [output.stderr, output.stdout]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        return Err(Failure(format!(
            "{line}: {}: {}",
            output.status,
            said.join(" ").trim()
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where an interface stands and what it is called.
struct End<'a> {
    netns: &'a Netns,
    name: &'a str,
    mac: String,
}

/// Makes the namespaces and everything in them, in the shape that the head of [`super`] draws.
pub(super) fn build(bed: &Testbed) -> Result<()> {
    for netns in bed.namespaces() {
        run(&["ip", "netns", "add", netns.name()])?;
        quieten(netns)?;
    }
    let end = |netns, name, mac| End { netns, name, mac };
    for (site, host_interface, wire_interface) in
        [(Site::West, "a0", "w1"), (Site::East, "b0", "w2")]
    {
        let (host, gateway, spec) = (bed.host(site), bed.gateway(site).netns(), bed.spec());
        veth(
            &end(host, host_interface, site.host_mac()),
            &end(gateway, "lan0", site.lan_mac()),
            spec.inner_mtu,
            spec.ports.queues(),
        )?;
        let wire_mac = format!("02:00:00:00:0f:{:02x}", site.number());
        veth(
            &end(&bed.wire, wire_interface, wire_mac),
            &end(gateway, "wan0", site.wan_mac()),
            spec.outer_mtu_of(site),
            spec.ports.queues(),
        )?;
        address_host(host, host_interface, site, spec.static_neighbours)?;
    }
    match (bed.spec().router, &bed.spec().nat) {
        (Some(_), _) => router::build(bed),
        (None, Some(nat)) => nat.build(bed),
        (None, None) => bridge(&bed.wire),
    }
}

/// Stops the kernel in a namespace from talking by itself, before it has interfaces to talk on.
fn quieten(netns: &Netns) -> Result<()> {
    let script = "
        set_to() { if [ -e /proc/sys/net/$1 ]; then echo $2 > /proc/sys/net/$1; fi; }
        set_to ipv4/ip_forward 0
        set_to ipv6/conf/all/forwarding 0
        for scope in all default; do
            set_to ipv6/conf/$scope/accept_dad 0
            set_to ipv6/conf/$scope/dad_transmits 0
            set_to ipv6/conf/$scope/accept_ra 0
            set_to ipv6/conf/$scope/router_solicitations 0
            set_to ipv6/conf/$scope/addr_gen_mode 1
        done
        for tables in iptables ip6tables arptables; do set_to bridge/bridge-nf-call-$tables 0; done";
    netns.run(&["sh", "-c", script])?;
    run(&["ip", "-n", netns.name(), "link", "set", "lo", "up"]).map(drop)
}

/// Joins two namespaces by a veth pair. Packets on it look as they would on a real wire: finished checksums, nothing
/// larger than the MTU. An AF_XDP port must have as many queues as DPDK polls: the kernel keeps what enters by others.
fn veth(near: &End<'_>, far: &End<'_>, mtu: u16, queues: u16) -> Result<()> {
    let (mtu, queues) = (mtu.to_string(), queues.to_string());
    let side = |end: &End<'_>| {
        let words = [
            end.name,
            "netns",
            end.netns.name(),
            "address",
            &end.mac,
            "mtu",
            &mtu,
        ];
        let queues = ["numrxqueues", &queues, "numtxqueues", &queues];
        words
            .into_iter()
            .chain(queues)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let mut words: Vec<String> = ["ip", "link", "add"].map(str::to_owned).into();
    words.extend(side(near));
    words.extend(["type", "veth", "peer", "name"].map(str::to_owned));
    words.extend(side(far));
    run(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
    for end in [near, far] {
        end.netns.run(&[
            "ethtool", "-K", end.name, "tx", "off", "tso", "off", "gso", "off", "gro", "off",
        ])?;
        if end.name != "a0" && end.name != "b0" {
            // An interface that DPDK reads beside the kernel: only the gateway's own twin of it may answer.
            let settings = [
                "ipv6/conf/{}/disable_ipv6",
                "ipv4/conf/{}/arp_ignore",
                "ipv4/conf/{}/rp_filter",
            ]
            .map(|setting| format!("echo 1 > /proc/sys/net/{}", setting.replace("{}", end.name)));
            end.netns.run(&["sh", "-c", &settings.join("; ")])?;
        }
        run(&["ip", "-n", end.netns.name(), "link", "set", end.name, "up"])?;
    }
    Ok(())
}

/// Gives a host its addresses, its routes to the other site and, where wanted, its gateway as a static neighbour.
fn address_host(host: &Netns, interface: &str, site: Site, static_neighbours: bool) -> Result<()> {
    let mac = site.lan_mac();
    for family in [Family::V4, Family::V6] {
        let (address, gateway) = (
            site.host_address(family).to_string(),
            site.lan_address(family).to_string(),
        );
        let length = if family == Family::V4 { "24" } else { "64" };
        let prefix = format!("{address}/{length}");
        let far = site.other().network(family);
        let ip = |words: &[&str]| {
            let all = [&["ip", "-n", host.name(), family.ip_option()], words].concat();
            run(&all).map(drop)
        };
        let add = ["address", "add", &prefix, "dev", interface];
        ip(&[&add[..], family.no_dad()].concat())?;
        if static_neighbours {
            ip(&[
                "neighbour",
                "replace",
                &gateway,
                "lladdr",
                &mac,
                "dev",
                interface,
                "nud",
                "permanent",
            ])?;
        }
        ip(&["route", "add", &far, "via", &gateway, "dev", interface])?;
    }
    Ok(())
}

/// Joins the two ends of the wire.
fn bridge(wire: &Netns) -> Result<()> {
    let ip = |words: &[&str]| run(&[&["ip", "-n", wire.name(), "link"], words].concat()).map(drop);
    ip(&[
        "add",
        "br0",
        "type",
        "bridge",
        "stp_state",
        "0",
        "mcast_snooping",
        "0",
        "forward_delay",
        "0",
    ])?;
    wire.run(&[
        "sh",
        "-c",
        "echo 1 > /proc/sys/net/ipv6/conf/br0/disable_ipv6",
    ])?;
    ip(&["set", "w1", "master", "br0"])?;
    ip(&["set", "w2", "master", "br0"])?;
    ip(&["set", "br0", "up"])
}
