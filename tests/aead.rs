//! The AEAD interface against published vectors, and against the `aes-gcm` crate used directly, on every length.

#[path = "aead/laws.rs"]
mod laws;
#[path = "aead/vectors.rs"]
mod vectors;

use simplon::crypto::aead::{
    Aad, AeadKey, Cipher, ICV_LEN, KeyMaterial, NONCE_LEN, OpenJob, SALT_LEN, SealJob, open_burst,
    seal_burst,
};
use zeroize::Zeroizing;

/// What stands around each text, to see that nothing is written there.
const GUARD: [u8; 40] = [0xa5; 40];

/// One sealed message, whoever sealed it.
#[derive(Clone, Debug)]
struct Message {
    key: Vec<u8>,
    nonce: [u8; NONCE_LEN],
    aad: Vec<u8>,
    plain: Vec<u8>,
    /// Ciphertext and ICV.
    sealed: Vec<u8>,
}

impl Message {
    fn aead_key(&self) -> AeadKey {
        let cipher = Cipher::ALL
            .into_iter()
            .find(|cipher| cipher.key_len() == self.key.len())
            .expect("a length of AES keys");
        let mut material = self.key.clone();
        // The salt's only use is to build nonces, which are given whole here.
        material.extend([0; SALT_LEN]);
        AeadKey::new(&KeyMaterial::new(cipher, Zeroizing::new(material)).expect("length"))
    }

    fn aad(&self) -> Aad {
        Aad::from_slice(&self.aad).expect("at most a block")
    }

    /// What a caller of `seal_burst` gives: plaintext, room for the ICV, and bytes that are none of its business.
    fn unsealed(&self) -> Guarded {
        Guarded::new(&[self.plain.as_slice(), &[0x77; ICV_LEN]].concat())
    }
}

/// A text with guards around it.
struct Guarded {
    bytes: Vec<u8>,
}

impl Guarded {
    fn new(text: &[u8]) -> Self {
        Self {
            bytes: [&GUARD, text, &GUARD].concat(),
        }
    }

    fn text_mut(&mut self) -> &mut [u8] {
        let end = self.bytes.len() - GUARD.len();
        &mut self.bytes[GUARD.len()..end]
    }

    /// The text, after a look at the guards.
    #[track_caller]
    fn text(&self) -> &[u8] {
        let (before, rest) = self.bytes.split_at(GUARD.len());
        let (text, after) = rest.split_at(rest.len() - GUARD.len());
        assert_eq!((before, after), (&GUARD[..], &GUARD[..]), "a guard");
        text
    }
}

/// Seals every message in one call. Returns ciphertexts with ICVs.
fn seal(messages: &[Message]) -> Vec<Vec<u8>> {
    let keys: Vec<_> = messages.iter().map(Message::aead_key).collect();
    let mut texts: Vec<_> = messages.iter().map(Message::unsealed).collect();
    let mut jobs: Vec<_> = messages
        .iter()
        .zip(&keys)
        .zip(&mut texts)
        .map(|((message, key), text)| SealJob {
            key,
            nonce: message.nonce,
            aad: message.aad(),
            text: text.text_mut(),
            sealed: false,
        })
        .collect();
    seal_burst(&mut jobs);
    assert!(jobs.iter().all(|job| job.sealed));
    texts.iter().map(|text| text.text().to_vec()).collect()
}

/// Opens every message's `sealed` in one call. Returns verdicts and what then stands in the texts, ICV included.
fn open(messages: &[Message]) -> Vec<(bool, Vec<u8>)> {
    let keys: Vec<_> = messages.iter().map(Message::aead_key).collect();
    let mut texts: Vec<_> = messages
        .iter()
        .map(|message| Guarded::new(&message.sealed))
        .collect();
    let mut jobs: Vec<_> = messages
        .iter()
        .zip(&keys)
        .zip(&mut texts)
        .enumerate()
        .map(|(at, ((message, key), text))| OpenJob {
            key,
            nonce: message.nonce,
            aad: message.aad(),
            text: text.text_mut(),
            // Whatever a caller left there must be overwritten.
            authentic: at % 2 == 0,
        })
        .collect();
    open_burst(&mut jobs);
    let verdicts: Vec<_> = jobs.iter().map(|job| job.authentic).collect();
    verdicts
        .into_iter()
        .zip(&texts)
        .map(|(verdict, text)| (verdict, text.text().to_vec()))
        .collect()
}

/// Holds a burst against what it must give: sealing gives `sealed`, opening gives `plain` and leaves the ICV.
#[track_caller]
fn check(messages: &[Message]) {
    for (message, sealed) in messages.iter().zip(seal(messages)) {
        assert_eq!(sealed, message.sealed, "sealing {message:?}");
    }
    for (message, (authentic, text)) in messages.iter().zip(open(messages)) {
        assert!(authentic, "opening {message:?}");
        let (plain, icv) = text.split_at(message.plain.len());
        assert_eq!(plain, message.plain, "opening {message:?}");
        assert_eq!(icv, &message.sealed[message.plain.len()..]);
    }
}

/// Every one of these is refused, and its text is as it was.
#[track_caller]
fn check_refused(messages: &[Message]) {
    for (message, (authentic, text)) in messages.iter().zip(open(messages)) {
        assert!(!authentic, "accepted {message:?}");
        assert_eq!(text, message.sealed, "touched {message:?}");
    }
}
