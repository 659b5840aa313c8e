//! The local chain on disk: an append-only file of the external messages that were accepted.
//!
//! File: [`MAGIC`], then records. Record, integers little-endian:
//! `length:u32 now:u32 state:32 message:length check:32`, where `state` is the hash of the chain's state after
//! the message and `check` is SHA-256 over the previous record's check (zeros at first) and all of this record
//! before it. A record is on disk (fsync) before its message is acknowledged.
//!
//! A record that a crash left unfinished is at the end, is no longer than one record (or zeros of that length,
//! where a file system had made room only), and was never acknowledged: it is cut off. Anything else that does not add up is corruption and is refused, because
//! cutting there would undo payments.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use cocoon_evidence::Digest32;

use super::LocalChainError;

const MAGIC: &[u8] = b"cocoon-local-chain-1\n";
const HEAD_BYTES: usize = 4 + 4 + 32;
const CHECK_BYTES: usize = 32;

/// A longer message is not taken: TON's own limit for external messages.
pub(super) const MESSAGE_BYTES_MAX: usize = 65_535;

/// A longer file is not replayed: about 100_000 messages.
const LOG_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// An accepted message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// The chain's clock when it was executed, seconds since 1970.
    pub(super) now: u32,
    /// Hash of the chain's state after it.
    pub(super) state: Digest32,
    /// Bag of cells.
    pub(super) message: Vec<u8>,
}

/// The open, locked file.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    path: PathBuf,
    check: Digest32,
    end: u64,
}

