//! Intel's library for IPsec: the direct AES-GCM functions, one call a packet.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use simplon::crypto::aead::{Cipher, ICV_LEN};

use crate::burst::{Arena, BURST, Packet, key_bytes};
use crate::clock;
use crate::contender::{Contender, SA_BYTES};

type Expand = unsafe extern "C" fn(*const c_void, *mut c_void);
type Crypt = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    *mut u8,
    *const u8,
    u64,
    *const u8,
    *const u8,
    u64,
    *mut u8,
    u64,
);

/// Mirrors `intel_gcm` in `intel.c`.
#[repr(C)]
struct Gcm {
    version: *const c_char,
    arch: u32,
    vector: u32,
    key_size: usize,
    context_size: usize,
    expand: [Expand; 2],
    seal: [Crypt; 2],
    open: [Crypt; 2],
}

unsafe extern "C" {
    fn simplon_intel_gcm(out: *mut Gcm) -> c_int;
}

fn gcm() -> Option<Gcm> {
    let mut out = MaybeUninit::uninit();
    // SAFETY: `out` has room for what the shim writes.
    let code = unsafe { simplon_intel_gcm(out.as_mut_ptr()) };
    // SAFETY: on 0 the shim has filled all of it.
    (code == 0).then(|| unsafe { out.assume_init() })
}

/// The library's version, and what of it is used on this processor.
pub fn description() -> String {
    let Some(gcm) = gcm() else {
        return "Intel's library does not run here".into();
    };
    // SAFETY: the library returns a constant string.
    let version = unsafe { CStr::from_ptr(gcm.version) }.to_string_lossy();
    let arch = match gcm.arch {
        1 => "no AES-NI",
        2 => "SSE",
        3 => "AVX",
        4 => "AVX2",
        5 => "AVX512",
        _ => "unknown",
    };
    let vector = match gcm.vector {
        0 => "",
        _ => " with VAES and VPCLMULQDQ",
    };
    format!("{} ({arch}{vector})", version.trim_start_matches('v'))
}

/// An expanded key in memory of its own, with as many bytes behind it as the rest of an SA takes.
struct Key {
    at: NonNull<u8>,
    layout: Layout,
}

impl Key {
    fn new(gcm: &Gcm, which: usize, key: &[u8]) -> Self {
        // The library wants keys at multiples of 64.
        let layout = Layout::from_size_align(gcm.key_size + SA_BYTES, 64).expect("small");
        // SAFETY: the size is not zero.
        let at = unsafe { alloc_zeroed(layout) };
        let at = NonNull::new(at).unwrap_or_else(|| handle_alloc_error(layout));
        // SAFETY: `key` has the length that `which` stands for, and `at` has `key_size` bytes, aligned.
        unsafe { gcm.expand[which](key.as_ptr().cast(), at.as_ptr().cast()) };
        Self { at, layout }
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and dropped once.
        unsafe { dealloc(self.at.as_ptr(), self.layout) };
    }
}

/// The contender.
pub struct Intel {
    keys: Vec<Key>,
    seal: Crypt,
    open: Crypt,
}

/// One packet as the library takes it.
struct Job<'a> {
    key: *const u8,
    nonce: [u8; 12],
    aad: [u8; 8],
    text: &'a mut [u8],
    done: bool,
}

impl Intel {
    /// With `keys` keys; `None` where the library does not run, and for ciphers that are not compared.
    pub fn new(cipher: Cipher, keys: usize) -> Option<Self> {
        let which = match cipher {
            Cipher::Aes128Gcm => 0,
            Cipher::Aes192Gcm => return None,
            Cipher::Aes256Gcm => 1,
        };
        let gcm = gcm()?;
        assert!(gcm.context_size <= size_of::<Context>());
        let keys = (0..keys)
            .map(|index| Key::new(&gcm, which, &key_bytes(cipher, index)))
            .collect();
        Some(Self {
            keys,
            seal: gcm.seal[which],
            open: gcm.open[which],
        })
    }

    fn jobs<'a>(&self, packets: &'a [Packet; BURST], arena: &'a mut Arena) -> Vec<Job<'a>> {
        arena
            .texts(packets)
            .zip(packets)
            .map(|(text, packet)| Job {
                key: self.keys[packet.key].at.as_ptr(),
                nonce: packet.nonce,
                aad: packet.aad,
                text,
                done: false,
            })
            .collect()
    }
}

/// The library's working memory of one message.
#[repr(C, align(64))]
struct Context([u8; 256]);

impl Contender for Intel {
    fn name(&self) -> String {
        "intel-ipsec-mb".into()
    }

    fn seal(&self, packets: &[Packet; BURST], arena: &mut Arena) -> (u64, bool) {
        let mut context = Context([0; 256]);
        let mut jobs = self.jobs(packets, arena);
        let cycles = clock::time(|| {
            for job in black_box(&mut jobs) {
                let len = job.text.len() - ICV_LEN;
                let text = job.text.as_mut_ptr();
                // SAFETY: key and context are the library's own, text has `len` bytes and room for the ICV after them.
                unsafe {
                    (self.seal)(
                        job.key.cast(),
                        (&raw mut context).cast(),
                        text,
                        text,
                        len as u64,
                        job.nonce.as_ptr(),
                        job.aad.as_ptr(),
                        job.aad.len() as u64,
                        text.add(len),
                        ICV_LEN as u64,
                    );
                }
                job.done = true;
            }
        });
        (cycles, jobs.iter().all(|job| job.done))
    }

    fn open(&self, packets: &[Packet; BURST], arena: &mut Arena) -> (u64, bool) {
        let mut context = Context([0; 256]);
        let mut jobs = self.jobs(packets, arena);
        let cycles = clock::time(|| {
            for job in black_box(&mut jobs) {
                let len = job.text.len() - ICV_LEN;
                let text = job.text.as_mut_ptr();
                let mut tag = [0_u8; ICV_LEN];
                // SAFETY: as when sealing; the tag goes to memory of this frame.
                unsafe {
                    (self.open)(
                        job.key.cast(),
                        (&raw mut context).cast(),
                        text,
                        text,
                        len as u64,
                        job.nonce.as_ptr(),
                        job.aad.as_ptr(),
                        job.aad.len() as u64,
                        tag.as_mut_ptr(),
                        ICV_LEN as u64,
                    );
                }
                // The library leaves the comparison to its caller: 16 bytes at once, without a branch on them.
                let icv = job.text.last_chunk().copied().unwrap_or_default();
                job.done = u128::from_ne_bytes(tag) ^ u128::from_ne_bytes(icv) == 0;
            }
        });
        (cycles, jobs.iter().all(|job| job.done))
    }
}
