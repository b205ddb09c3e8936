//! Every way a packet can leave the path other than being sent, in one place.
//!
//! A packet that was received ends in exactly one of: sent, dropped for one [`DropReason`], punted for one
//! [`PuntReason`]. The sum is checked by tests.
#![forbid(unsafe_code)]

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal, $help:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u8)]
        pub enum $name { $(#[doc = $help] $variant,)* }

        impl $name {
            /// Every reason, in counter order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// How many there are: the length of a counter array.
            pub const COUNT: usize = Self::ALL.len();

            /// The name in `simplon show` and its JSON; stable.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// One line for the operator: what happened.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }

            /// Position in a counter array, below [`Self::COUNT`].
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

reasons! {
    /// Why a packet was dropped.
    DropReason {
        Runt = "runt", "Shorter than the headers it announces.";
        Chained = "chained", "Spread over several buffers, or a buffer somebody else holds too.";
        NotOurMac = "not-our-mac", "The destination MAC is neither this port's nor a group address.";
        UnknownVlan = "unknown-vlan", "Its VLAN tags are those of no port of the device.";
        UnknownEtherType = "unknown-ethertype", "Neither IPv4, IPv6 nor ARP.";
        BadVersion = "bad-version", "The IP version does not match the EtherType, or the header length is impossible.";
        BadLength = "bad-length", "The IP length field does not fit the packet.";
        BadChecksum = "bad-checksum", "The IPv4 header checksum is wrong.";
        BadExtension = "bad-extension", "IPv6 extension headers are malformed or too many.";
        ClearText = "clear-text", "Arrived unprotected on the unprotected side, is not for the gateway, and no bypass policy names it.";
        Fragment = "fragment", "A fragment of an ESP packet that cannot be put together: other headers stand before its fragment header.";
        FragmentTiny = "fragment-tiny", "A fragment that carries too little to be honest, or no whole number of 8 bytes.";
        FragmentOverlap = "fragment-overlap", "A fragment that overlaps another; with it goes the whole packet (RFC 5722).";
        FragmentExcess = "fragment-excess", "A packet in more fragments, or longer, than are put together.";
        FragmentTimeout = "fragment-timeout", "The other fragments did not come in time.";
        FragmentEvicted = "fragment-evicted", "Fragments of newer packets took the room before the others came.";
        NoSa = "no-sa", "No inbound SA has this SPI and destination address.";
        EncapMismatch = "encap-mismatch", "ESP in UDP where the SA wants plain ESP, or the reverse.";
        ZeroSequence = "zero-sequence", "Sequence number 0, which no sender may use.";
        Replayed = "replayed", "This sequence number was received before.";
        TooOld = "too-old", "The sequence number is left of the anti-replay window.";
        BadIcv = "bad-icv", "The integrity check value is wrong: corrupted, forged, or another key.";
        BadPadding = "bad-padding", "Authentic, but the ESP padding is not 1, 2, 3 and so on.";
        BadNextHeader = "bad-next-header", "Authentic, but neither IPv4, IPv6 nor a dummy packet is inside.";
        BadInner = "bad-inner", "Authentic, but the packet inside is malformed.";
        Dummy = "dummy", "An authentic dummy packet (next header 59), swallowed as RFC 4303 section 2.6 asks.";
        CeOnNotEct = "ce-on-not-ect", "Congestion marked on an inner packet that cannot carry the mark (RFC 6040).";
        SelectorMismatch = "selector-mismatch", "The inner packet does not fit the SA that carried it (RFC 4301 section 5.2).";
        NatKeepalive = "nat-keepalive", "A NAT keepalive (RFC 3948 section 2.3), swallowed.";
        NoPolicy = "no-policy", "No policy names it; the default is discard.";
        Discarded = "discarded", "A discard policy names it.";
        SaDown = "sa-down", "The SA of this policy was not started; the log and `show sa` say why.";
        SaExpired = "sa-expired", "The SA's lifetime is over, in bytes, packets or time; it needs a new key.";
        SeqExhausted = "seq-exhausted", "The SA has used its last sequence number and needs a new key.";
        LeaseWait = "lease-wait", "The sequence numbers leased on disk ran out before the next lease was written.";
        SealFailed = "seal-failed", "The cipher refused the packet; nothing of it was sent.";
        NoRoom = "no-room", "The buffer has no room for the ESP headers or trailer.";
        TooBig = "too-big", "Larger than its tunnel or the port it leaves by takes, and not to be fragmented.";
        NoRoute = "no-route", "No route to the destination out of the paired port.";
        NoBuffer = "no-buffer", "The buffer pool was empty when packets had to be cut into fragments.";
        NoNeighbour = "no-neighbour", "The next hop's MAC address is not known.";
        TtlExpired = "ttl-expired", "The TTL or hop limit ran out here.";
        TxFull = "tx-full", "The paired port's transmit queue stayed full.";
        PuntLimit = "punt-limit", "More of its kind than the control side takes in a second.";
        PuntFull = "punt-full", "The ring to the control side is full.";
    }
}

reasons! {
    /// Why a packet was handed to the control side.
    PuntReason {
        Arp = "arp", "ARP.";
        NeighbourDiscovery = "neighbour-discovery", "IPv6 neighbour discovery.";
        Icmp = "icmp", "ICMP for the gateway itself.";
        Ike = "ike", "IKE: UDP port 500, or port 4500 with the non-ESP marker.";
        Multicast = "multicast", "Sent to everyone on the link: routing protocols, group membership, DHCP.";
        Local = "local", "Anything else for the gateway itself.";
        Unresolved = "unresolved", "Waits until the next hop's MAC address is found; `show ports` says what became of it.";
    }
}

reasons! {
    /// Why a packet was taken aside: others stand for it, which the gateway makes.
    Aside {
        CutAndSeal = "cut-before", "Too big for its tunnel: cut into fragments, each of which was sealed.";
        CutAndSend = "cut-after", "Too big for where it leaves, sealed or opened: cut into fragments, which were sent.";
        Reassemble = "reassembled", "A fragment of a packet that was put together, and then opened.";
    }
}

/// Where a packet stands. Decided by the stages, acted on once at the end of the burst.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Still on its way.
    Live,
    /// On its way in clear, as a policy says. The stages of ESP pass it over; then it is routed, and live again.
    Bypassed,
    /// To be freed and counted.
    Dropped(DropReason),
    /// To be handed to the control side and counted.
    Punted(PuntReason),
    /// To be made others of and counted.
    Aside(Aside),
}

impl From<DropReason> for Fate {
    fn from(reason: DropReason) -> Self {
        Self::Dropped(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn reason_names_are_unique_and_indices_dense() {
        let names: HashSet<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), DropReason::COUNT);
        for (at, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), at);
        }
        for (at, reason) in PuntReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), at);
        }
    }

    #[test]
    fn fate_fits_two_bytes() {
        assert_eq!(size_of::<Fate>(), 2);
    }
}
