//! Requests to the kernel over rtnetlink, and what it says by itself.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Bytes that the kernel may have said and not been heard, as far as `net.core.rmem_max` lets them be.
const EVENT_BYTES: usize = 8 << 20;

/// A socket to rtnetlink.
pub(super) struct Netlink {
    socket: Socket,
}

/// What the kernel tells of: groups of `linux/rtnetlink.h`.
#[derive(Clone, Copy)]
pub(super) enum Group {
    /// RTNLGRP_LINK.
    Links = 1,
    /// RTNLGRP_NEIGH.
    Neighbours = 3,
    /// RTNLGRP_IPV4_ROUTE.
    RoutesV4 = 7,
    /// RTNLGRP_IPV6_ROUTE.
    RoutesV6 = 11,
}

impl Group {
    pub(super) const ALL: [Self; 4] = [
        Self::Links,
        Self::Neighbours,
        Self::RoutesV4,
        Self::RoutesV6,
    ];
}

/// Something that the kernel said by itself.
pub(super) struct Event {
    pub(super) message: RouteNetlinkMessage,
    /// It takes the place of what was there (`NLM_F_REPLACE`).
    pub(super) replaces: bool,
}

impl Netlink {
    /// A socket to ask by.
    pub(super) fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    /// A socket to listen at, which never waits.
    pub(super) fn listen(groups: &[Group]) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.set_rx_buf_sz(i32::try_from(EVENT_BYTES).unwrap_or(i32::MAX))?;
        for group in groups {
            socket.add_membership(*group as u32)?;
        }
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// What the kernel said next; `None` where it has said no more.
    ///
    /// # Errors
    /// `ENOBUFS` where something is missing because nobody listened in time.
    pub(super) fn next_event(&self) -> io::Result<Option<Vec<Event>>> {
        match self.socket.recv_from_full() {
            Ok((bytes, _)) => {
                let mut messages = Vec::new();
                each_message(&bytes, |message| {
                    let replaces = message.header.flags & NLM_F_REPLACE != 0;
                    if let NetlinkPayload::InnerMessage(message) = message.payload {
                        messages.push(Event { message, replaces });
                    }
                    true
                })?;
                Ok(Some(messages))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Says whether the interface has a link.
    pub(super) fn set_carrier(&self, interface: u32, up: bool) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = interface;
        message.attributes.push(LinkAttribute::Carrier(up.into()));
        self.request(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Takes the interface up.
    pub(super) fn set_up(&self, interface: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = interface;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Gives the interface an address, usable at once: nobody else may have the gateway's.
    pub(super) fn add_address(&self, interface: u32, address: &IpNet) -> io::Result<()> {
        let own = address.addr();
        let mut message = AddressMessage::default();
        message.header.index = interface;
        message.header.prefix_len = address.prefix_len();
        message.header.family = family(own);
        if own.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        message.attributes.push(AddressAttribute::Local(own));
        message.attributes.push(AddressAttribute::Address(own));
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.request(RouteNetlinkMessage::NewAddress(message), flags)
    }

    /// Has the kernel find out a station's MAC address, and keep it fresh by itself where `kept`.
    pub(super) fn resolve(&self, interface: u32, address: IpAddr, kept: bool) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = interface;
        message
            .attributes
            .push(NeighbourAttribute::Destination(address.into()));
        // A kernel too old to keep it (before 5.16) finds it out all the same.
        message.header.flags = NeighbourFlags::Use;
        if kept {
            let managed = NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed);
            message.attributes.push(managed);
        }
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.request(RouteNetlinkMessage::NewNeighbour(message), flags)
    }

    /// Asks for everything of a kind.
    ///
    /// # Errors
    /// What the kernel says, and where something changed meanwhile; ask again then.
    pub(super) fn dump(
        &mut self,
        question: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let answers = self.try_dump(question);
        if answers.is_err() {
            // What is still to come is nothing that anybody asks for.
            *self = Self::new()?;
        }
        answers
    }

    fn try_dump(&self, question: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.send(question, NLM_F_DUMP)?;
        let mut answers = Vec::new();
        let mut more = true;
        while more {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut refused = None;
            each_message(&bytes, |message| {
                if message.header.flags & NLM_F_DUMP_INTR != 0 {
                    refused = Some(io::Error::from(io::ErrorKind::Interrupted));
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Done(done) => {
                        more = false;
                        if done.code != 0 {
                            refused =
                                Some(io::Error::from_raw_os_error(done.code.saturating_abs()));
                        }
                    }
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        refused = Some(error.to_io());
                    }
                    _ => {}
                }
                more
            })?;
            if let Some(error) = refused {
                return Err(error);
            }
        }
        Ok(answers)
    }

    /// Sends a request and waits for the kernel's verdict.
    fn request(&self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(request, NLM_F_ACK | flags)?;
        let (bytes, _) = self.socket.recv_from_full()?;
        let mut verdict = Ok(());
        each_message(&bytes, |message| {
            if let NetlinkPayload::Error(error) = message.payload
                && error.code.is_some()
            {
                verdict = Err(error.to_io());
            }
            true
        })?;
        verdict
    }

    fn send(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Calls `take` with each message of a datagram, until it returns false. What cannot be read is passed over: the kernel may
/// know more kinds than this does.
fn each_message(
    mut bytes: &[u8],
    mut take: impl FnMut(NetlinkMessage<RouteNetlinkMessage>) -> bool,
) -> io::Result<()> {
    while let Some(length) = bytes.first_chunk::<4>() {
        // The length is the first field of `struct nlmsghdr`, and messages begin at multiples of four.
        let length = usize::try_from(u32::from_ne_bytes(*length)).unwrap_or(usize::MAX);
        let Some(message) = bytes.get(..length).filter(|message| message.len() >= 16) else {
            return Err(io::Error::other("a netlink message that is cut short"));
        };
        if let Ok(message) = NetlinkMessage::deserialize(message)
            && !take(message)
        {
            return Ok(());
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}
