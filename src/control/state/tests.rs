//! Lost, older, damaged and busy state files, and numbers that come back.

use std::time::Duration;

use tempfile::TempDir;
use zeroize::Zeroizing;

use super::*;
use crate::crypto::aead::{Cipher, KeyMaterial};

fn fingerprint(byte: u8) -> KeyFingerprint {
    KeyMaterial::new(Cipher::Aes128Gcm, Zeroizing::new(vec![byte; 20]))
        .expect("20 bytes")
        .fingerprint()
}

fn fresh(dir: &TempDir) -> StateFile {
    let mut state = StateFile::open_or_create(dir.path()).expect("new state");
    let keys = [
        (Direction::Outbound, fingerprint(1)),
        (Direction::Inbound, fingerprint(2)),
    ];
    assert_eq!(state.add_fresh(&keys).expect("added"), 2);
    state
}

#[test]
fn numbers_come_back_after_a_restart() {
    let dir = TempDir::new().expect("dir");
    let mut state = fresh(&dir);
    assert_eq!(
        state
            .number(Direction::Outbound, fingerprint(1))
            .expect("known"),
        1
    );
    state
        .commit(&[(Direction::Outbound, fingerprint(1), 1 << 20)])
        .expect("synced");
    drop(state);
    let mut state = StateFile::open(dir.path()).expect("whole");
    assert_eq!(
        state
            .number(Direction::Outbound, fingerprint(1))
            .expect("known"),
        1 << 20
    );
    assert_eq!(
        state
            .number(Direction::Inbound, fingerprint(2))
            .expect("known"),
        0
    );
    // Declaring a known key fresh once more changes nothing.
    assert_eq!(
        state
            .add_fresh(&[(Direction::Outbound, fingerprint(1))])
            .expect("added"),
        0
    );
    assert_eq!(
        state
            .number(Direction::Outbound, fingerprint(1))
            .expect("known"),
        1 << 20
    );
}

#[test]
fn lost_file_and_unknown_key_are_refused() {
    let dir = TempDir::new().expect("dir");
    assert!(matches!(
        StateFile::open(dir.path()),
        Err(StateError::Lost { .. })
    ));
    let state = fresh(&dir);
    // The same key the other way round is another record.
    assert!(matches!(
        state.number(Direction::Inbound, fingerprint(1)),
        Err(StateError::Unknown { .. })
    ));
}

#[test]
fn older_copy_is_refused_whether_moved_or_written_back() {
    let dir = TempDir::new().expect("dir");
    let mut state = fresh(&dir);
    let path = dir.path().join(FILE_NAME);
    let copy = dir.path().join("copy");
    std::fs::copy(&path, &copy).expect("copy");
    std::thread::sleep(Duration::from_millis(100));
    state
        .commit(&[(Direction::Outbound, fingerprint(1), 500)])
        .expect("synced");
    drop(state);
    assert!(StateFile::open(dir.path()).is_ok());
    // Written back over the file: same inode, later change.
    std::fs::copy(&copy, &path).expect("restore");
    let refused = StateFile::open(dir.path()).err().expect("refused");
    assert!(matches!(&refused, StateError::Older { .. }), "{refused}");
    // Moved over the file: another inode.
    std::fs::rename(&copy, &path).expect("restore");
    assert!(matches!(
        StateFile::open(dir.path()),
        Err(StateError::Older { .. })
    ));
}

#[test]
fn copy_that_is_put_back_at_once_is_refused() {
    let dir = TempDir::new().expect("dir");
    let mut state = fresh(&dir);
    let path = dir.path().join(FILE_NAME);
    let content = std::fs::read(&path).expect("copy");
    state
        .commit(&[(Direction::Outbound, fingerprint(1), 500)])
        .expect("synced");
    drop(state);
    // File systems like to give the new file the old one's inode; its birth they do not.
    std::fs::remove_file(&path).expect("removed");
    std::fs::write(&path, content).expect("restored");
    assert!(matches!(
        StateFile::open(dir.path()),
        Err(StateError::Older { .. })
    ));
}

#[test]
fn every_damaged_byte_that_means_something_is_noticed() {
    let dir = TempDir::new().expect("dir");
    drop(fresh(&dir));
    let path = dir.path().join(FILE_NAME);
    let good = std::fs::read(&path).expect("file");
    let meaning = (0..56).chain(HEADER_LEN..HEADER_LEN + 48);
    for at in meaning {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&path, &bad).expect("written");
        assert!(StateFile::open(dir.path()).is_err(), "byte {at}");
    }
    for len in 0..good.len() - 1 {
        std::fs::write(&path, &good[..len]).expect("written");
        assert!(StateFile::open(dir.path()).is_err(), "cut to {len}");
    }
}

#[test]
fn second_process_is_kept_out() {
    let dir = TempDir::new().expect("dir");
    let _state = fresh(&dir);
    assert!(matches!(
        StateFile::open(dir.path()),
        Err(StateError::Busy { .. })
    ));
}

#[test]
fn failed_start_leaves_no_record_of_keys_that_had_none() {
    let dir = TempDir::new().expect("dir");
    let mut state = fresh(&dir);
    let starting = |byte: u8| Starting {
        direction: Direction::Outbound,
        key: fingerprint(byte),
        ahead: 100,
        last: 1000,
    };
    // A file that cannot be written, as on a disk that is full.
    let read_only = File::open(dir.path().join(FILE_NAME)).expect("there");
    let writable = std::mem::replace(&mut state.file, read_only);
    let twice = [starting(3), starting(1), starting(4), starting(3)];
    assert!(matches!(state.start(&twice), Err(StateError::Io { .. })));
    state.file = writable;
    for byte in [3, 4] {
        let number = state.number(Direction::Outbound, fingerprint(byte));
        assert!(matches!(number, Err(StateError::Unknown { .. })), "{byte}");
    }
    assert_eq!(state.records().count(), 2);
    // In another order, so that they get other places.
    let started = state.start(&[starting(4), starting(3)]).expect("written");
    assert!(started.iter().all(|own| (own.from, own.until) == (1, 101)));
    drop(state);
    let state = StateFile::open(dir.path()).expect("whole");
    for (byte, number) in [(1, 1), (3, 101), (4, 101)] {
        let recorded = state.number(Direction::Outbound, fingerprint(byte));
        assert_eq!(recorded.expect("known"), number, "{byte}");
    }
    assert_eq!(state.records().count(), 4);
}
