//! Keys, from a file of their own or from the environment; never from the policy file.
//!
//! What is read lives in zeroizing buffers, and no message repeats any of it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use zeroize::Zeroizing;

/// No key file is longer, with whatever blanks surround the key.
const MAX_FILE_LEN: usize = 4096;

/// Where keys are read from.
pub struct Secrets {
    /// `None` is the environment of this process.
    environment: Option<BTreeMap<String, Zeroizing<Vec<u8>>>>,
}

impl Secrets {
    /// Keys from files, and from the environment of this process.
    pub fn from_process() -> Self {
        Self { environment: None }
    }

    /// Keys from files, and from `environment` in place of that of this process.
    pub fn with_environment(environment: impl IntoIterator<Item = (String, String)>) -> Self {
        let zeroizing =
            |(name, value): (String, String)| (name, Zeroizing::new(value.into_bytes()));
        Self {
            environment: Some(environment.into_iter().map(zeroizing).collect()),
        }
    }

    /// The key in the environment variable `name`.
    pub(super) fn env(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        let value = match &self.environment {
            Some(environment) => environment.get(name).cloned(),
            None => std::env::var_os(name)
                .map(OsString::into_encoded_bytes)
                .map(Zeroizing::new),
        };
        decode(&value.ok_or(SecretError::Unset)?)
    }

    /// The key in the file at `path`, which only its owner may read.
    pub(super) fn file(&self, path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        decode(&read(path)?)
    }
}

/// Why a key could not be had. Says nothing of its content.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum SecretError {
    #[error("there is no such file")]
    Missing,
    #[error("it cannot be opened or read: {0}")]
    Io(Errno),
    #[error("it is not a regular file")]
    NotRegular,
    #[error("it belongs to user {owner}, not to user {user} who runs this")]
    Owner { owner: u32, user: u32 },
    #[error("others may read or change it: its mode is {mode:04o}")]
    Mode { mode: u32 },
    #[error("it has more than {MAX_FILE_LEN} bytes")]
    TooLong,
    #[error("there is no such variable in the environment")]
    Unset,
    #[error("it is empty")]
    Empty,
    #[error("character {position} is not a hexadecimal digit")]
    NotHex { position: usize },
    #[error("it has {digits} hexadecimal digits, which is an odd number")]
    OddDigits { digits: usize },
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    // Without NONBLOCK, opening a pipe would wait for its other end.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT => SecretError::Missing,
        errno => SecretError::Io(errno),
    })?;
    // Asked of what was opened, not of the path, which may name something else by now.
    let stat = rustix::fs::fstat(&file).map_err(SecretError::Io)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(SecretError::NotRegular);
    }
    let user = rustix::process::geteuid().as_raw();
    if stat.st_uid != user && stat.st_uid != 0 {
        return Err(SecretError::Owner {
            owner: stat.st_uid,
            user,
        });
    }
    let mode = stat.st_mode & 0o7777;
    if mode & 0o077 != 0 {
        return Err(SecretError::Mode { mode });
    }
    // One allocation of the final size: growing would leave copies behind.
    let mut text = Zeroizing::new(vec![0; MAX_FILE_LEN + 1]);
    let mut filled = 0;
    while let Some(rest) = text.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::io::read(&file, rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(SecretError::Io(errno)),
        }
    }
    if filled > MAX_FILE_LEN {
        return Err(SecretError::TooLong);
    }
    text.truncate(filled);
    Ok(text)
}

/// Reads hexadecimal digits, with or without `0x`, between blanks.
fn decode(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    let before = text.len() - text.trim_ascii_start().len();
    let text = text.trim_ascii();
    let digits = text
        .strip_prefix(b"0x")
        .or_else(|| text.strip_prefix(b"0X"))
        .unwrap_or(text);
    let before = before + text.len() - digits.len();
    if digits.is_empty() {
        return Err(SecretError::Empty);
    }
    if let Some(at) = digits.iter().position(|&digit| nibble(digit).is_none()) {
        return Err(SecretError::NotHex {
            position: before + at + 1,
        });
    }
    let (pairs, odd) = digits.as_chunks::<2>();
    if !odd.is_empty() {
        return Err(SecretError::OddDigits {
            digits: digits.len(),
        });
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(pairs.len()));
    bytes.extend(
        pairs
            .iter()
            .filter_map(|&[high, low]| Some(nibble(high)? << 4 | nibble(low)?)),
    );
    Ok(bytes)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(text: &str) -> Result<Vec<u8>, SecretError> {
        decode(text.as_bytes()).map(|bytes| bytes.to_vec())
    }

    #[test]
    fn decode_takes_digits_prefix_and_blanks() {
        assert_eq!(decoded("00ffA5"), Ok(vec![0, 255, 0xa5]));
        assert_eq!(decoded(" \t0x0102\r\n\n"), Ok(vec![1, 2]));
    }

    #[test]
    fn decode_says_position_of_bad_digit() {
        assert_eq!(decoded(" 0x01g2"), Err(SecretError::NotHex { position: 6 }));
        assert_eq!(decoded("01 02"), Err(SecretError::NotHex { position: 3 }));
    }

    #[test]
    fn decode_refuses_odd_and_empty() {
        assert_eq!(decoded("012"), Err(SecretError::OddDigits { digits: 3 }));
        assert_eq!(decoded(" 0x\n"), Err(SecretError::Empty));
    }
}
