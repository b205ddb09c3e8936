//! Sequence numbers that survive restarts.
//!
//! With a static key a repeated sequence number is a repeated GCM nonce, and that gives the key away. So for each
//! outbound SA the numbers up to a limit are *leased*: the limit is on disk, synced, before the first of them is used,
//! and after a restart, however the gateway ended, the SA begins at the limit. For each inbound SA the highest number
//! seen is kept, so that a restart does not open the door to replays; after a kill it is at most a second old.
//!
//! One file holds every SA of a gateway, by the fingerprint of its key: a header and fixed-size records, written in
//! place and synced once for a batch. The file knows its own inode, when it was born and when it was last written. A
//! copy that was put back was born later or, written over the file, has a later change time, so an older file is told
//! from the last one, and refused; so is a lost one, since nothing says that its keys are fresh unless the operator does
//! (`simplon state init`). What cannot be seen is a whole disk or virtual machine taken back to an earlier snapshot,
//! clock included.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::crypto::aead::KeyFingerprint;
use crate::ipsec::traffic::Direction;

/// Name of the state file in the state directory.
pub const FILE_NAME: &str = "sequence.state";
/// Begins the file.
const MAGIC: [u8; 8] = *b"SIMPLON1";
/// Length of the header, a disk sector.
const HEADER_LEN: usize = 512;
/// Length of a record, and of the part of the header that means something.
const RECORD_LEN: usize = 64;
/// How much later than its last write a file may have been changed: the time from reading the clock to the write.
const CHANGE_TOLERANCE_NS: i128 = 50_000_000;
/// How often a header is written again whose write came later than half of that, for want of a processor.
const WRITE_ATTEMPTS: usize = 8;
/// Most records a file may hold, against nonsense: 1 GiB.
const MAX_RECORDS: u64 = (1 << 30) / RECORD_LEN as u64;

/// Why an SA cannot be started, or the state not kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// There is no state file.
    #[error(
        "{} does not exist: lost, or this gateway is new. If its keys have never sealed a packet, run `simplon state init \
         --config FILE`; if they have, give both ends new keys first", path.display()
    )]
    Lost {
        /// Where it should be.
        path: PathBuf,
    },
    /// The file is not the one that was written last.
    #[error(
        "{} is not the file this gateway wrote last ({evidence}): an older copy would repeat sequence numbers. Give both \
         ends new keys, remove the file, and run `simplon state init --config FILE`", path.display()
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// How it shows.
        evidence: String,
    },
    /// The file's content is damaged.
    #[error(
        "{} is damaged ({what}): the sequence numbers in use are not known. Give both ends new keys, remove the file, \
         and run `simplon state init --config FILE`", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        what: &'static str,
    },
    /// The key is not in the file.
    #[error(
        "no record of this key in {}. If it has never sealed a packet, run `simplon state init --config FILE`; if it has, give both \
         ends a new one first", path.display()
    )]
    Unknown {
        /// The file.
        path: PathBuf,
    },
    /// Another process holds the file.
    #[error("{} is in use by another simplon; two gateways must never share keys", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
}

/// A key with which an SA is to be started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Starting {
    /// Whether it seals or opens.
    pub direction: Direction,
    /// The key.
    pub key: KeyFingerprint,
    /// Numbers to be leased to an SA that seals.
    pub ahead: u64,
    /// The last number that it may use.
    pub last: u64,
}

/// Where an SA begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Started {
    /// Outbound the next number to use, inbound the highest seen.
    pub from: u64,
    /// Outbound the first number that is not leased.
    pub until: u64,
}

/// An open state file, locked for this process.
pub struct StateFile {
    path: PathBuf,
    file: File,
    inode: u64,
    born_ns: u64,
    /// Place of each record in the file.
    places: HashMap<(Direction, KeyFingerprint), u64>,
    /// The number of each record, as it is on disk.
    numbers: Vec<u64>,
}

