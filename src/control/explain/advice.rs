//! What to do about a drop.

use crate::drop::DropReason;

/// What an operator does next; nothing where a drop is as it should be.
pub(super) fn of(reason: DropReason) -> Option<&'static str> {
    Some(match reason {
        DropReason::Runt
        | DropReason::BadVersion
        | DropReason::BadLength
        | DropReason::BadChecksum => {
            "look for what damages it on the way: the sender, offloads of its NIC, a truncated capture"
        }
        DropReason::BadExtension => "no IPv6 packet in use looks like that; look at the sender",
        DropReason::Chained => "have the port's MTU be no larger than what the policy says",
        DropReason::NotOurMac => {
            "the sender has another gateway in mind: look at its route and its neighbours"
        }
        DropReason::UnknownVlan => {
            "give a port these tags with `vlan`, or take the VLAN off the switch port"
        }
        DropReason::UnknownEtherType => return None,
        DropReason::ClearText => {
            "the peer sends it unprotected: have its policy protect it, or add a bypass here if it may pass in clear"
        }
        DropReason::Fragment
        | DropReason::FragmentTiny
        | DropReason::FragmentOverlap
        | DropReason::FragmentExcess => {
            "honest senders make no such fragments; look at what sends them"
        }
        DropReason::FragmentTimeout | DropReason::FragmentEvicted => {
            "fragments get lost on the way: have the peer send ESP that fits the path"
        }
        DropReason::NoSa => "compare SPI and addresses with the peer's; `simplon show sa` has ours",
        DropReason::EncapMismatch => "both ends must say the same `encapsulation`",
        DropReason::ZeroSequence => "the peer is broken: no sender may use number 0",
        DropReason::Replayed => {
            "a copy; if it is none, the peer has begun its numbers again and both ends need a new key"
        }
        DropReason::TooOld => {
            "it was late: a larger `window` would take it; or the peer has begun its numbers again"
        }
        DropReason::BadIcv => "compare key, cipher and `esn` of both ends",
        DropReason::BadPadding | DropReason::BadNextHeader | DropReason::BadInner => {
            "the peer sealed it like that: look there"
        }
        DropReason::Dummy | DropReason::NatKeepalive => return None,
        DropReason::CeOnNotEct => {
            "a router marks what it must not, or the peer copies no ECN: look there"
        }
        DropReason::SelectorMismatch => "compare policies of both ends: each must mirror the other",
        DropReason::NoPolicy => {
            "add it to a tunnel's networks, or add a [[policy]], [[bypass]] or [[discard]]"
        }
        DropReason::Discarded => "change the policy if that is not meant",
        DropReason::SaDown => "`simplon show sa` and the log say why it was not started",
        DropReason::SaExpired | DropReason::SeqExhausted => "give the SA a new key at both ends",
        DropReason::LeaseWait => "look whether the disk of `state_dir` is slow or full",
        DropReason::SealFailed | DropReason::NoRoom => "please report this",
        DropReason::TooBig => {
            "the sender is told what fits: see that ICMP reaches it, or lower its MTU"
        }
        DropReason::NoRoute => "add a route: `ip route` where the port has a twin, or a [[route]]",
        DropReason::NoBuffer => "raise `memory_mib`",
        DropReason::NoNeighbour => {
            "see whether the next hop is up; add a [[neighbour]] where the port has no twin"
        }
        DropReason::TtlExpired => "a loop, or a traceroute; the sender is told",
        DropReason::TxFull | DropReason::PuntLimit | DropReason::PuntFull => {
            "there is more than goes; look at the load"
        }
    })
}
