//! No byte outside of a packet's own room is read or written, not even one that would be masked out: texts, both parts of keys
//! and jobs lie against pages that may not be touched, so that it ends the process.
//!
//! Which is why each tier runs in a process of its own: this test again, with a variable that names the tier.
#![cfg(not(miri))]

use std::env;
use std::ffi::c_void;
use std::process::Command;
use std::ptr;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use simplon::crypto::aead::{
    Cipher, FarKey, ICV_LEN, KeyRef, NearKey, OpenJob, SealJob, expand_for, open_burst, seal_burst,
};
use simplon::crypto::tier::Tier;

use super::Message;

const PAGE: usize = 4096;
/// Tells the child which tier to run.
const CHILD: &str = "SIMPLON_TEST_PAGES_TIER";

/// Pages between two that may not be touched.
struct Fenced {
    base: *mut c_void,
    room: usize,
}

impl Fenced {
    fn new(len: usize) -> Self {
        let room = len.next_multiple_of(PAGE).max(PAGE);
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: new memory, wherever the kernel likes.
        let base = unsafe {
            mmap_anonymous(ptr::null_mut(), room + 2 * PAGE, prot, MapFlags::PRIVATE).expect("mmap")
        };
        for fence in [0, PAGE + room] {
            let at = base.wrapping_byte_add(fence);
            // SAFETY: the first and the last page of the mapping, to which nothing refers.
            unsafe { mprotect(at, PAGE, MprotectFlags::empty()) }.expect("fence");
        }
        Self { base, room }
    }

    /// The first `len` bytes between the fences, or the last.
    fn text(&mut self, len: usize, last: bool) -> &mut [u8] {
        assert!(len <= self.room);
        let from = if last { self.room - len } else { 0 };
        let at = self.base.wrapping_byte_add(PAGE + from).cast::<u8>();
        // SAFETY: `len` bytes between the fences, zeroed by the kernel, borrowed as long as `self` is.
        unsafe { std::slice::from_raw_parts_mut(at, len) }
    }

    /// Moves `values` against the fence behind. They are never dropped.
    fn put<T>(&mut self, values: Vec<T>) -> &mut [T] {
        let bytes = size_of::<T>() * values.len();
        // The end of a page suits every type that this allows, and so does what lies a multiple of its size before it.
        assert!(bytes <= self.room && align_of::<T>() <= PAGE);
        let end = PAGE + self.room;
        let first = self.base.wrapping_byte_add(end - bytes).cast::<T>();
        let count = values.len();
        for (at, value) in values.into_iter().enumerate() {
            // SAFETY: between the fences, where there is room for `count` of them, aligned as said above.
            unsafe { first.wrapping_add(at).write(value) };
        }
        // SAFETY: `count` values that were just written there, borrowed as long as `self` is.
        unsafe { std::slice::from_raw_parts_mut(first, count) }
    }

    /// As [`Self::put`], and then lets nobody read them.
    fn put_shut<T>(&mut self, values: Vec<T>) -> &mut [T] {
        let (at, room) = (self.base.wrapping_byte_add(PAGE), self.room);
        let values = self.put(values);
        // SAFETY: the pages between the fences; whoever touches them ends the process, which is what is tested.
        unsafe { mprotect(at, room, MprotectFlags::empty()) }.expect("shut");
        values
    }
}

impl Drop for Fenced {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; every reference into it borrowed `self`.
        unsafe { munmap(self.base, self.room + 2 * PAGE) }.expect("munmap");
    }
}

#[test]
fn nothing_outside_of_texts_keys_and_jobs_is_touched() {
    if let Some(name) = env::var_os(CHILD) {
        let tier = Tier::available().find(|tier| *tier.name() == *name);
        let tier = tier.expect("given by the parent");
        every_length_against_the_fences(tier);
        #[cfg(target_arch = "x86_64")]
        if tier == Tier::Avx512 {
            short_texts_under_keys_of_which_only_what_is_near_can_be_read();
        }
        return;
    }
    for tier in Tier::available() {
        let mut child = Command::new(env::current_exe().expect("this test"));
        child.args(["--exact", "--nocapture"]);
        child.arg("pages::nothing_outside_of_texts_keys_and_jobs_is_touched");
        let output = child.env(CHILD, tier.name()).output().expect("child");
        let said = String::from_utf8_lossy(&output.stdout);
        let last = said.lines().rfind(|line| line.starts_with("at "));
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{tier}: {}, {}\n{}",
            output.status,
            last.unwrap_or("at the beginning"),
            String::from_utf8_lossy(&output.stderr),
        );
    }
}

