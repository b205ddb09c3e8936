//! What a NIC's receive side scaling makes of headers: the Toeplitz hash, and the queue it leads to.
//!
//! The hash is linear: every bit of the input that is set adds (xor) the 32 bits of the key that begin at its place. The
//! low bits of the sum pick an entry of the redirection table, and that names the queue.

use std::net::IpAddr;

use arrayvec::ArrayVec;

use crate::ids::{QueueId, Spi};

/// The key that ports are given where their driver takes one: Microsoft's, which the published test vectors are for and
/// many drivers have by default; 40 bytes. Those after are the same again, for NICs with longer keys, and reach no input
/// of up to 36 bytes, which is two IPv6 addresses and an SPI.
pub static RSS_KEY: [u8; 80] = {
    let mut key = [0; 80];
    let (first, second) = key.split_at_mut(40);
    first.copy_from_slice(&MICROSOFT_KEY);
    second.copy_from_slice(&MICROSOFT_KEY);
    key
};

const MICROSOFT_KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
    0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
    0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

/// Entries of the redirection table that most NICs have at least. Where the number of queues is a power of two, every
/// size that is no less gives the same queues.
pub const USUAL_TABLE_LEN: u16 = 128;

/// What of an ESP packet a NIC hashes, where it looks at the SPI at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EspInput {
    /// The SPI alone.
    Spi,
    /// Source address, destination address, SPI.
    AddressesSpi,
}

impl EspInput {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Spi, Self::AddressesSpi];

    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Spi => "the SPI alone",
            Self::AddressesSpi => "addresses and SPI",
        }
    }
}

/// The Toeplitz hash of `input` under `key`. Bits that the key does not reach count for nothing.
pub fn toeplitz(key: &[u8], input: &[u8]) -> u32 {
    let at = |index: usize| u64::from(key.get(index).copied().unwrap_or(0));
    // The 32 bits of the key that belong to the first bit of a byte, and the eight after them.
    let mut window = (0..4usize).fold(0u64, |window, index| window << 8 | at(index));
    let mut hash = 0u64;
    for (byte, next) in input.iter().zip(4usize..) {
        window = window << 8 | at(next);
        for bit in 0..8u32 {
            if byte << bit & 0x80 != 0 {
                hash ^= window >> 8u32.saturating_sub(bit);
            }
        }
    }
    crate::bits::low_32(hash)
}

/// How a port spreads packets over its receive queues.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spreading {
    key: Vec<u8>,
    /// Not empty.
    table: Vec<u16>,
}

impl Spreading {
    /// From the key and the redirection table that a port has; `None` for a table that is empty or whose length is no
    /// power of two.
    pub fn new(key: &[u8], table: &[u16]) -> Option<Self> {
        table.len().is_power_of_two().then(|| Self {
            key: key.to_vec(),
            table: table.to_vec(),
        })
    }

    /// [`RSS_KEY`], and the usual table: its entries go through all `queues`, over and over.
    pub fn usual(queues: u16, table_len: u16) -> Option<Self> {
        let queues = queues.max(1);
        let entries = (0..table_len).map(|entry| entry.checked_rem(queues).unwrap_or(0));
        Self::new(&RSS_KEY, &entries.collect::<Vec<_>>())
    }

    /// The queue of what hashes to `hash`.
    pub fn queue(&self, hash: u32) -> QueueId {
        let mask = self.table.len().saturating_sub(1);
        let entry = usize::try_from(hash).unwrap_or(0) & mask;
        QueueId(self.table.get(entry).copied().unwrap_or(0))
    }

    /// How many queues packets may come to.
    pub fn queues(&self) -> usize {
        let highest = self.table.iter().max().copied().unwrap_or(0);
        usize::from(highest).saturating_add(1)
    }

