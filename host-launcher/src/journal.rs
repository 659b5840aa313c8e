//! The usage journal: what the provider is owed. A record is acknowledged to the agent only after it is on
//! disk, because from then on the host alone has it.
//!
//! One entry a line: `length sha256 json`. Entries are written one at a time, each synced before the next, so
//! a crash can tear the last one only: that tail is cut at the next start. Any other damage is not a crash's,
//! nor is an entry that is intact and cannot be understood: both are reported instead of being cut.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use cocoon_evidence::Digest32;
use cocoon_protocol::host::UsageRecord;

/// A line is at most this long; a record has under 1 KiB.
const ENTRY_BYTES_MAX: usize = 16 * 1024;

/// Numbers kept for each agent key to recognise a record that is delivered twice. An agent delivers again
/// only what was not acknowledged, which is far less.
const RECENT_RECORDS_MAX: usize = 65_536;

/// Why the journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file system refused.
    #[error("cannot open the usage journal {path}")]
    Io {
        /// The journal.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An entry that is not the last one is damaged.
    #[error(
        "the usage journal {path} is damaged in line {line}, and not only at its end as after a crash; it \
         holds what clients owe, so nothing was changed: restore it, or move it away to start an empty one"
    )]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// An entry is whole, and no record of this version.
    #[error(
        "line {line} of the usage journal {path} is intact, but was written by another version; it holds what \
         clients owe, so nothing was changed: start that version, or move the journal away to start an empty one"
    )]
    Foreign {
        /// The journal.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// Why a record was not stored.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Disk full, most of the time. The agent keeps the record and delivers it again.
    #[error(
        "the usage record could not be written to the journal; free some space, it will be delivered again"
    )]
    Io(#[source] io::Error),
    /// The number was used for something else.
    #[error("record {number} of this agent is already stored with other contents")]
    Conflict {
        /// The record's number.
        number: u64,
    },
}

/// Where entries are kept; a file, or a disk that fills up in tests.
pub trait Storage {
    /// Writes at an offset, which is the end of what was written before.
    ///
    /// # Errors
    /// Those of the file system; some of the bytes may have been written.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts to a length.
    ///
    /// # Errors
    /// Those of the file system.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
    /// Returns once everything is on disk.
    ///
    /// # Errors
    /// Those of the file system.
    fn sync(&mut self) -> io::Result<()>;
}

impl Storage for File {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// The journal, open for appending.
#[derive(Debug)]
pub struct Journal<S = File> {
    storage: S,
    length: u64,
    /// The file may be longer than `length`: a write failed half-way.
    torn: bool,
    seen: HashMap<[u8; 32], BTreeMap<u64, Digest32>>,
}

/// What a journal held when it was opened.
#[derive(Debug, Default)]
pub struct Replay {
    /// Every record, in the order in which they were stored.
    pub records: Vec<UsageRecord>,
    /// Bytes of a torn last entry that were cut.
    pub torn_bytes: u64,
}

impl Journal<File> {
    /// Opens or creates the journal, and cuts a last entry that a crash tore.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path) -> Result<(Self, Replay), OpenError> {
        let io_error = |source| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io_error)?;
        let on_disk = file.metadata().map_err(io_error)?.len();
        let (records, length) = read_entries(path, &file)?;
        if length < on_disk {
            file.set_len(length).map_err(io_error)?;
        }
        file.sync_all().map_err(io_error)?;
        // The file's name is on disk only once its directory is.
        if let Some(parent) = path.parent() {
            File::open(parent)
                .and_then(|directory| directory.sync_all())
                .map_err(io_error)?;
        }
        let mut journal = Self::over(file, length);
        records.iter().for_each(|record| journal.remember(record));
        let replay = Replay {
            records,
            torn_bytes: on_disk - length,
        };
        Ok((journal, replay))
    }
}

