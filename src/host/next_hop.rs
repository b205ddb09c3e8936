//! Next hop objects of the kernel's (`ip nexthop`), which routing daemons share among routes: `linux/nexthop.h`, which the
//! crate of message types does not know.

use std::net::IpAddr;

const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;
/// Bytes of `struct nhmsg`, before the attributes.
const HEADER: usize = 8;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
/// Bits of an attribute's type that are flags.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// What a number stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Object {
    /// A station on the link of an interface, or the destinations themselves.
    Hop { interface: u32, via: Option<IpAddr> },
    /// Other numbers, each with its weight.
    Group(Vec<(u32, u16)>),
    /// Something that packets do not go to.
    Other,
}

/// A number, and what it stands for; nothing where it is gone.
pub(super) type Said = (u32, Option<Object>);

/// The request for all of them.
pub(super) fn question(flags: u16) -> [u8; 24] {
    let mut request = [0; 24];
    request[..4].copy_from_slice(&24u32.to_ne_bytes());
    request[4..6].copy_from_slice(&RTM_GETNEXTHOP.to_ne_bytes());
    request[6..8].copy_from_slice(&flags.to_ne_bytes());
    request
}

/// Reads a message of `kind` after its netlink header; `None` where it is of another kind, or says nothing.
pub(super) fn read(kind: u16, body: &[u8]) -> Option<Said> {
    let exists = match kind {
        RTM_NEWNEXTHOP => true,
        RTM_DELNEXTHOP => false,
        _ => return None,
    };
    let (mut id, mut group, mut interface, mut via) = (None, None, None, None);
    let mut rest = body.get(HEADER..)?;
    while let Some((&[a, b, c, d], _)) = rest.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let Some(value) = rest.get(4..length) else {
            break;
        };
        let number = || value.first_chunk().copied().map(u32::from_ne_bytes);
        match u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK {
            NHA_ID => id = number(),
            NHA_OIF => interface = number(),
            NHA_GROUP => group = Some(members(value)),
            NHA_GATEWAY => via = address(value),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    let object = match (group, interface) {
        (Some(members), _) => Object::Group(members),
        (None, Some(interface)) => Object::Hop { interface, via },
        (None, None) => Object::Other,
    };
    Some((id?, exists.then_some(object)))
}

/// Entries of `struct nexthop_grp`.
fn members(value: &[u8]) -> Vec<(u32, u16)> {
    let (entries, _) = value.as_chunks::<8>();
    entries
        .iter()
        .map(|&[a, b, c, d, weight, ..]| (u32::from_ne_bytes([a, b, c, d]), u16::from(weight) + 1))
        .collect()
}

fn address(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).expect("short");
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn hops_and_groups_are_read() {
        let header = vec![0; HEADER];
        let hop = [
            header.clone(),
            attribute(NHA_ID, &7u32.to_ne_bytes()),
            attribute(NHA_OIF, &3u32.to_ne_bytes()),
            attribute(NHA_GATEWAY, &[192, 0, 2, 1]),
        ]
        .concat();
        let object = Object::Hop {
            interface: 3,
            via: Some(IpAddr::from([192, 0, 2, 1])),
        };
        assert_eq!(read(RTM_NEWNEXTHOP, &hop), Some((7, Some(object))));
        assert_eq!(read(RTM_DELNEXTHOP, &hop), Some((7, None)));
        assert_eq!(read(24, &hop), None, "a route");
        let entry = |id: u32, weight| [&id.to_ne_bytes()[..], &[weight, 0, 0, 0]].concat();
        let group = [
            header,
            attribute(NHA_GROUP | 0x8000, &[entry(7, 0), entry(8, 2)].concat()),
            attribute(NHA_ID, &9u32.to_ne_bytes()),
        ]
        .concat();
        let object = Object::Group(vec![(7, 1), (8, 3)]);
        assert_eq!(read(RTM_NEWNEXTHOP, &group), Some((9, Some(object))));
        for cut in 0..group.len() {
            let _ = read(RTM_NEWNEXTHOP, &group[..cut]);
        }
    }
}