impl Log {
    /// Opens or makes the file, locks it, and returns its records.
    pub(super) fn open(dir: &Path) -> Result<(Self, Vec<Record>), LocalChainError> {
        let path = dir.join("messages.log");
        let io = |source| LocalChainError::Io {
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(LocalChainError::InUse { dir: dir.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let bytes = file.metadata().map_err(io)?.len();
        if bytes > LOG_BYTES_MAX {
            return Err(LocalChainError::Corrupt {
                path: path.clone(),
                offset: LOG_BYTES_MAX,
            });
        }
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(io)?;
        if content.len() < MAGIC.len() && MAGIC.starts_with(&content) {
            // New, or a crash came before the first record.
            file.set_len(0)
                .and_then(|()| file.seek(SeekFrom::Start(0)))
                .and_then(|_| file.write_all(MAGIC))
                .and_then(|()| file.sync_all())
                .and_then(|()| File::open(dir)?.sync_all())
                .map_err(io)?;
            content = MAGIC.to_vec();
        }
        let Parsed { records, check, end } = parse(&content).map_err(|offset| LocalChainError::Corrupt {
            path: path.clone(),
            offset,
        })?;
        if end < content.len() as u64 {
            tracing::warn!(
                bytes = content.len() as u64 - end,
                "cut off a record that a crash left unfinished"
            );
            file.set_len(end).and_then(|()| file.sync_all()).map_err(io)?;
        }
        file.seek(SeekFrom::Start(end)).map_err(io)?;
        Ok((
            Self {
                file,
                path,
                check,
                end,
            },
            records,
        ))
    }

    /// Appends and syncs. On failure the file is cut back, so that a later record does not follow half a one.
    pub(super) fn append(&mut self, record: &Record) -> Result<(), LocalChainError> {
        let (bytes, check) = encode(&self.check, record);
        if self.end + bytes.len() as u64 > LOG_BYTES_MAX {
            return Err(LocalChainError::Full {
                path: self.path.clone(),
            });
        }
        let written = self.file.write_all(&bytes).and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => {
                self.check = check;
                self.end += bytes.len() as u64;
                Ok(())
            }
            Err(source) => {
                self.cut_back();
                Err(LocalChainError::Io {
                    path: self.path.clone(),
                    source,
                })
            }
        }
    }

    fn cut_back(&mut self) {
        let cut: io::Result<_> = self
            .file
            .set_len(self.end)
            .and_then(|()| self.file.seek(SeekFrom::Start(self.end)));
        if let Err(error) = cut {
            tracing::warn!(%error, "the local chain's log could not be cut back; the next start does");
        }
    }
}

fn encode(previous: &Digest32, record: &Record) -> (Vec<u8>, Digest32) {
    let length = u32::try_from(record.message.len()).expect("at most MESSAGE_BYTES_MAX");
    let mut bytes = [
        length.to_le_bytes().as_slice(),
        &record.now.to_le_bytes(),
        record.state.as_bytes(),
        &record.message,
    ]
    .concat();
    let check = Digest32::of_parts([previous.as_bytes().as_slice(), &bytes]);
    bytes.extend_from_slice(check.as_bytes());
    (bytes, check)
}

struct Parsed {
    records: Vec<Record>,
    check: Digest32,
    /// Where the next record goes.
    end: u64,
}

/// The records, or the offset at which the file is corrupt.
fn parse(content: &[u8]) -> Result<Parsed, u64> {
    let mut rest = content.strip_prefix(MAGIC).ok_or(0u64)?;
    let mut records = vec![];
    let mut check = Digest32::ZERO;
    while !rest.is_empty() {
        let Some((record, next, after)) = parse_record(&check, rest) else {
            if is_torn(rest) {
                break;
            }
            return Err((content.len() - rest.len()) as u64);
        };
        records.push(record);
        check = next;
        rest = after;
    }
    let end = (content.len() - rest.len()) as u64;
    Ok(Parsed { records, check, end })
}

fn parse_record<'a>(previous: &Digest32, bytes: &'a [u8]) -> Option<(Record, Digest32, &'a [u8])> {
    let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
    let length = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
    if length > MESSAGE_BYTES_MAX {
        return None;
    }
    let (message, rest) = rest.split_at_checked(length)?;
    let (check, rest) = rest.split_first_chunk::<CHECK_BYTES>()?;
    let found = Digest32::of_parts([previous.as_bytes().as_slice(), head, message]);
    let record = Record {
        now: u32::from_le_bytes(head[4..8].try_into().ok()?),
        state: Digest32(head[8..].try_into().ok()?),
        message: message.to_vec(),
    };
    (found.as_bytes() == check).then_some((record, found, rest))
}

/// Whether these last bytes can be a record that was being written: no more than the one that its length, if it
/// is there, announces.
fn is_torn(bytes: &[u8]) -> bool {
    let Some((length, _)) = bytes.split_first_chunk::<4>() else {
        return true;
    };
    let length = u32::from_le_bytes(*length) as usize;
    let is_room = bytes.iter().all(|byte| *byte == 0);
    let length = if is_room { MESSAGE_BYTES_MAX } else { length };
    length <= MESSAGE_BYTES_MAX && bytes.len() <= HEAD_BYTES + length + CHECK_BYTES
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn record(byte: u8) -> Record {
        Record {
            now: u32::from(byte),
            state: Digest32::of(&[byte]),
            message: vec![byte; 100],
        }
    }

    fn written(dir: &Path, records: u8) -> Vec<u8> {
        let (mut log, _) = Log::open(dir).unwrap();
        for byte in 1..=records {
            log.append(&record(byte)).unwrap();
        }
        fs::read(dir.join("messages.log")).unwrap()
    }

    #[test]
    fn a_record_cut_anywhere_is_dropped_and_the_next_one_fits() {
        let dir = tempfile::tempdir().unwrap();
        let content = written(dir.path(), 2);
        let last = HEAD_BYTES + 100 + CHECK_BYTES;
        for cut in [1, 31, 32, 33, 100, last - 5, last - 1] {
            fs::write(dir.path().join("messages.log"), &content[..content.len() - cut]).unwrap();
            let (mut log, records) = Log::open(dir.path()).unwrap();
            assert_eq!(records, [record(1)], "cut {cut}");
            log.append(&record(2)).unwrap();
            assert_eq!(
                fs::read(dir.path().join("messages.log")).unwrap(),
                content,
                "cut {cut}"
            );
        }
    }

    #[test]
    fn a_last_record_whose_blocks_never_reached_the_disk_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let mut content = written(dir.path(), 2);
        let length = content.len();
        for zeros in [120, HEAD_BYTES + 100 + CHECK_BYTES] {
            content[length - zeros..].fill(0);
            fs::write(dir.path().join("messages.log"), &content).unwrap();
            assert_eq!(Log::open(dir.path()).unwrap().1, [record(1)]);
        }
    }

    #[test]
    fn a_flipped_bit_before_the_end_is_refused_and_nothing_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let mut content = written(dir.path(), 3);
        content[MAGIC.len() + 50] ^= 1;
        fs::write(dir.path().join("messages.log"), &content).unwrap();
        assert!(matches!(
            Log::open(dir.path()),
            Err(LocalChainError::Corrupt { .. })
        ));
        assert_eq!(fs::read(dir.path().join("messages.log")).unwrap(), content);
    }

    #[test]
    fn two_cannot_have_it_open() {
        let dir = tempfile::tempdir().unwrap();
        let first = Log::open(dir.path()).unwrap();
        assert!(matches!(
            Log::open(dir.path()),
            Err(LocalChainError::InUse { .. })
        ));
        drop(first);
        assert!(Log::open(dir.path()).is_ok());
    }
}
