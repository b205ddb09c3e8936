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
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::sockopt;

use super::next_hop::{self, Object};

/// Bytes that the kernel may have said and not been heard: those of some ten thousand routes.
const EVENT_BYTES: usize = 32 << 20;
/// Longest datagram of the kernel's.
const DATAGRAM: usize = 64 << 10;

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
    /// RTNLGRP_NEXTHOP.
    NextHops = 32,
}

impl Group {
    pub(super) const ALL: [Self; 5] = [
        Self::Links,
        Self::Neighbours,
        Self::RoutesV4,
        Self::RoutesV6,
        Self::NextHops,
    ];
}

/// Something that the kernel said, by itself or asked.
pub(super) struct Event {
    pub(super) message: Message,
    /// It takes the place of what was there (`NLM_F_REPLACE`).
    pub(super) replaces: bool,
}

/// What it said.
pub(super) enum Message {
    Route(Box<RouteNetlinkMessage>),
    /// The next hop object of this number is this one now, or gone.
    NextHop(u32, Option<Object>),
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
        // Who may not have as much as that gets what `net.core.rmem_max` lets him have.
        if sockopt::set_socket_recv_buffer_size_force(&socket, EVENT_BYTES).is_err() {
            socket.set_rx_buf_sz(i32::try_from(EVENT_BYTES).unwrap_or(i32::MAX))?;
        }
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
    pub(super) fn next_events(&self) -> io::Result<Option<Vec<Event>>> {
        let bytes = match self.receive() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut events = Vec::new();
        each_message(&bytes, |message| {
            events.extend(event(message));
            true
        })?;
        Ok(Some(events))
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(DATAGRAM);
        self.socket.recv_from(&mut bytes, 0)?;
        Ok(bytes)
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

    /// Sends a request and waits for the kernel's verdict.
    fn request(&self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(request, NLM_F_ACK | flags)?;
        let bytes = self.receive()?;
        let mut verdict = Ok(());
        each_message(&bytes, |message| {
            if let Raw::Parsed(message) = message
                && let NetlinkPayload::Error(error) = message.payload
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

/// Everything of some kinds, as the kernel tells it bit by bit.
pub(super) struct Dump {
    netlink: Netlink,
    /// What is still to be asked.
    questions: Vec<Question>,
    /// Something changed meanwhile, so that what was told may lack something.
    pub(super) was_interrupted: bool,
}

/// What can be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Question {
    Neighbours,
    Routes,
    NextHops,
}

impl Dump {
    /// Asks `questions`, the last one first.
    pub(super) fn new(questions: Vec<Question>) -> io::Result<Self> {
        let mut dump = Self {
            netlink: Netlink::new()?,
            questions,
            was_interrupted: false,
        };
        dump.ask()?;
        Ok(dump)
    }

    /// Asks the next question; false where there is none.
    fn ask(&mut self) -> io::Result<bool> {
        match self.questions.last() {
            None => return Ok(false),
            Some(Question::Neighbours) => {
                let all = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
                self.netlink.send(all, NLM_F_DUMP)?;
            }
            Some(Question::Routes) => {
                let all = RouteNetlinkMessage::GetRoute(RouteMessage::default());
                self.netlink.send(all, NLM_F_DUMP)?;
            }
            Some(Question::NextHops) => {
                let request = next_hop::question(NLM_F_REQUEST | NLM_F_DUMP);
                self.netlink.socket.send(&request, 0)?;
            }
        }
        Ok(true)
    }

    /// The next answers; `None` where there are no more.
    pub(super) fn next_answers(&mut self) -> io::Result<Option<Vec<Event>>> {
        if self.questions.is_empty() {
            return Ok(None);
        }
        let bytes = self.netlink.receive()?;
        let (mut answers, mut is_done, mut refused) = (Vec::new(), false, None);
        each_message(&bytes, |message| {
            if message.flags() & NLM_F_DUMP_INTR != 0 {
                self.was_interrupted = true;
            }
            let Raw::Parsed(parsed) = &message else {
                answers.extend(event(message));
                return true;
            };
            match &parsed.payload {
                NetlinkPayload::Done(done) => {
                    is_done = true;
                    if done.code != 0 {
                        let code = done.code.saturating_abs();
                        refused = Some(io::Error::from_raw_os_error(code));
                    }
                }
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    is_done = true;
                    refused = Some(error.to_io());
                }
                _ => answers.extend(event(message)),
            }
            !is_done
        })?;
        // A kernel that knows no next hop objects (before 5.3) has none.
        let is_optional = self.questions.last() == Some(&Question::NextHops);
        if let Some(error) = refused.filter(|_| !is_optional) {
            return Err(error);
        }
        if is_done {
            self.questions.pop();
            self.ask()?;
        }
        Ok(Some(answers))
    }
}

/// A message as far as it could be read.
enum Raw {
    Parsed(NetlinkMessage<RouteNetlinkMessage>),
    NextHop(next_hop::Said, u16),
}

impl Raw {
    fn flags(&self) -> u16 {
        match self {
            Self::Parsed(message) => message.header.flags,
            Self::NextHop(_, flags) => *flags,
        }
    }
}

fn event(message: Raw) -> Option<Event> {
    let replaces = message.flags() & NLM_F_REPLACE != 0;
    let message = match message {
        Raw::Parsed(message) => match message.payload {
            NetlinkPayload::InnerMessage(message) => Message::Route(Box::new(message)),
            _ => return None,
        },
        Raw::NextHop((id, object), _) => Message::NextHop(id, object),
    };
    Some(Event { message, replaces })
}

/// Calls `take` with each message of a datagram, until it returns false. What cannot be read is passed over: the kernel may
/// know more kinds than this does.
fn each_message(mut bytes: &[u8], mut take: impl FnMut(Raw) -> bool) -> io::Result<()> {
    while let Some(length) = bytes.first_chunk::<4>() {
        // The length is the first field of `struct nlmsghdr`, and messages begin at multiples of four.
        let length = usize::try_from(u32::from_ne_bytes(*length)).unwrap_or(usize::MAX);
        let Some(message) = bytes.get(..length).filter(|message| message.len() >= 16) else {
            return Err(io::Error::other("a netlink message that is cut short"));
        };
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        let flags = u16::from_ne_bytes([message[6], message[7]]);
        let raw = match next_hop::read(kind, &message[16..]) {
            Some(said) => Some(Raw::NextHop(said, flags)),
            None => NetlinkMessage::deserialize(message).ok().map(Raw::Parsed),
        };
        if let Some(raw) = raw
            && !take(raw)
        {
            return Ok(());
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}
