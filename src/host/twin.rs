//! One TAP interface.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use ipnet::IpNet;
use rustix::io::Errno;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::netlink::Netlink;
use super::{HostError, TwinSettings};

/// A port's twin in the kernel. It goes when this does.
pub(super) struct Twin {
    device: SyncDevice,
    name: String,
    index: u32,
    netlink: Netlink,
    /// What the kernel was told last; a new interface has a carrier.
    carrier: bool,
}

impl Twin {
    /// Makes the interface, addresses it, and takes it up.
    pub(super) fn new(settings: &TwinSettings) -> Result<Self, HostError> {
        let fail = |what, error: io::Error| HostError {
            name: settings.name.clone(),
            help: match Errno::from_io_error(&error) {
                Some(Errno::PERM) => {
                    "run as root or with CAP_NET_ADMIN, or write host = false for the port"
                }
                Some(Errno::BUSY) => {
                    "an interface of that name is there already; rename the port or the interface"
                }
                _ => {
                    "see that /dev/net/tun is there (modprobe tun), or write host = false for the port"
                }
            },
            what,
            error,
        };
        // Not up yet: the kernel begins to talk when it is, and should do so from the right address.
        let device = DeviceBuilder::new()
            .name(&settings.name)
            .layer(Layer::L2)
            .mac_addr(settings.mac)
            .mtu(settings.mtu)
            .enable(false)
            .build_sync()
            .map_err(|error| fail("TUNSETIFF", error))?;
        rustix::io::ioctl_fionbio(&device, true).map_err(|error| fail("FIONBIO", error.into()))?;
        let index = device.if_index().map_err(|error| fail("if_index", error))?;
        let netlink = Netlink::new().map_err(|error| fail("netlink", error))?;
        for address in settings.addresses.iter().chain(&link_local(settings)) {
            netlink
                .add_address(index, address)
                .map_err(|error| fail("RTM_NEWADDR", error))?;
        }
        netlink
            .set_up(index)
            .map_err(|error| fail("RTM_SETLINK", error))?;
        Ok(Self {
            device,
            name: settings.name.clone(),
            index,
            netlink,
            carrier: true,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The kernel's number of it.
    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// Gives a frame to the kernel.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.device.send(frame).map(drop)
    }

    /// Takes a frame from the kernel into `room`, and returns its length.
    pub(super) fn receive(&self, room: &mut [u8]) -> io::Result<usize> {
        self.device.recv(room)
    }

    /// Says whether there is a link. What the kernel knows already costs nothing.
    pub(super) fn set_carrier(&mut self, up: bool) -> io::Result<()> {
        if self.carrier != up {
            // Said once, even where the kernel refuses.
            self.carrier = up;
            self.netlink.set_carrier(self.index, up)?;
        }
        Ok(())
    }
}

/// The link-local address of a twin that has IPv6 (RFC 4291 appendix A), where the policy gives it none. The kernel makes the
/// same one by itself, unless it was told to make none; and without one it asks for no neighbour.
fn link_local(settings: &TwinSettings) -> Option<IpNet> {
    let of_v6 = |address: &&IpNet| address.addr().is_ipv6();
    let is_link_local = |address: &IpNet| match address.addr() {
        IpAddr::V6(own) => own.is_unicast_link_local(),
        IpAddr::V4(_) => false,
    };
    let mut with_v6 = settings.addresses.iter().filter(of_v6).peekable();
    with_v6.peek()?;
    if with_v6.any(is_link_local) {
        return None;
    }
    let [a, b, c, d, e, f] = settings.mac;
    let own = [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ];
    IpNet::new(IpAddr::from(own), 64).ok()
}

impl AsFd for Twin {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}
