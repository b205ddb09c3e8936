//! Reads a policy file.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{Policy, PolicyError, Secrets, Source, parse, render};

/// No policy file is longer.
const MAX_LEN: u64 = 64 << 20;

/// Why a policy file gave no [`Policy`].
#[derive(Debug)]
pub enum LoadError {
    /// The file could not be read.
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The path names a directory, a device or the like.
    NotRegular {
        /// The path.
        path: PathBuf,
    },
    /// The file has more than 64 MiB.
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The file is not UTF-8, which TOML is.
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The line of the first byte that is wrong.
        line: usize,
    },
    /// The file breaks rules.
    Policy {
        /// The file.
        path: PathBuf,
        /// Every rule it breaks.
        errors: Vec<PolicyError>,
    },
}

impl LoadError {
    /// The error as an operator should see it, over several lines where the file was read.
    pub fn render(&self, color: bool) -> String {
        match self {
            Self::Policy { path, errors } => render(errors, &Source::new(path, ""), color),
            error => format!("error: {error}\n"),
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, error } => write!(f, "cannot read {}: {error}", path.display()),
            Self::NotRegular { path } => write!(f, "{} is not a regular file", path.display()),
            Self::TooLong { path } => {
                write!(f, "{} is longer than {} MiB", path.display(), MAX_LEN >> 20)
            }
            Self::NotUtf8 { path, line } => {
                write!(f, "{}:{line}: this line is not UTF-8", path.display())
            }
            Self::Policy { path, errors } => {
                write!(f, "{} errors in {}", errors.len(), path.display())?;
                errors
                    .first()
                    .map_or(Ok(()), |first| write!(f, ", the first: {first}"))
            }
        }
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// The control socket that the policy file at `path` names, without a look at anything else in it; `None` where that
/// much cannot be read. [`load`] says why.
pub fn control_socket(path: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string(path).ok()?;
    let table = toml::de::DeTable::parse(&text).ok()?;
    let gateway = table.get_ref().get("gateway")?.get_ref().as_table()?;
    let socket = gateway.get("control_socket")?.get_ref().as_str()?;
    Some(PathBuf::from(socket))
}

/// Reads the policy file at `path`, and the keys it names; with its text.
///
/// # Errors
/// [`LoadError`] where the file cannot be read or breaks a rule.
pub fn load(path: &Path, secrets: &Secrets) -> Result<(Policy, String), LoadError> {
    let text = read(path)?;
    let policy = parse(&Source::new(path, &text), secrets).map_err(|errors| LoadError::Policy {
        path: path.to_owned(),
        errors,
    })?;
    Ok((policy, text))
}

/// The text of the policy file at `path`, which need not be a good one.
///
/// # Errors
/// [`LoadError`], but for `Policy`.
pub fn read(path: &Path) -> Result<String, LoadError> {
    let path = path.to_owned();
    // Asked before opening, for opening a pipe waits for its other end.
    match std::fs::metadata(&path) {
        Ok(metadata) if !metadata.is_file() => return Err(LoadError::NotRegular { path }),
        Ok(_) => {}
        Err(error) => return Err(LoadError::Io { path, error }),
    }
    let mut bytes = Vec::new();
    let outcome = File::open(&path).and_then(|file| file.take(MAX_LEN + 1).read_to_end(&mut bytes));
    if let Err(error) = outcome {
        return Err(LoadError::Io { path, error });
    }
    if bytes.len() as u64 > MAX_LEN {
        return Err(LoadError::TooLong { path });
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error
            .as_bytes()
            .iter()
            .take(error.utf8_error().valid_up_to());
        let line = good.filter(|&&byte| byte == b'\n').count() + 1;
        LoadError::NotUtf8 { path, line }
    })
}
