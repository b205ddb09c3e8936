//! Newtypes for the numbers that must not be mixed up. No logic, imports nothing.
#![forbid(unsafe_code)]

use std::fmt;

/// A Security Parameters Index that may appear on the wire (RFC 4303 §2.1), host byte order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Spi(u32);

/// The SPI is 0 (never sent) or 1 to 255 (reserved by IANA), RFC 4303 §2.1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReservedSpi(pub u32);

impl Spi {
    /// The lowest SPI an SA may have.
    pub const MIN: u32 = 256;

    /// Accepts `value` (host byte order) as an SPI.
    ///
    /// # Errors
    /// [`ReservedSpi`] for 0 to 255.
    pub const fn new(value: u32) -> Result<Self, ReservedSpi> {
        if value < Self::MIN {
            Err(ReservedSpi(value))
        } else {
            Ok(Self(value))
        }
    }

    /// The number, host byte order.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

impl fmt::Display for ReservedSpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SPI {} is reserved (0 to 255)", self.0)
    }
}

macro_rules! index {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $int);

        impl $name {
            /// The number as a slice index.
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}

index! {
    /// Slot of an SA in its direction's half of the SAD.
    SaIndex(u32)
}
index! {
    /// Position of a tunnel in the policy.
    TunnelIndex(u32)
}
index! {
    /// Position of a port in the policy file, not DPDK's number.
    PortIndex(u16)
}
index! {
    /// Position of a next hop in the published tables.
    NextHopIndex(u32)
}
index! {
    /// DPDK's number for a port.
    PortId(u16)
}
index! {
    /// A receive or transmit queue of one port.
    QueueId(u16)
}

impl NextHopIndex {
    /// Set in the number of a group of next hops; far above the number of any single one.
    const GROUP: u32 = 1 << 24;

    /// The number that stands for the group at `at`: one of several next hops, which is yet to be chosen.
    pub const fn of_group(at: u32) -> Self {
        Self(at | Self::GROUP)
    }

    /// The group's position in the published tables; `None` where it is a single next hop.
    pub const fn group(self) -> Option<u32> {
        if self.0 & Self::GROUP == 0 {
            None
        } else {
            Some(self.0 & !Self::GROUP)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spi_refuses_reserved_range() {
        assert_eq!(Spi::new(0), Err(ReservedSpi(0)));
        assert_eq!(Spi::new(255), Err(ReservedSpi(255)));
        assert_eq!(Spi::new(256).map(Spi::get), Ok(256));
    }
}