impl StateFile {
    /// Opens the state of `state_dir`, checks that it is whole and the last one written, and locks it.
    ///
    /// # Errors
    /// Any [`StateError`] but `Unknown`; the file is as it was.
    pub fn open(state_dir: &Path) -> Result<Self, StateError> {
        let path = state_dir.join(FILE_NAME);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StateError::Lost { path });
            }
            Err(error) => return Err(StateError::Io { path, error }),
        };
        lock(&file, &path)?;
        Self::read(path, file)
    }

    /// Opens the state of `state_dir` for operators to add fresh keys to; makes directory and file where there are none.
    ///
    /// # Errors
    /// As [`Self::open`], but for `Lost`.
    pub fn open_or_create(state_dir: &Path) -> Result<Self, StateError> {
        match Self::open(state_dir) {
            Err(StateError::Lost { path }) => Self::create(state_dir, path),
            other => other,
        }
    }

    fn create(state_dir: &Path, path: PathBuf) -> Result<Self, StateError> {
        let io = |error| StateError::Io {
            path: path.clone(),
            error,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(|error| StateError::Io {
                path: state_dir.to_owned(),
                error,
            })?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        lock(&file, &path)?;
        let meta = file.metadata().map_err(io)?;
        let mut state = Self {
            path: path.clone(),
            file,
            inode: meta.ino(),
            born_ns: born_ns(&meta),
            places: HashMap::new(),
            numbers: Vec::new(),
        };
        state.commit(&[])?;
        // The file's name must survive a crash as well.
        File::open(state_dir)
            .and_then(|dir| dir.sync_all())
            .map_err(io)?;
        Ok(state)
    }

    fn read(path: PathBuf, file: File) -> Result<Self, StateError> {
        let io = |error| StateError::Io {
            path: path.clone(),
            error,
        };
        let meta = file.metadata().map_err(io)?;
        let mut bytes = vec![0; HEADER_LEN];
        let damaged = |what| StateError::Damaged {
            path: path.clone(),
            what,
        };
        file.read_exact_at(&mut bytes, 0)
            .map_err(|_| damaged("header cut short"))?;
        let header = Header::decode(&bytes).ok_or_else(|| damaged("header"))?;
        if header.inode != meta.ino() || header.born_ns != born_ns(&meta) {
            let evidence = "it is a copy".to_owned();
            return Err(StateError::Older { path, evidence });
        }
        let late = changed_after(&meta, header.written_ns);
        if late > CHANGE_TOLERANCE_NS {
            let evidence = format!(
                "changed {} ms after its last write, by a copy put back over it, or by chmod, chown or mv",
                late / 1_000_000
            );
            return Err(StateError::Older { path, evidence });
        }
        if header.records > MAX_RECORDS {
            return Err(damaged("header"));
        }
        let mut state = Self {
            path: path.clone(),
            file,
            inode: header.inode,
            born_ns: header.born_ns,
            places: HashMap::new(),
            numbers: Vec::new(),
        };
        let mut bytes = [0; RECORD_LEN];
        for place in 0..header.records {
            state
                .file
                .read_exact_at(&mut bytes, record_offset(place))
                .map_err(|_| damaged("records cut short"))?;
            let (key, number) = decode_record(&bytes).ok_or_else(|| damaged("record"))?;
            state.places.insert(key, place);
            state.numbers.push(number);
        }
        Ok(state)
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number on disk for a key: outbound the first that was not leased, inbound the highest seen.
    ///
    /// # Errors
    /// `Unknown` where the file has no record of it.
    pub fn number(&self, direction: Direction, key: KeyFingerprint) -> Result<u64, StateError> {
        self.recorded((direction, key))
            .ok_or_else(|| StateError::Unknown {
                path: self.path.clone(),
            })
    }

    /// Every record: direction, fingerprint, number.
    pub fn records(&self) -> impl Iterator<Item = (Direction, KeyFingerprint, u64)> {
        self.places.iter().filter_map(|((direction, key), place)| {
            let number = self.numbers.get(usize::try_from(*place).ok()?)?;
            Some((*direction, *key, *number))
        })
    }

    /// Adds a record for each of `fresh` that has none, and syncs. Returns how many were added.
    ///
    /// # Errors
    /// `Io`; what was added before may be on disk, as fresh as it was.
    pub fn add_fresh(
        &mut self,
        fresh: &[(Direction, KeyFingerprint)],
    ) -> Result<usize, StateError> {
        let mut added = Vec::new();
        for &(direction, key) in fresh {
            if self.places.contains_key(&(direction, key)) {
                continue;
            }
            let first = match direction {
                Direction::Outbound => 1,
                Direction::Inbound => 0,
            };
            self.place((direction, key), first);
            added.push((direction, key, first));
        }
        self.commit(&added)?;
        Ok(added.len())
    }

    /// Takes the first numbers of SAs that are to be started under lease, adds a record for each key that has none, and syncs,
    /// all at once. Returns where each begins.
    ///
    /// # Errors
    /// `Io`; then no SA may begin. Keys that had no record count as having none, and others begin behind what was asked for.
    pub fn start(&mut self, keys: &[Starting]) -> Result<Vec<Started>, StateError> {
        let known = self.numbers.len();
        let mut started = Vec::with_capacity(keys.len());
        let mut numbers = Vec::with_capacity(keys.len());
        for own in keys {
            let key = (own.direction, own.key);
            let (from, until) = match own.direction {
                Direction::Outbound => {
                    let from = self.recorded(key).unwrap_or(1).max(1);
                    let end = own.last.saturating_add(1);
                    (from, from.saturating_add(own.ahead).min(end).max(from))
                }
                Direction::Inbound => {
                    let seen = self.recorded(key).unwrap_or(0);
                    (seen, seen)
                }
            };
            self.place(key, from);
            numbers.push((own.direction, own.key, until));
            started.push(Started { from, until });
        }
        let done = self.commit(&numbers);
        if done.is_err() {
            self.numbers.truncate(known);
            for own in keys {
                let key = (own.direction, own.key);
                if self.recorded(key).is_none() {
                    self.places.remove(&key);
                }
            }
        }
        done.map(|()| started)
    }

    /// The place of a key's record; a new one begins with `number`.
    fn place(&mut self, key: (Direction, KeyFingerprint), number: u64) {
        if let Entry::Vacant(entry) = self.places.entry(key) {
            entry.insert(self.numbers.len() as u64);
            self.numbers.push(number);
        }
    }

    fn recorded(&self, key: (Direction, KeyFingerprint)) -> Option<u64> {
        let place = usize::try_from(*self.places.get(&key)?).ok()?;
        self.numbers.get(place).copied()
    }

    /// As [`Self::commit`], but for numbers that are lower than those recorded, which stay: a lease is never taken back.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn raise(
        &mut self,
        numbers: impl Iterator<Item = (Direction, KeyFingerprint, u64)>,
    ) -> Result<(), StateError> {
        let raised = |(direction, key, number): (_, _, u64)| {
            let recorded = self.recorded((direction, key)).unwrap_or(0);
            (direction, key, number.max(recorded))
        };
        let numbers: Vec<_> = numbers.map(raised).collect();
        self.commit(&numbers)
    }

    /// Writes numbers to disk and syncs: when this returns, they outlive a crash.
    ///
    /// # Errors
    /// `Io`, also where a key has no record; then none of the new numbers may be relied on.
    pub fn commit(
        &mut self,
        numbers: &[(Direction, KeyFingerprint, u64)],
    ) -> Result<(), StateError> {
        self.write(numbers).map_err(|error| StateError::Io {
            path: self.path.clone(),
            error,
        })
    }

    fn write(&mut self, numbers: &[(Direction, KeyFingerprint, u64)]) -> io::Result<()> {
        for (direction, key, number) in numbers {
            let place = self
                .places
                .get(&(*direction, *key))
                .ok_or_else(|| io::Error::other("no record of this key"))?;
            self.file.write_all_at(
                &encode_record(*direction, *key, *number),
                record_offset(*place),
            )?;
            if let Some(known) = usize::try_from(*place)
                .ok()
                .and_then(|place| self.numbers.get_mut(place))
            {
                *known = *number;
            }
        }
        self.write_header()?;
        self.file.sync_all()
    }

    /// Writes the header with the time of this very write: again where the two fall apart.
    fn write_header(&self) -> io::Result<()> {
        for _ in 0..WRITE_ATTEMPTS {
            let header = Header {
                inode: self.inode,
                born_ns: self.born_ns,
                written_ns: now_ns(),
                records: self.numbers.len() as u64,
            };
            self.file.write_all_at(&header.encode(), 0)?;
            let late = changed_after(&self.file.metadata()?, header.written_ns);
            if late <= CHANGE_TOLERANCE_NS / 2 {
                break;
            }
        }
        // If every attempt came too late, the file will be refused, which is the safe side.
        Ok(())
    }
}

