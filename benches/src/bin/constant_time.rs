//! Whether AES-GCM branches on secrets or looks them up: run under valgrind's memcheck, which is told that key and
//! plaintext are undefined. Every jump and every address that depends on them is then an error of memcheck.
//!
//! Seals, and opens what was sealed, with the tier that `SIMPLON_AEAD_TIER` names. `admin/check-aead.sh` runs it.

use std::arch::asm;
use std::process::ExitCode;

use simplon::crypto::aead::{
    Aad, AeadKey, Cipher, ICV_LEN, KeyMaterial, OpenJob, SALT_LEN, SealJob, open_burst, seal_burst,
};
use simplon::crypto::tier::Tier;
use zeroize::Zeroizing;

/// Requests of valgrind.h and memcheck.h.
const RUNNING_ON_VALGRIND: u64 = 0x1001;
const MAKE_MEM_UNDEFINED: u64 = (b'M' as u64) << 24 | (b'C' as u64) << 16 | 1;
const MAKE_MEM_DEFINED: u64 = MAKE_MEM_UNDEFINED + 1;

/// A request to valgrind; 0 where it is not there.
fn request(what: u64, bytes: &[u8]) -> u64 {
    let arguments = [what, bytes.as_ptr() as u64, bytes.len() as u64, 0, 0, 0];
    let mut result = 0_u64;
    // SAFETY: without valgrind these rotations by 128 in sum and the exchange of a register with itself do nothing; with
    // it they are read as a request, which changes what memcheck knows of `bytes` and nothing that this program sees.
    unsafe {
        asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            in("rax") arguments.as_ptr(),
            inout("rdx") result,
            inout("rdi") 0_u64 => _,
        );
    }
    result
}

fn secret(bytes: &[u8]) {
    request(MAKE_MEM_UNDEFINED, bytes);
}

fn public(bytes: &[u8]) {
    request(MAKE_MEM_DEFINED, bytes);
}

fn noise(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|at| {
            ((at + seed) as u64)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .to_be_bytes()[0]
        })
        .collect()
}

fn run(cipher: Cipher, lengths: &[usize]) {
    let mut material = noise(cipher.key_len() + SALT_LEN, 1);
    // The salt is no secret of AES-GCM's: it is part of the nonce.
    secret(&material[..cipher.key_len()]);
    let material = KeyMaterial::new(cipher, Zeroizing::new(std::mem::take(&mut material)));
    let key = AeadKey::new(&material.expect("its length"));
    let nonce = |at: usize| {
        let mut nonce = [7; 12];
        nonce[4..].copy_from_slice(&(at as u64).to_be_bytes());
        nonce
    };
    let plain: Vec<_> = lengths
        .iter()
        .map(|&len| noise(len + ICV_LEN, len))
        .collect();
    let mut texts = plain.clone();
    for text in &texts {
        secret(&text[..text.len() - ICV_LEN]);
    }
    let mut jobs: Vec<_> = texts
        .iter_mut()
        .enumerate()
        .map(|(at, text)| SealJob {
            key: key.get(),
            nonce: nonce(at),
            aad: Aad::extended(0x1001, at as u64),
            text,
            sealed: false,
        })
        .collect();
    seal_burst(&mut jobs);
    assert!(jobs.iter().all(|job| job.sealed));
    // On the wire everyone sees it.
    texts.iter().for_each(|text| public(text));
    let mut jobs: Vec<_> = texts
        .iter_mut()
        .enumerate()
        .map(|(at, text)| OpenJob {
            key: key.get(),
            nonce: nonce(at),
            aad: Aad::extended(0x1001, at as u64),
            text,
            authentic: false,
        })
        .collect();
    open_burst(&mut jobs);
    for job in &jobs {
        // The verdict is for everyone too.
        public(std::slice::from_ref(
            // SAFETY: a `bool` is one byte, always initialised.
            unsafe { &*(&raw const job.authentic).cast::<u8>() },
        ));
    }
    assert!(jobs.iter().all(|job| job.authentic));
    for (text, plain) in texts.iter().zip(&plain) {
        public(text);
        assert_eq!(text[..text.len() - ICV_LEN], plain[..plain.len() - ICV_LEN]);
    }
}

fn main() -> ExitCode {
    if request(RUNNING_ON_VALGRIND, &[]) == 0 {
        eprintln!("not running under valgrind: this proves nothing");
        return ExitCode::FAILURE;
    }
    if std::env::args().any(|argument| argument == "--tiers") {
        Tier::available().for_each(|tier| println!("{tier}"));
        return ExitCode::SUCCESS;
    }
    // A branch on a secret that memcheck must see, to know that it looks.
    if std::env::args().any(|argument| argument == "--leak") {
        let byte = noise(1, 1);
        secret(&byte);
        println!("{}", if byte[0] > 100 { "large" } else { "small" });
        return ExitCode::SUCCESS;
    }
    let mixed: Vec<_> = (0..40).map(|at| at * at % 211).collect();
    for cipher in Cipher::ALL {
        run(cipher, &[0, 1, 15, 16, 17, 48, 49, 64, 100, 128, 177, 256]);
        run(cipher, &[48; 32]);
        run(cipher, &mixed);
        run(cipher, &[576, 1408, 1500, 4200, 9000]);
    }
    println!("sealed and opened");
    ExitCode::SUCCESS
}
