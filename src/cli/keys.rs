//! `simplon genkey` and `simplon state`.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use zeroize::Zeroizing;

use super::{Failure, check};
use crate::control::leases::declare_fresh;
use crate::crypto::aead::{Cipher, SALT_LEN};

pub(super) fn genkey(cipher: Cipher, file: &Path) -> Result<(), Failure> {
    let mut key = Zeroizing::new(vec![0u8; cipher.key_len() + SALT_LEN]);
    getrandom::fill(&mut key)
        .map_err(|error| Failure::new(format_args!("no random numbers: {error}")))?;
    let mut text = Zeroizing::new(String::with_capacity(key.len() * 2 + 1));
    for byte in key.iter() {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\n');
    let failed = |error: std::io::Error| {
        if error.kind() == std::io::ErrorKind::AlreadyExists {
            return Failure::new(format_args!(
                "{} exists, and a key is never overwritten: choose another name",
                file.display()
            ));
        }
        Failure::new(format_args!("{}: {error}", file.display()))
    };
    let mut out = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .map_err(failed)?;
    out.write_all(text.as_bytes())
        .and_then(|()| out.sync_all())
        .map_err(failed)?;
    eprintln!(
        "{}: new {cipher} key and salt; the other end needs the same file",
        file.display()
    );
    Ok(())
}

pub(super) fn state_init(config: &Path) -> Result<(), Failure> {
    let policy = check::load(config)?;
    let dir = policy.gateway.state_dir.display().to_string();
    let added = declare_fresh(&policy).map_err(Failure::new)?;
    eprintln!("{dir}: {added} SAs declared fresh; those with a record keep theirs");
    Ok(())
}
