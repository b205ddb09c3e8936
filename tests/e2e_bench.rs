//! `simplon bench` out of real ports: two running gateways between its two interfaces, all in one network namespace.
#![cfg(feature = "dpdk")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use simplon::bench::report::Report;
use tempfile::TempDir;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Joined interfaces with their MAC addresses: generator and west, west and east, east and checker.
const LINKS: [[(&str, &str); 2]; 3] = [
    [("ba", "02:00:00:00:01:10"), ("lw", "02:00:00:00:01:01")],
    [("ww", "02:00:00:00:00:01"), ("we", "02:00:00:00:00:02")],
    [("le", "02:00:00:00:02:01"), ("bb", "02:00:00:00:02:10")],
];

/// A namespace and what runs in it, gone with the value.
struct Lab {
    name: String,
    dir: TempDir,
    gateways: Vec<Child>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        for gateway in &mut self.gateways {
            stop(gateway);
        }
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

/// In order, so that it takes DPDK's files with it; by force after a while.
fn stop(gateway: &mut Child) {
    let pid = i32::try_from(gateway.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        let _ = kill_process(pid, Signal::TERM);
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if !matches!(gateway.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = gateway.kill();
    let _ = gateway.wait();
}

fn done(command: &mut Command) -> Result<Output> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {said}").into())
}

/// What DPDK's driver says where its fanout group is another socket's. It takes process id XOR interface index for the
/// group's number, and several processes in one namespace may meet there; another process id is another number.
const FANOUT_TAKEN: &str = "PACKET_FANOUT";
const ATTEMPTS: usize = 10;

impl Lab {
    fn build() -> Result<Self> {
        let lab = Self {
            name: format!("simplon-bench-{}", std::process::id()),
            dir: TempDir::new()?,
            gateways: Vec::new(),
        };
        done(Command::new("ip").args(["netns", "add", &lab.name]))?;
        for [(a, mac_a), (b, mac_b)] in LINKS {
            let text =
                format!("link add {a} address {mac_a} type veth peer name {b} address {mac_b}");
            done(lab.inside("ip").args(text.split(' ')))?;
        }
        // The kernel has no part in this: no addresses, so nothing of its own on the wire.
        done(
            lab.inside("sysctl")
                .args(["-qw", "net.ipv6.conf.all.disable_ipv6=1"]),
        )?;
        for (interface, _) in LINKS.into_iter().flatten() {
            done(lab.inside("ip").args(["link", "set", interface, "up"]))?;
        }
        for key in ["west.key", "east.key"] {
            let path = lab.dir.path().join(key);
            done(
                simplon()
                    .args(["genkey", "--cipher", "aes-128-gcm"])
                    .arg(path),
            )?;
        }
        Ok(lab)
    }

    /// A command in the namespace, killed should this thread end before it.
    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "ip",
            "netns",
            "exec",
            &self.name,
            program,
        ]);
        command.stdin(Stdio::null());
        command
    }

    fn start_gateway(&mut self, own: u8, other: u8, [lan, wan, host, peer]: [&str; 4]) -> Result {
        let policy = self.dir.path().join(format!("{own}.toml"));
        std::fs::write(
            &policy,
            policy_text(self.dir.path(), (own, other), [lan, wan, host, peer]),
        )?;
        done(simplon().args(["state", "init", "--config"]).arg(&policy))?;
        let log = self.dir.path().join(format!("{own}.log"));
        for _ in 0..ATTEMPTS {
            let mut gateway = self
                .inside(env!("CARGO_BIN_EXE_simplon"))
                .args(["run", "--config"])
                .arg(&policy)
                .stderr(std::fs::File::create(&log)?)
                .spawn()?;
            let waited = self.wait_links(&policy, &mut gateway);
            self.gateways.push(gateway);
            let said = std::fs::read_to_string(&log)?;
            match waited {
                Err(_) if said.contains(FANOUT_TAKEN) => {}
                Err(error) => return Err(format!("{error}: {said}").into()),
                Ok(()) => return Ok(()),
            }
        }
        Err("no fanout group was free".into())
    }

    fn wait_links(&self, policy: &PathBuf, gateway: &mut Child) -> Result {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline && gateway.try_wait()?.is_none() {
            let shown = simplon()
                .args(["show", "ports", "--json", "--config"])
                .arg(policy)
                .output()?;
            let text = String::from_utf8_lossy(&shown.stdout);
            if text.matches("\"link\": \"up\"").count() + text.matches("\"link\":\"up\"").count()
                == 2
            {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err("the gateway's links did not come up".into())
    }

    /// Out of `ba`, back in by `back`.
    fn bench(&self, back: &str, arguments: &str) -> Result<Report> {
        for _ in 0..ATTEMPTS {
            match self.try_bench(back, arguments) {
                Err(error) if error.to_string().contains(FANOUT_TAKEN) => {}
                done => return done,
            }
        }
        Err("no fanout group was free".into())
    }

    fn try_bench(&self, back: &str, arguments: &str) -> Result<Report> {
        let mut command = self.inside(env!("CARGO_BIN_EXE_simplon"));
        command
            .args([
                "bench",
                "--json",
                "--port",
                "net_af_packet0,iface=ba",
                "--return",
            ])
            .arg(format!("net_af_packet1,iface={back}"))
            .args(["--gateway-mac", LINKS[0][1].1])
            .args(["--source", "10.1.0.10", "--destination", "10.2.0.10"])
            .args(arguments.split_whitespace());
        let output = done(&mut command)?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

fn simplon() -> Command {
    Command::new(env!("CARGO_BIN_EXE_simplon"))
}

fn policy_text(dir: &Path, (own, other): (u8, u8), [lan, wan, host, peer]: [&str; 4]) -> String {
    let dir = dir.display();
    let pid = std::process::id();
    let (own_key, other_key) = match own {
        1 => ("west", "east"),
        _ => ("east", "west"),
    };
    format!(
        r#"
[gateway]
name = "bench-{pid}-{own}"
workers = [0]
state_dir = "{dir}/state{own}"
control_socket = "{dir}/{own}.sock"
lab_keys = true
[[port]]
host = false
name = "lan"
device = "net_af_packet0,iface={lan}"
side = "protected"
pair = "wan"
addresses = ["10.{own}.0.1/24"]
[[port]]
host = false
name = "wan"
device = "net_af_packet1,iface={wan}"
side = "unprotected"
pair = "lan"
addresses = ["192.0.2.{own}/24"]
[[neighbour]]
address = "10.{own}.0.10"
mac = "{host}"
port = "lan"
[[neighbour]]
address = "192.0.2.{other}"
mac = "{peer}"
port = "wan"
[[tunnel]]
name = "bench"
local_networks = ["10.{own}.0.0/24"]
remote_networks = ["10.{other}.0.0/24"]
[[tunnel.endpoints]]
local = "192.0.2.{own}"
remote = "192.0.2.{other}"
[tunnel.endpoints.outbound]
spi = 0x100{own}
cipher = "aes-128-gcm"
key = {{ file = "{own_key}.key" }}
[tunnel.endpoints.inbound]
spi = 0x100{other}
cipher = "aes-128-gcm"
key = {{ file = "{other_key}.key" }}
"#
    )
}

#[test]
fn running_gateways_are_measured_out_of_one_interface_and_in_by_another() -> Result {
    let mut lab = Lab::build()?;
    let [[host_a, west_lan], [west_wan, east_wan], [east_lan, host_b]] = LINKS;
    lab.start_gateway(1, 2, [west_lan.0, west_wan.0, host_a.1, east_wan.1])?;

    // One gateway: ESP comes back where the second will be.
    let traffic = "--packets 5k --ring 256 --warmup 0 --sizes 46x7,552x4,1300";
    let report = lab.bench(east_wan.0, &format!("{traffic} --through seal"))?;
    let trial = &report.trials[0];
    assert!(trial.received >= trial.sent * 9 / 10, "{trial:?}");
    assert_eq!((trial.checked, trial.mismatched), (0, 0), "{trial:?}");
    assert!(trial.outer_gbps > trial.inner_gbps, "{trial:?}");

    // Both: every byte is checked. The sequence numbers of the first run are behind.
    lab.start_gateway(2, 1, [east_lan.0, east_wan.0, host_b.1, west_wan.1])?;
    let report = lab.bench(host_b.0, traffic)?;
    let trial = &report.trials[0];
    assert_eq!(trial.sent, 5000);
    assert!(trial.received >= trial.sent * 9 / 10, "{trial:?}");
    assert_eq!(
        (trial.checked, trial.mismatched),
        (trial.received, 0),
        "{trial:?}"
    );
    assert_eq!((trial.reordered, trial.duplicates), (0, 0), "{trial:?}");
    assert_eq!(report.scenario.through, "device");
    Ok(())
}