/// Every record, without changing the file; a last entry that is being written is left out.
///
/// # Errors
/// See [`OpenError`].
pub fn read(path: &Path) -> Result<Vec<UsageRecord>, OpenError> {
    match File::open(path) {
        Ok(file) => read_entries(path, &file).map(|(records, _)| records),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
        Err(source) => Err(OpenError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

impl<S: Storage> Journal<S> {
    fn over(storage: S, length: u64) -> Self {
        Self {
            storage,
            length,
            torn: false,
            seen: HashMap::new(),
        }
    }

    /// Stores a record; when this returns `Ok` it is on disk. A record that is there already is not stored
    /// twice. Returns whether it is new.
    ///
    /// # Errors
    /// See [`AppendError`]; the journal is unchanged then.
    pub fn append(&mut self, record: &UsageRecord) -> Result<bool, AppendError> {
        match self.known(record) {
            Known::No => {}
            Known::Same => return Ok(false),
            Known::Other => {
                return Err(AppendError::Conflict {
                    number: record.number,
                });
            }
        }
        let entry = encode(record);
        self.repair().map_err(AppendError::Io)?;
        self.torn = true;
        let stored = self
            .storage
            .write_at(&entry, self.length)
            .and_then(|()| self.storage.sync());
        if let Err(error) = stored {
            // Best effort: what is left is cut before the next entry, or at the next start.
            let _ = self.repair();
            return Err(AppendError::Io(error));
        }
        self.torn = false;
        self.length += entry.len() as u64;
        self.remember(record);
        Ok(true)
    }

    /// Cuts what a failed write left behind.
    fn repair(&mut self) -> io::Result<()> {
        if self.torn {
            self.storage.truncate(self.length)?;
            self.storage.sync()?;
            self.torn = false;
        }
        Ok(())
    }

    fn known(&self, record: &UsageRecord) -> Known {
        let Some(numbers) = self.seen.get(&record.voucher.voucher.agent_key) else {
            return Known::No;
        };
        match numbers.get(&record.number) {
            Some(digest) if *digest == digest_of(record) => Known::Same,
            Some(_) => Known::Other,
            // Older than all that are kept: acknowledged long ago.
            None if numbers.len() == RECENT_RECORDS_MAX
                && numbers.keys().next().is_some_and(|first| record.number < *first) =>
            {
                Known::Same
            }
            None => Known::No,
        }
    }

    fn remember(&mut self, record: &UsageRecord) {
        let numbers = self.seen.entry(record.voucher.voucher.agent_key).or_default();
        numbers.insert(record.number, digest_of(record));
        while numbers.len() > RECENT_RECORDS_MAX {
            numbers.pop_first();
        }
    }
}

enum Known {
    No,
    Same,
    Other,
}

fn json_of(record: &UsageRecord) -> Vec<u8> {
    serde_json::to_vec(record).expect("a usage record holds nothing that JSON cannot")
}

fn digest_of(record: &UsageRecord) -> Digest32 {
    Digest32::of(&json_of(record))
}

fn encode(record: &UsageRecord) -> Vec<u8> {
    let json = json_of(record);
    let mut entry = format!("{} {} ", json.len(), Digest32::of(&json)).into_bytes();
    entry.extend_from_slice(&json);
    entry.push(b'\n');
    entry
}

/// One line with its line feed; `None` if it is not a whole, intact entry, the inner error if that is no record.
fn decode(line: &[u8]) -> Option<Result<UsageRecord, serde_json::Error>> {
    let line = line.strip_suffix(b"\n")?;
    let mut parts = line.splitn(3, |byte| *byte == b' ');
    let length: usize = str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let digest: Digest32 = str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let json = parts.next()?;
    (json.len() == length && Digest32::of(json) == digest).then(|| serde_json::from_slice(json))
}

/// Every intact record and the length that they take up.
fn read_entries(path: &Path, file: &File) -> Result<(Vec<UsageRecord>, u64), OpenError> {
    let mut reader = BufReader::new(file);
    let (mut records, mut length, mut bad_line) = (vec![], 0, None);
    for line_number in 1.. {
        let mut line = vec![];
        let bytes = reader
            .by_ref()
            .take(ENTRY_BYTES_MAX as u64)
            .read_until(b'\n', &mut line)
            .map_err(|source| OpenError::Io {
                path: path.to_owned(),
                source,
            })?;
        if bytes == 0 {
            break;
        }
        // A crash tears one entry: nothing can follow it.
        if let Some(line) = bad_line {
            return Err(OpenError::Damaged {
                path: path.to_owned(),
                line,
            });
        }
        match decode(&line) {
            Some(Ok(record)) => {
                length += bytes as u64;
                records.push(record);
            }
            Some(Err(source)) => {
                return Err(OpenError::Foreign {
                    path: path.to_owned(),
                    line: line_number,
                    source,
                });
            }
            None => bad_line = Some(line_number),
        }
    }
    Ok((records, length))
}

/// Whether there is room to write to a directory at all, said early and in plain words.
///
/// # Errors
/// Those of the file system.
pub fn check_space(directory: &Path) -> io::Result<()> {
    let path = directory.join(".space");
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(&[0; 64 * 1024])?;
        file.sync_all()
    });
    let removed = std::fs::remove_file(&path);
    written.and(removed)
}

#[cfg(test)]
pub(crate) mod tests;