fn every_length_against_the_fences(tier: Tier) {
    let mut texts: Vec<_> = (0..9).map(|_| Fenced::new(3 * PAGE)).collect();
    let longer = [2047, 2048, 4080, 8191, 9000];
    for len in (0..=1600).chain(longer) {
        let cipher = Cipher::ALL[len % 3];
        let message = Message::new(cipher, 0, len % 2 == 0, len);
        let mut rooms = KeyRooms::new();
        let keys = rooms.put(&message, tier, Fenced::put);
        // One packet alone, and as many as can go together with one more, under one key and under as many.
        // The first has the key against the fence.
        for (count, keys) in [(1, &keys[..1]), (9, &keys[..1]), (9, &keys[..])] {
            for last in [false, true] {
                let under = keys.len();
                println!(
                    "at {len} bytes, {count} packets of {under} keys, against the fence behind: {last}"
                );
                pass(&message, keys, &mut texts[..count], last);
            }
        }
    }
}

/// A place for what is near of nine keys, and one for what is far.
struct KeyRooms {
    near: Fenced,
    far: Fenced,
}

impl KeyRooms {
    fn new() -> Self {
        Self {
            near: Fenced::new(PAGE),
            far: Fenced::new(3 * PAGE),
        }
    }

    /// The message's key nine times, the first against the fences, with what is far put where `put_far` does. Never dropped: what
    /// it has elsewhere in memory is lost.
    fn put(
        &mut self,
        message: &Message,
        tier: Tier,
        put_far: fn(&mut Fenced, Vec<FarKey>) -> &mut [FarKey],
    ) -> [KeyRef<'_>; 9] {
        let pair = || expand_for(&message.material(), tier).expect("an available tier");
        let (near, far): (Vec<NearKey>, Vec<FarKey>) = (0..9).map(|_| pair()).unzip();
        let (near, far) = (self.near.put(near), put_far(&mut self.far, far));
        std::array::from_fn(|at| KeyRef::new(&near[8 - at], &far[8 - at]))
    }
}

/// Of many keys of AES-128 nothing that is far is read.
#[cfg(target_arch = "x86_64")]
fn short_texts_under_keys_of_which_only_what_is_near_can_be_read() {
    let mut texts: Vec<_> = (0..8).map(|_| Fenced::new(PAGE)).collect();
    for len in 33..=96 {
        let message = Message::new(Cipher::Aes128Gcm, 0, len % 2 == 0, len);
        let mut rooms = KeyRooms::new();
        let keys = rooms.put(&message, Tier::Avx512, Fenced::put_shut);
        println!("at {len} bytes, where far keys cannot be read");
        pass(&message, &keys[..8], &mut texts, true);
    }
}

/// Seals the message in each of `rooms` in one burst, the keys in turn, and opens it again.
fn pass(message: &Message, keys: &[KeyRef<'_>], rooms: &mut [Fenced], last: bool) {
    let len = message.sealed.len();
    for room in &mut *rooms {
        room.text(len, last).copy_from_slice(&message.unsealed());
    }
    let mut job_room = Fenced::new(PAGE);
    let jobs = rooms.iter_mut().zip(keys.iter().copied().cycle());
    let jobs = jobs.map(|(room, key)| SealJob {
        key,
        nonce: message.nonce,
        aad: message.aad(),
        text: room.text(len, last),
        sealed: false,
    });
    let jobs = job_room.put(jobs.collect());
    seal_burst(jobs);
    assert!(
        jobs.iter()
            .all(|job| job.sealed && *job.text == message.sealed)
    );

    let mut job_room = Fenced::new(PAGE);
    let jobs = rooms.iter_mut().zip(keys.iter().copied().cycle());
    let jobs = jobs.map(|(room, key)| OpenJob {
        key,
        nonce: message.nonce,
        aad: message.aad(),
        text: room.text(len, last),
        authentic: false,
    });
    let jobs = job_room.put(jobs.collect());
    open_burst(jobs);
    for job in jobs {
        assert!(job.authentic);
        assert_eq!(job.text[..len - ICV_LEN], message.plain);
    }
}
