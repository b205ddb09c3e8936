//! What is sealed and opened: bursts of packets, laid out as a gateway has them.

use simplon::crypto::aead::{Cipher, ICV_LEN, NONCE_LEN};

/// Packets in a burst.
pub const BURST: usize = 32;
/// Where the text begins in its buffer: behind Ethernet, IPv4, ESP header and IV it is 2 mod 16.
pub const TEXT_AT: usize = 50;
/// ESP texts of IMIX, which is inner IPv4 packets of 46, 552 and 1500 bytes as 7 : 4 : 1: with two bytes of trailer,
/// padded to four.
pub const IMIX: [(usize, usize); 3] = [(48, 7), (556, 4), (1504, 1)];

/// Bytes from one buffer to the next, where the longest text is `longest`.
pub fn stride(longest: usize) -> usize {
    let needed = TEXT_AT + longest + ICV_LEN;
    // A 2,048-byte mbuf with headroom and header; 8,448 keeps texts 64-aligned to each other as well.
    if needed <= 2432 {
        2432
    } else {
        needed.next_multiple_of(64).max(8448)
    }
}

/// The lengths of a burst's texts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sizes {
    /// All of this many bytes.
    Equal(usize),
    /// [`IMIX`], in three bursts that together hold it exactly.
    Imix,
}

impl Sizes {
    /// Bursts after which lengths repeat.
    pub fn period(self) -> usize {
        match self {
            Self::Equal(_) => 1,
            Self::Imix => 3,
        }
    }

    /// The longest text.
    pub fn longest(self) -> usize {
        match self {
            Self::Equal(len) => len,
            Self::Imix => IMIX[2].0,
        }
    }

    /// Lengths of all texts of one period, burst after burst.
    pub fn lengths(self) -> Vec<usize> {
        match self {
            Self::Equal(len) => vec![len; BURST],
            Self::Imix => {
                let mut all: Vec<_> = IMIX
                    .iter()
                    .flat_map(|&(len, share)| std::iter::repeat_n(len, share * 8))
                    .collect();
                shuffle(&mut all, 1);
                all
            }
        }
    }
}

/// One packet, apart from its text.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Which of the keys.
    pub key: usize,
    /// The nonce, another for each packet.
    pub nonce: [u8; NONCE_LEN],
    /// SPI and sequence number.
    pub aad: [u8; 8],
    /// Bytes of text, without the ICV.
    pub len: usize,
}

/// What a burst is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// The cipher of all keys.
    pub cipher: Cipher,
    /// Lengths.
    pub sizes: Sizes,
    /// Keys: each packet has another than the one before it, in an order without a pattern.
    pub keys: usize,
}

/// The bursts of a load in the order in which they come, with what each packet is before and after sealing.
pub struct Bursts {
    /// The load.
    pub load: Load,
    /// The packets of each burst.
    pub packets: Vec<[Packet; BURST]>,
    plain: Vec<u8>,
    // Of each burst, as in `plain`: ciphertext with ICV.
    sealed: Vec<Vec<u8>>,
}

/// Memory in which texts are sealed and opened.
pub struct Arena {
    memory: Vec<u8>,
    first: usize,
    stride: usize,
}

impl Arena {
    /// Room for a burst with texts of up to `longest` bytes.
    pub fn new(longest: usize) -> Self {
        let stride = stride(longest);
        let memory = vec![0; BURST * stride + 4096];
        // At the beginning of a page: figures must not depend on where the allocator had room.
        let first = memory.as_ptr().align_offset(4096);
        Self {
            memory,
            first,
            stride,
        }
    }

    /// The texts of `packets`, each with room for its ICV.
    pub fn texts<'a>(
        &'a mut self,
        packets: &'a [Packet; BURST],
    ) -> impl Iterator<Item = &'a mut [u8]> {
        self.memory[self.first..]
            .chunks_exact_mut(self.stride)
            .zip(packets)
            .map(|(slot, packet)| &mut slot[TEXT_AT..TEXT_AT + packet.len + ICV_LEN])
    }
}

impl Bursts {
    /// `count` bursts, or a few more so that they end with a period of lengths. `seal` seals the text of one packet.
    pub fn new(load: Load, count: usize, mut seal: impl FnMut(&Packet, &mut [u8])) -> Self {
        let lengths = load.sizes.lengths();
        let count = count.next_multiple_of(load.sizes.period());
        let mut order: Vec<_> = (0..load.keys).collect();
        shuffle(&mut order, 2);
        let packet = |at: usize| {
            let seq = at as u64 + 1;
            let mut nonce = [0x5a; NONCE_LEN];
            nonce[4..].copy_from_slice(&seq.to_be_bytes());
            let mut aad = [0, 0, 0x10, 0x01, 0, 0, 0, 0];
            aad[4..].copy_from_slice(&seq.to_be_bytes()[4..]);
            Packet {
                key: order[at % order.len()],
                nonce,
                aad,
                len: lengths[at % lengths.len()],
            }
        };
        let packets: Vec<_> = (0..count)
            .map(|burst| std::array::from_fn(|at| packet(burst * BURST + at)))
            .collect();
        let mut state = 3;
        let plain: Vec<_> = std::iter::repeat_with(|| noise(&mut state).to_le_bytes())
            .flatten()
            .take(load.sizes.longest() + ICV_LEN)
            .collect();
        let sealed = packets
            .iter()
            .map(|burst: &[Packet; BURST]| {
                let mut all = Vec::new();
                for packet in burst {
                    let start = all.len();
                    all.extend_from_slice(&plain[..packet.len + ICV_LEN]);
                    seal(packet, &mut all[start..]);
                }
                all
            })
            .collect();
        Self {
            load,
            packets,
            plain,
            sealed,
        }
    }

    /// Writes what is to be sealed.
    pub fn write_plain(&self, burst: usize, arena: &mut Arena) {
        for text in arena.texts(&self.packets[burst]) {
            text.copy_from_slice(&self.plain[..text.len()]);
        }
    }

    /// Writes what is to be opened.
    pub fn write_sealed(&self, burst: usize, arena: &mut Arena) {
        let mut rest = self.sealed[burst].as_slice();
        for text in arena.texts(&self.packets[burst]) {
            let (sealed, after) = rest.split_at(text.len());
            text.copy_from_slice(sealed);
            rest = after;
        }
    }

    /// Whether the texts are what sealing must give.
    pub fn is_sealed(&self, burst: usize, arena: &mut Arena) -> bool {
        let mut rest = self.sealed[burst].as_slice();
        arena.texts(&self.packets[burst]).all(|text| {
            let (sealed, after) = rest.split_at(text.len());
            rest = after;
            *text == *sealed
        })
    }

    /// Whether the texts are what opening must give.
    pub fn is_plain(&self, burst: usize, arena: &mut Arena) -> bool {
        arena.texts(&self.packets[burst]).all(|text| {
            let len = text.len() - ICV_LEN;
            text[..len] == self.plain[..len]
        })
    }
}

/// SplitMix64.
fn noise(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The key of number `index`, with a salt that is never used.
pub fn key_bytes(cipher: Cipher, index: usize) -> Vec<u8> {
    let mut state = 0x1000 + index as u64;
    std::iter::repeat_with(|| noise(&mut state).to_le_bytes())
        .flatten()
        .take(cipher.key_len())
        .collect()
}

/// The same order every time, without a pattern.
fn shuffle<T>(all: &mut [T], seed: u64) {
    let mut state = seed;
    for end in (1..all.len()).rev() {
        let other = noise(&mut state) % (end as u64 + 1);
        all.swap(end, usize::try_from(other).expect("an index"));
    }
}