/// The header's meaning ends here, and its checksum begins.
const HEADER_BODY: usize = 40;

struct Header {
    inode: u64,
    /// Birth of the file; 0 where the file system does not know.
    born_ns: u64,
    written_ns: u64,
    records: u64,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.inode.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.born_ns.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.written_ns.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.records.to_le_bytes());
        let sum = digest(&bytes[..HEADER_BODY]);
        bytes[HEADER_BODY..HEADER_BODY + 16].copy_from_slice(&sum);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, rest) = bytes.split_at_checked(HEADER_BODY)?;
        if body[..8] != MAGIC || rest.get(..16)? != digest(body) {
            return None;
        }
        Some(Self {
            inode: read_u64(body, 8)?,
            born_ns: read_u64(body, 16)?,
            written_ns: read_u64(body, 24)?,
            records: read_u64(body, 32)?,
        })
    }
}

/// When the file was made; no copy of it shares that. 0 where the file system does not know.
fn born_ns(meta: &Metadata) -> u64 {
    let born = meta.created().ok();
    let since = born.and_then(|born| born.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

/// How long after `written_ns` the file was last changed, in nanoseconds.
fn changed_after(meta: &Metadata, written_ns: u64) -> i128 {
    let changed = i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec());
    changed - i128::from(written_ns)
}

fn record_offset(place: u64) -> u64 {
    HEADER_LEN as u64 + place * RECORD_LEN as u64
}

fn encode_record(direction: Direction, key: KeyFingerprint, number: u64) -> [u8; RECORD_LEN] {
    let mut bytes = [0; RECORD_LEN];
    bytes[..16].copy_from_slice(key.as_bytes());
    bytes[16] = match direction {
        Direction::Outbound => 1,
        Direction::Inbound => 2,
    };
    bytes[24..32].copy_from_slice(&number.to_le_bytes());
    let sum = digest(&bytes[..32]);
    bytes[32..48].copy_from_slice(&sum);
    bytes
}

fn decode_record(bytes: &[u8; RECORD_LEN]) -> Option<((Direction, KeyFingerprint), u64)> {
    if bytes[32..48] != digest(&bytes[..32]) {
        return None;
    }
    let direction = match bytes[16] {
        1 => Direction::Outbound,
        2 => Direction::Inbound,
        _ => return None,
    };
    let key = KeyFingerprint::from_bytes(*bytes.first_chunk()?);
    Some(((direction, key), read_u64(bytes, 24)?))
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*field))
}

/// Tells damage, not malice: whoever can write the file can take the keys as well.
fn digest(bytes: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&Sha256::digest(bytes)[..16]);
    out
}

fn now_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn lock(file: &File, path: &Path) -> Result<(), StateError> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StateError::Busy {
            path: path.to_owned(),
        }),
        Err(error) => Err(StateError::Io {
            path: path.to_owned(),
            error: error.into(),
        }),
    }
}

#[cfg(test)]
#[path = "state/tests.rs"]
mod tests;
