//! Receive side scaling: what a port was asked for, and what its driver says it does.

use std::ptr;

use crate::ids::PortId;

use super::sys;

/// Entries in one piece of a redirection table, as DPDK passes it.
const PIECE: usize = 64;
/// DPDK has keys of at most so many bytes.
const MAX_KEY_LEN: usize = u8::MAX as usize;

/// How a port spreads what it receives over its queues, as its driver tells.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rss {
    /// What it tells packets apart by: `ip`, `tcp`, `udp`, `esp`.
    pub functions: Vec<&'static str>,
    /// The hash key; empty where the driver does not tell.
    pub key: Vec<u8>,
    /// The redirection table, a queue for each value of the hash's low bits; empty where the driver does not tell.
    pub table: Vec<u16>,
}

/// What a port is asked for.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    /// `RTE_ETH_RSS_*` that the driver offers.
    pub(super) fields: u64,
    /// As long as the driver's keys; empty where any key will do.
    pub(super) key: &'static [u8],
    pub(super) queues: u16,
}

/// As much of `key` as the driver of `device` takes; nothing where it takes more.
pub(super) fn fitting(key: &'static [u8], device: &sys::rte_eth_dev_info) -> &'static [u8] {
    key.get(..key_len(device)).unwrap_or_default()
}

/// Length of the driver's keys. One that does not say has the 40 bytes that `rte_eth_rss_conf` speaks of, if any.
fn key_len(device: &sys::rte_eth_dev_info) -> usize {
    match device.hash_key_size {
        0 => 40,
        len => usize::from(len),
    }
}

/// Asks once more for what the driver did not take over when it was configured, as some do not, and returns what holds
/// then. The port has started, on EAL's thread, with RSS on.
pub(super) fn settle(port: PortId, device: &sys::rte_eth_dev_info, wanted: Wanted) -> Rss {
    let mut now = hash(port, device);
    if let Some((_, key)) = &now
        && !key.is_empty()
        && !wanted.key.is_empty()
        && key != wanted.key
    {
        update_hash(port, wanted);
        now = hash(port, device);
    }
    let size = usize::from(device.reta_size);
    let round = |entry: usize| {
        let queue = entry % usize::from(wanted.queues.max(1));
        u16::try_from(queue).unwrap_or(0)
    };
    let even: Vec<u16> = (0..size).map(round).collect();
    let mut found = table(port, size);
    if found.as_ref().is_some_and(|table| *table != even) {
        update_table(port, &even);
        found = table(port, size);
    }
    // A driver that cannot tell has at least accepted it.
    let (fields, key) = now.unwrap_or((wanted.fields, Vec::new()));
    Rss {
        functions: names(fields),
        key,
        table: found.unwrap_or_default(),
    }
}

fn names(fields: u64) -> Vec<&'static str> {
    let all = [
        ("ip", sys::GW_RSS_IP),
        ("tcp", sys::GW_RSS_TCP),
        ("udp", sys::GW_RSS_UDP),
        ("esp", sys::GW_RSS_ESP),
    ];
    let named = all.iter().filter(|(_, bits)| fields & bits != 0);
    named.map(|(name, _)| *name).collect()
}

/// Fields and key, which is empty where the driver has none; `None` where the driver does not tell.
fn hash(port: PortId, device: &sys::rte_eth_dev_info) -> Option<(u64, Vec<u8>)> {
    // Some drivers write 40 bytes, whatever they are told.
    let mut key = [0u8; MAX_KEY_LEN];
    let len = key_len(device);
    let mut conf = sys::rte_eth_rss_conf {
        rss_key: key.as_mut_ptr(),
        rss_key_len: u8::try_from(len).unwrap_or(u8::MAX),
        rss_hf: 0,
    };
    // SAFETY: a port that runs, on EAL's thread (see `settle`). `conf` is ours, and the longest key that its length can
    // speak of fits where it points.
    let told = unsafe { sys::rte_eth_dev_rss_hash_conf_get(port.0, &raw mut conf) };
    let mut key = key.get(..len).unwrap_or_default().to_vec();
    if key.iter().all(|byte| *byte == 0) {
        // Nothing was written: with such a key every hash would be 0.
        key.clear();
    }
    (told == 0).then_some((conf.rss_hf, key))
}

fn update_hash(port: PortId, wanted: Wanted) {
    let mut key = [0u8; MAX_KEY_LEN];
    let Some(head) = key.get_mut(..wanted.key.len()) else {
        return;
    };
    head.copy_from_slice(wanted.key);
    let mut conf = sys::rte_eth_rss_conf {
        rss_key: key.as_mut_ptr(),
        // No longer than `key`.
        rss_key_len: u8::try_from(wanted.key.len()).unwrap_or(u8::MAX),
        rss_hf: wanted.fields,
    };
    // SAFETY: as in `hash`; drivers copy the key during the call. Whether it worked is asked afterwards.
    unsafe { sys::rte_eth_dev_rss_hash_update(port.0, &raw mut conf) };
}

