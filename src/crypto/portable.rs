//! AES-GCM by the `aes-gcm` crate: runs everywhere, and is what faster kernels are held against.
#![forbid(unsafe_code)]

use aes_gcm::aes::Aes192;
use aes_gcm::aes::cipher::consts::U12;
use aes_gcm::{AeadInOut, Aes128Gcm, Aes256Gcm, AesGcm, KeyInit};

use super::aead::{Cipher, ICV_LEN, Job, NONCE_LEN, Packet};

/// Round keys and hash key; the crate zeroises them on drop.
pub(super) enum PortableKey {
    Aes128(Aes128Gcm),
    Aes192(AesGcm<Aes192, U12>),
    Aes256(Aes256Gcm),
}

impl PortableKey {
    /// Expands `key`, which has the cipher's length.
    ///
    /// # Panics
    /// Where it has not; `KeyMaterial` keeps that.
    pub(super) fn new(cipher: Cipher, key: &[u8]) -> Self {
        const LENGTH: &str = "KeyMaterial keeps the key's length";
        match cipher {
            Cipher::Aes128Gcm => Self::Aes128(Aes128Gcm::new_from_slice(key).expect(LENGTH)),
            Cipher::Aes192Gcm => Self::Aes192(AesGcm::new_from_slice(key).expect(LENGTH)),
            Cipher::Aes256Gcm => Self::Aes256(Aes256Gcm::new_from_slice(key).expect(LENGTH)),
        }
    }

    /// Seals or opens packets of this key.
    pub(super) fn run<'a, J: Job<'a>>(&self, jobs: &mut [J]) {
        for job in jobs {
            let Packet { nonce, aad, text } = job.packet();
            let done = if J::SEAL {
                self.seal(nonce, aad.as_slice(), text)
            } else {
                self.open(nonce, aad.as_slice(), text)
            };
            job.conclude(done);
        }
    }

    /// Seals plaintext and room for the ICV, in place; false where that cannot be done.
    fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8]) -> bool {
        let Some((plain, icv)) = text.split_last_chunk_mut::<ICV_LEN>() else {
            return false;
        };
        let nonce = nonce.into();
        let tag = match self {
            Self::Aes128(key) => key.encrypt_inout_detached(nonce, aad, plain.into()),
            Self::Aes192(key) => key.encrypt_inout_detached(nonce, aad, plain.into()),
            Self::Aes256(key) => key.encrypt_inout_detached(nonce, aad, plain.into()),
        };
        // The crate refuses only texts over 64 GiB.
        tag.map(|tag| icv.copy_from_slice(&tag)).is_ok()
    }

    /// Opens ciphertext and ICV in place; false, and the text untouched, where the ICV is wrong.
    fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8]) -> bool {
        let Some((cipher, icv)) = text.split_last_chunk_mut::<ICV_LEN>() else {
            return false;
        };
        let nonce = nonce.into();
        let icv = &(*icv).into();
        match self {
            Self::Aes128(key) => key.decrypt_inout_detached(nonce, aad, cipher.into(), icv),
            Self::Aes192(key) => key.decrypt_inout_detached(nonce, aad, cipher.into(), icv),
            Self::Aes256(key) => key.decrypt_inout_detached(nonce, aad, cipher.into(), icv),
        }
        .is_ok()
    }
}
