//! How outer headers are built: RFC 4301 section 5.1.2, RFC 6040.

/// What stands between the outer IP header and ESP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encapsulation {
    /// Nothing: IP protocol 50.
    None,
    /// UDP (RFC 3948), with our and the peer's port.
    Udp {
        /// Our port, source of what we send.
        local_port: u16,
        /// The peer's port.
        remote_port: u16,
    },
}

/// Where the outer DSCP comes from (RFC 4301 section 5.1.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dscp {
    /// From the inner header.
    Copy,
    /// Always this one, 0 to 63.
    Fixed(u8),
}

/// The outer IPv4 DF bit (RFC 4301 section 8.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DontFragment {
    /// From the inner IPv4 header; set where the inner packet is IPv6, which routers never fragment.
    Copy,
    /// Always set.
    Set,
    /// Always clear.
    Clear,
}

/// The outer ECN field at the tunnel's entry (RFC 6040 section 4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EcnMode {
    /// Normal mode: copied from the inner header.
    Normal,
    /// Compatibility mode: always Not-ECT, for peers that ignore it when opening.
    Compatibility,
}

/// When an IPv4 packet is fragmented that is too big for its tunnel and may be (RFC 4301 section 8.2.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragmentation {
    /// Before it is sealed: the destination puts it together.
    Before,
    /// After it was sealed: the peer puts it together.
    After,
}

/// What becomes of packets that are too big for their tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SizeRules {
    /// Which of both is fragmented.
    pub fragmentation: Fragmentation,
    /// TCP connections are held to segments that fit.
    pub clamp_mss: bool,
    /// The largest outer packet that the path takes, in bytes, from what is known beforehand; [`u16::MAX`] where nothing is.
    pub path_mtu: u16,
}

impl Default for SizeRules {
    fn default() -> Self {
        Self {
            fragmentation: Fragmentation::Before,
            clamp_mss: true,
            path_mtu: u16::MAX,
        }
    }
}

/// How outer headers are built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OuterHeader {
    /// TTL or hop limit, 1 to 255.
    pub hop_limit: u8,
    /// DSCP.
    pub dscp: Dscp,
    /// DF, where the outer header is IPv4.
    pub df: DontFragment,
    /// ECN.
    pub ecn: EcnMode,
}

impl OuterHeader {
    /// The outer TOS or traffic class for an inner one.
    pub fn tos(&self, inner: u8) -> u8 {
        let dscp = match self.dscp {
            Dscp::Copy => inner & !0b11,
            Dscp::Fixed(dscp) => dscp << 2,
        };
        match self.ecn {
            EcnMode::Normal => dscp | inner & 0b11,
            EcnMode::Compatibility => dscp,
        }
    }

    /// The outer DF bit. `inner` is the inner IPv4 header's, `None` for IPv6.
    pub fn dont_fragment(&self, inner: Option<bool>) -> bool {
        match self.df {
            DontFragment::Copy => inner.unwrap_or(true),
            DontFragment::Set => true,
            DontFragment::Clear => false,
        }
    }
}

/// The ECN field that says that there was congestion on the way (RFC 3168 section 5).
pub const CE: u8 = 0b11;

/// The ECN field of the inner packet after the tunnel's exit, from the two that arrived; `None` where the packet must be
/// dropped (RFC 6040 section 4.2, figure 4).
pub fn exit_ecn(inner: u8, outer: u8) -> Option<u8> {
    const NOT_ECT: u8 = 0b00;
    const ECT_1: u8 = 0b01;
    const ECT_0: u8 = 0b10;
    match (inner & 0b11, outer & 0b11) {
        //= https://www.rfc-editor.org/rfc/rfc6040#section-4.2
        //# If the inner ECN field is Not-ECT, the decapsulator MUST NOT
        //# propagate any other ECN codepoint onwards.
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (_, CE) => Some(CE),
        (ECT_0, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_ecn_follows_rfc6040_figure_4() {
        // Rows: inner Not-ECT, ECT(0), ECT(1), CE. Columns: outer Not-ECT, ECT(0), ECT(1), CE.
        let figure = [
            (0b00, [Some(0b00), Some(0b00), Some(0b00), None]),
            (0b10, [Some(0b10), Some(0b10), Some(0b01), Some(0b11)]),
            (0b01, [Some(0b01), Some(0b01), Some(0b01), Some(0b11)]),
            (0b11, [Some(0b11), Some(0b11), Some(0b11), Some(0b11)]),
        ];
        for (inner, row) in figure {
            for (outer, expected) in [0b00, 0b10, 0b01, 0b11].into_iter().zip(row) {
                assert_eq!(
                    exit_ecn(inner, outer),
                    expected,
                    "inner {inner:02b} outer {outer:02b}"
                );
            }
        }
    }

    #[test]
    fn outer_tos_copies_or_replaces_dscp_and_ecn() {
        let outer = |dscp, ecn| OuterHeader {
            hop_limit: 64,
            dscp,
            df: DontFragment::Copy,
            ecn,
        };
        assert_eq!(outer(Dscp::Copy, EcnMode::Normal).tos(0xb9), 0xb9);
        assert_eq!(outer(Dscp::Copy, EcnMode::Compatibility).tos(0xb9), 0xb8);
        assert_eq!(outer(Dscp::Fixed(10), EcnMode::Normal).tos(0xb9), 0x29);
        assert_eq!(
            outer(Dscp::Fixed(10), EcnMode::Compatibility).tos(0xb9),
            0x28
        );
    }
}