/// The redirection table; `None` where the driver has none or does not tell.
fn table(port: PortId, size: usize) -> Option<Vec<u16>> {
    let mut pieces = pieces(size)?;
    // SAFETY: a port that runs, on EAL's thread (see `settle`). `pieces` has as many as `size` entries take.
    let told = unsafe {
        sys::rte_eth_dev_rss_reta_query(port.0, pieces.as_mut_ptr(), u16::try_from(size).ok()?)
    };
    let entries = pieces.iter().flat_map(|piece| piece.reta).take(size);
    (told == 0).then(|| entries.collect())
}

fn update_table(port: PortId, entries: &[u16]) {
    let (Some(mut pieces), Ok(size)) = (pieces(entries.len()), u16::try_from(entries.len())) else {
        return;
    };
    for (piece, entries) in pieces.iter_mut().zip(entries.chunks(PIECE)) {
        for (place, queue) in piece.reta.iter_mut().zip(entries) {
            *place = *queue;
        }
    }
    // SAFETY: as in `table`. Whether it worked is asked afterwards.
    unsafe { sys::rte_eth_dev_rss_reta_update(port.0, pieces.as_mut_ptr(), size) };
}

/// Room for `size` entries, each asked for.
fn pieces(size: usize) -> Option<Vec<sys::rte_eth_rss_reta_entry64>> {
    let piece = |first: usize| {
        let entries = size.saturating_sub(first).min(PIECE);
        sys::rte_eth_rss_reta_entry64 {
            mask: u64::MAX >> (PIECE - entries),
            reta: [0; PIECE],
        }
    };
    (size > 0).then(|| (0..size).step_by(PIECE).map(piece).collect())
}

/// DPDK's own two Toeplitz hashes in software, `rte_softrss` and `rte_softrss_be`, of 32-bit words of a packet under a key
/// of at least as many bytes and four more. To hold ours against; needs no EAL.
pub fn softrss(words: &[u32], key: &[u8]) -> Option<[u32; 2]> {
    // Key words as in memory: DPDK reads one more than the input has.
    let (key, _) = key.as_chunks::<4>();
    let key: Vec<u32> = key.iter().map(|word| u32::from_ne_bytes(*word)).collect();
    let count = u32::try_from(words.len()).ok()?;
    if key.len() <= words.len() {
        return None;
    }
    let mut converted = vec![0u32; key.len()];
    for (to, from) in converted.iter_mut().zip(&key) {
        *to = u32::from_be(*from);
    }
    let hash = |function: unsafe extern "C" fn(*const u32, u32, *const u32) -> u32, key: &[u32]| {
        // SAFETY: `words` has `count` words and `key` at least one more, both of them 32-bit integers; the functions read
        // no others, and write nothing.
        unsafe { function(words.as_ptr(), count, key.as_ptr()) }
    };
    Some([
        hash(sys::gw_softrss, &key),
        hash(sys::gw_softrss_be, &converted),
    ])
}

/// The key as DPDK's configuration has it: a pointer that drivers read until the port is closed, and never write to.
pub(super) fn key_pointer(key: &'static [u8]) -> (*mut u8, u8) {
    match u8::try_from(key.len()) {
        Ok(len @ 1..) => (key.as_ptr().cast_mut(), len),
        _ => (ptr::null_mut(), 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_pieces_ask_for_every_entry_and_no_other() {
        let masks = |size| -> Vec<u64> {
            let pieces = pieces(size).unwrap_or_default();
            pieces.iter().map(|piece| piece.mask).collect()
        };
        assert_eq!(masks(128), [u64::MAX, u64::MAX]);
        assert_eq!(masks(16), [0xffff]);
        assert_eq!(masks(65), [u64::MAX, 1]);
        assert!(masks(0).is_empty());
    }

    #[test]
    fn functions_are_named_where_any_of_their_kinds_is_on() {
        assert_eq!(names(0), Vec::<&str>::new());
        assert_eq!(names(sys::GW_RSS_FIELDS), ["ip", "tcp", "udp", "esp"]);
        assert_eq!(names(sys::GW_RSS_ESP), ["esp"]);
    }

    #[test]
    fn key_is_cut_to_the_length_of_the_driver_or_left_out() {
        static KEY: [u8; 80] = [7; 80];
        let fits = |hash_key_size| {
            let device = sys::rte_eth_dev_info {
                hash_key_size,
                ..Default::default()
            };
            fitting(&KEY, &device).len()
        };
        assert_eq!([fits(0), fits(40), fits(52), fits(81)], [40, 40, 52, 0]);
    }
}