    /// The queue of an ESP packet from `source` to `destination`.
    pub fn esp_queue(
        &self,
        input: EspInput,
        source: IpAddr,
        destination: IpAddr,
        spi: Spi,
    ) -> QueueId {
        let mut bytes = ArrayVec::<u8, 36>::new();
        if input == EspInput::AddressesSpi {
            for address in [source, destination] {
                match address {
                    IpAddr::V4(address) => bytes.extend(address.octets()),
                    IpAddr::V6(address) => bytes.extend(address.octets()),
                }
            }
        }
        bytes.extend(spi.get().to_be_bytes());
        self.queue(toeplitz(&self.key, &bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn octets(address: &str) -> Vec<u8> {
        match address.parse().expect("address") {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        }
    }

    /// Source, its port, destination, its port, the hash of the addresses and that of addresses and ports.
    type Vector = (&'static str, u16, &'static str, u16, u32, u32);

    /// Microsoft, "Verifying the RSS Hash Calculation".
    const VECTORS: [Vector; 8] = [
        (
            "66.9.149.187",
            2794,
            "161.142.100.80",
            1766,
            0x323e_8fc2,
            0x51cc_c178,
        ),
        (
            "199.92.111.2",
            14230,
            "65.69.140.83",
            4739,
            0xd718_262a,
            0xc626_b0ea,
        ),
        (
            "24.19.198.95",
            12898,
            "12.22.207.184",
            38024,
            0xd2d0_a5de,
            0x5c2b_394a,
        ),
        (
            "38.27.205.30",
            48228,
            "209.142.163.6",
            2217,
            0x8298_9176,
            0xafc7_327f,
        ),
        (
            "153.39.163.191",
            44251,
            "202.188.127.2",
            1303,
            0x5d18_09c5,
            0x10e8_28a2,
        ),
        (
            "3ffe:2501:200:1fff::7",
            2794,
            "3ffe:2501:200:3::1",
            1766,
            0x2cc1_8cd5,
            0x4020_7d3d,
        ),
        (
            "3ffe:501:8::260:97ff:fe40:efab",
            14230,
            "ff02::1",
            4739,
            0x0f0c_461c,
            0xdde5_1bbf,
        ),
        (
            "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
            44251,
            "fe80::200:f8ff:fe21:67cf",
            38024,
            0x4b61_e985,
            0x02d1_feef,
        ),
    ];

    #[test]
    fn microsoft_vectors_hash_as_published() {
        for (source, source_port, destination, port, addresses_alone, with_ports) in VECTORS {
            let mut input = octets(source);
            input.extend(octets(destination));
            assert_eq!(toeplitz(&RSS_KEY, &input), addresses_alone, "{source}");
            input.extend(u16::to_be_bytes(source_port));
            input.extend(u16::to_be_bytes(port));
            assert_eq!(toeplitz(&RSS_KEY, &input), with_ports, "{source}");
            assert_eq!(
                toeplitz(&MICROSOFT_KEY, &input),
                with_ports,
                "40 bytes are enough"
            );
        }
    }

    #[test]
    fn hash_is_linear_and_ends_where_the_key_does() {
        assert_eq!(toeplitz(&RSS_KEY, &[]), 0);
        assert_eq!(toeplitz(&RSS_KEY, &[0x80]), 0x6d5a_56da);
        assert_eq!(toeplitz(&RSS_KEY, &[0x40]), 0xdab4_adb4);
        assert_eq!(toeplitz(&[0xff], &[0x01]), 0x8000_0000);
        assert_eq!(toeplitz(&[0xff], &[0, 0xff]), 0);
    }

    #[test]
    fn esp_input_is_addresses_and_then_the_spi_in_network_order() {
        let spreading = Spreading::usual(4, 128).expect("a power of two");
        let spi = Spi::new(0x1234_5678).expect("not reserved");
        let (one, two) = (
            Ipv4Addr::new(192, 0, 2, 1).into(),
            Ipv4Addr::new(192, 0, 2, 2).into(),
        );
        let expected =
            |bytes: &[u8]| QueueId(u16::try_from(toeplitz(&RSS_KEY, bytes) % 4).expect("small"));
        assert_eq!(
            spreading.esp_queue(EspInput::Spi, one, two, spi),
            expected(&[0x12, 0x34, 0x56, 0x78])
        );
        assert_eq!(
            spreading.esp_queue(EspInput::AddressesSpi, one, two, spi),
            expected(&[192, 0, 2, 1, 192, 0, 2, 2, 0x12, 0x34, 0x56, 0x78])
        );
        let six = |last| Ipv6Addr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]);
        let mut bytes = six(1).octets().to_vec();
        bytes.extend(six(2).octets());
        bytes.extend([0x12, 0x34, 0x56, 0x78]);
        assert_eq!(
            spreading.esp_queue(EspInput::AddressesSpi, six(1).into(), six(2).into(), spi),
            expected(&bytes)
        );
    }

    #[test]
    fn table_of_any_size_gives_the_same_where_queues_are_a_power_of_two() {
        let tables: Vec<_> = [16, 64, 128, 512]
            .into_iter()
            .map(|len| Spreading::usual(8, len).expect("a power of two"))
            .collect();
        for hash in (0..10_000u32).map(|number| number.wrapping_mul(0x9e37_79b9)) {
            let queues: Vec<_> = tables.iter().map(|table| table.queue(hash)).collect();
            assert!(queues.iter().all(|queue| *queue == queues[0]), "{hash:#x}");
        }
        assert_eq!(tables[0].queues(), 8);
        assert!(Spreading::usual(4, 0).is_none() && Spreading::usual(4, 100).is_none());
    }
}
