//! One TAP interface.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use ipnet::IpNet;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, netdevice, socket};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::netlink::Netlink;
use super::{HostError, TwinSettings};
use crate::policy::compile::link_local;

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
                Some(Errno::BUSY | Errno::INVAL | Errno::EXIST) => {
                    "an interface of that name is there already; rename the port or the interface"
                }
                Some(Errno::ACCESS) => {
                    "the port has an IPv6 address: sysctl net.ipv6.conf.default.disable_ipv6=0"
                }
                _ => {
                    "see that /dev/net/tun is there (modprobe tun), or write host = false for the port"
                }
            },
            what,
            error,
        };
        // One that is there would be taken over, and left behind with our addresses, where it is a TAP interface of somebody's.
        if interface_exists(&settings.name) {
            return Err(fail("TUNSETIFF", Errno::BUSY.into()));
        }
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
        // Without one the kernel asks for no neighbour.
        let link_local = link_local(settings.mac, &settings.addresses)
            .and_then(|own| IpNet::new(own.into(), 64).ok());
        for address in settings.addresses.iter().chain(&link_local) {
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

fn interface_exists(name: &str) -> bool {
    socket(AddressFamily::UNIX, SocketType::DGRAM, None)
        .is_ok_and(|socket| netdevice::name_to_index(socket, name).is_ok())
}

impl AsFd for Twin {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}
