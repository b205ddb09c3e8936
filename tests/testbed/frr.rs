//! A BGP speaker in a namespace: FRR's `zebra` and `bgpd` (Debian's package `frr`), with files and sockets of their own.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use rustix::process::Signal;

use super::{Failure, Netns, Result, run, send_signal, wait_until};

/// Where Debian puts the daemons.
const DAEMONS: &str = "/usr/lib/frr";
/// Longest time from a daemon's start to its first answer.
const START: Duration = Duration::from_secs(20);

/// One speaker. Its daemons end when it is dropped.
pub struct Bgp {
    netns: Netns,
    dir: PathBuf,
    daemons: Vec<Child>,
}

/// What a speaker is to do.
pub struct BgpSpec<'a> {
    /// Its autonomous system, which is its router id's last byte too.
    pub asn: u16,
    /// Address and autonomous system of each speaker that it talks to.
    pub peers: &'a [(&'a str, u16)],
    /// Prefixes of IPv4 that it announces, as long as its kernel has them.
    pub networks: &'a [&'a str],
}

impl Bgp {
    /// Starts both daemons in `netns`, with their files in a directory under `dir`.
    ///
    /// # Errors
    /// Where FRR is not there, or does not come up.
    pub fn start(netns: &Netns, dir: &Path, spec: &BgpSpec<'_>) -> Result<Self> {
        let dir = dir.join(format!("frr-{}", spec.asn));
        fs::create_dir(&dir)?;
        // FRR gives up root for a user of its own.
        fs::set_permissions(dir.parent().unwrap_or(&dir), Permissions::from_mode(0o755))?;
        fs::write(
            dir.join("zebra.conf"),
            format!("hostname zebra-{}\n", spec.asn),
        )?;
        fs::write(dir.join("bgpd.conf"), spec.text())?;
        run(&["chown", "-R", "frr:frr", &dir.to_string_lossy()])?;
        let mut speaker = Self {
            netns: netns.clone(),
            dir,
            daemons: Vec::new(),
        };
        speaker.start_daemon("zebra")?;
        speaker.start_daemon("bgpd")?;
        Ok(speaker)
    }

    fn start_daemon(&mut self, name: &str) -> Result<()> {
        let at = |suffix: &str| self.dir.join(format!("{name}{suffix}"));
        let path = Path::new(DAEMONS).join(name);
        if !path.exists() {
            let missing = format!("{} is not there: apt-get install frr", path.display());
            return Err(Failure::new(missing));
        }
        let log = format!("file:{}", at(".log").display());
        let mut command = self.netns.command(&path, "KILL");
        command
            .arg("-f")
            .arg(at(".conf"))
            .arg("-i")
            .arg(at(".pid"))
            .arg("-z")
            .arg(self.dir.join("zserv.api"))
            .arg("--vty_socket")
            .arg(&self.dir)
            .args(["-P", "0", "--log", &log])
            .stdout(fs::File::create(at(".out"))?)
            .stderr(fs::File::create(at(".err"))?);
        self.daemons.push(command.spawn()?);
        let vty = at(".vty");
        if wait_until(START, || vty.exists()) {
            return Ok(());
        }
        let said = fs::read_to_string(at(".err")).unwrap_or_default();
        Err(Failure::new(format!("{name} does not come up: {said}")))
    }

    /// Takes a prefix back, or announces it again, as an operator would at the daemon's terminal.
    ///
    /// # Errors
    /// What `vtysh` says.
    pub fn announce(&self, asn: u16, network: &str, is_on: bool) -> Result<()> {
        let no = if is_on { "" } else { "no " };
        let lines = [
            "configure terminal".to_owned(),
            format!("router bgp {asn}"),
            "address-family ipv4 unicast".to_owned(),
            format!("{no}network {network}"),
        ];
        let dir = self.dir.to_string_lossy();
        let mut words = vec!["vtysh", "--vty_socket", &dir, "-d", "bgpd"];
        for line in &lines {
            words.extend(["-c", line]);
        }
        run(&words).map(drop)
    }

    /// Everything that its daemons have logged.
    pub fn log(&self) -> String {
        let of = |name: &str| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        ["zebra.log", "zebra.err", "bgpd.log", "bgpd.err"]
            .map(of)
            .join("")
    }
}

impl Drop for Bgp {
    fn drop(&mut self) {
        for daemon in self.daemons.iter_mut().rev() {
            send_signal(daemon.id(), Signal::TERM);
            let ended = || matches!(daemon.try_wait(), Ok(Some(_)));
            if !wait_until(Duration::from_secs(5), ended) {
                let _ = daemon.kill();
                let _ = daemon.wait();
            }
        }
    }
}

impl BgpSpec<'_> {
    fn text(&self) -> String {
        let asn = self.asn;
        let [high, low] = asn.to_be_bytes();
        // Quick timers, for a test; connections are tried again every second.
        let mut text = format!(
            "router bgp {asn}\n bgp router-id 198.51.{high}.{low}\n no bgp ebgp-requires-policy\n \
             bgp bestpath as-path multipath-relax\n timers bgp 1 3\n"
        );
        for (address, asn) in self.peers {
            text += &format!(
                " neighbor {address} remote-as {asn}\n neighbor {address} timers connect 1\n \
                 neighbor {address} advertisement-interval 0\n"
            );
        }
        text += " address-family ipv4 unicast\n  maximum-paths 8\n";
        for network in self.networks {
            text += &format!("  network {network}\n");
        }
        text + " exit-address-family\n"
    }
}
