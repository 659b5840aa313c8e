//! The usage journal: what the provider is owed. A record is acknowledged to the agent only after it is on
//! disk, because from then on the host alone has it. Between records stands what the chain showed of their grants:
//! those that expired long ago are not looked up again.
//!
//! One entry a line: `length sha256 json`. Entries are written one at a time, each synced before the next, so
//! a crash can tear the last one only: that tail is cut at the next start. Any other damage is not a crash's,
//! nor is an entry that is intact and cannot be understood: both are reported instead of being cut.

mod renewal;

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use cocoon_evidence::Digest32;
use cocoon_protocol::{Prices, host::UsageRecord};
use cocoon_settlement::GrantState;
use serde::{Deserialize, Serialize};

/// A line is at most this long; a record has under 1 KiB.
const ENTRY_BYTES_MAX: usize = 16 * 1024;

/// Numbers kept for each agent key to recognise a record that is delivered twice. An agent delivers again
/// only what was not acknowledged, which is far less.
const RECENT_RECORDS_MAX: usize = 65_536;

/// Agent keys for which numbers are kept. Each boot of a guest has its own; one whose guest is gone delivers nothing.
const RECENT_AGENTS_MAX: usize = 4;

/// How an entry begins that is no record.
const SEEN_START: &[u8] = br#"{"seen":"#;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// What was served.
    Record(UsageRecord),
    /// What the chain showed of a grant.
    Seen(Seen),
}

/// What the chain showed of a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// The grant's id.
    pub grant: Digest32,
    /// Until when it pays, seconds since 1970.
    pub expires_s: u32,
    /// At these prices.
    pub prices: Prices,
    /// Drawn so far, nanoTON.
    pub paid_nano: u64,
}

impl Seen {
    /// That the chain shows this of a grant.
    pub fn new(grant: Digest32, shown: &GrantState) -> Self {
        Self {
            grant,
            expires_s: shown.expires_s,
            prices: shown.prices,
            paid_nano: shown.paid_nano,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeenLine {
    seen: Seen,
}

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
    /// An entry is whole, and none of this version.
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
    /// Each agent key's newest records, the latest key last.
    recent: VecDeque<([u8; 32], BTreeMap<u64, Digest32>)>,
}

/// The journal of a running node.
pub type SharedJournal = Arc<Mutex<Journal>>;

impl Journal<File> {
    /// Opens or creates the journal, gives `take` every entry in the order in which they were stored, and cuts a last
    /// one that a crash tore. Returns of how many bytes that was, too.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path, mut take: impl FnMut(Entry)) -> Result<(Self, u64), OpenError> {
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
        let mut recent = VecDeque::new();
        let length = read_entries(path, &file, |entry| {
            if let Entry::Record(record) = &entry {
                remember(&mut recent, record);
            }
            take(entry);
        })?;
        if length < on_disk {
            file.set_len(length).map_err(io_error)?;
        }
        file.sync_all().map_err(io_error)?;
        sync_folder(path).map_err(io_error)?;
        let mut journal = Self::over(file, length);
        journal.recent = recent;
        Ok((journal, on_disk - length))
    }

    /// Notes what the chain showed, without holding anybody up. What cannot be written, a later start asks the chain.
    pub fn note_seen(shared: &SharedJournal, seen: Seen) {
        let journal = Arc::clone(shared);
        tokio::task::spawn_blocking(move || {
            let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = journal.append_seen(seen) {
                tracing::warn!(%error, "what the chain shows of a grant could not be written to the journal");
            }
        });
    }
}

/// Gives `take` every entry, without changing the file; a last one that is being written is left out.
///
/// # Errors
/// See [`OpenError`].
pub fn read(path: &Path, take: impl FnMut(Entry)) -> Result<(), OpenError> {
    match File::open(path) {
        Ok(file) => read_entries(path, &file, take).map(|_| ()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(OpenError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

impl<S: Storage> Journal<S> {
    /// In bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    fn over(storage: S, length: u64) -> Self {
        Self {
            storage,
            length,
            torn: false,
            recent: VecDeque::new(),
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
        self.write(&encode(&json_of(record))).map_err(AppendError::Io)?;
        remember(&mut self.recent, record);
        Ok(true)
    }

    /// Stores what the chain showed of a grant.
    ///
    /// # Errors
    /// Those of the file system; the journal is unchanged then.
    pub fn append_seen(&mut self, seen: Seen) -> io::Result<()> {
        self.write(&encode(&json_of_seen(seen)))
    }

    fn write(&mut self, entry: &[u8]) -> io::Result<()> {
        self.repair()?;
        self.torn = true;
        let stored = self
            .storage
            .write_at(entry, self.length)
            .and_then(|()| self.storage.sync());
        if let Err(error) = stored {
            // Best effort: what is left is cut before the next entry, or at the next start.
            let _ = self.repair();
            return Err(error);
        }
        self.torn = false;
        self.length += entry.len() as u64;
        Ok(())
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
        let agent = &record.voucher.voucher.agent_key;
        let Some((_, numbers)) = self.recent.iter().find(|(known, _)| known == agent) else {
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
}

fn remember(recent: &mut VecDeque<([u8; 32], BTreeMap<u64, Digest32>)>, record: &UsageRecord) {
    let agent = record.voucher.voucher.agent_key;
    let known = recent.iter().position(|(known, _)| *known == agent);
    let at = known.unwrap_or_else(|| {
        if recent.len() == RECENT_AGENTS_MAX {
            recent.pop_front();
        }
        recent.push_back((agent, BTreeMap::new()));
        recent.len() - 1
    });
    let numbers = &mut recent[at].1;
    numbers.insert(record.number, digest_of(record));
    while numbers.len() > RECENT_RECORDS_MAX {
        numbers.pop_first();
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

fn json_of_seen(seen: Seen) -> Vec<u8> {
    serde_json::to_vec(&SeenLine { seen }).expect("it holds nothing that JSON cannot")
}

fn digest_of(record: &UsageRecord) -> Digest32 {
    Digest32::of(&json_of(record))
}

fn encode(json: &[u8]) -> Vec<u8> {
    let mut entry = format!("{} {} ", json.len(), Digest32::of(json)).into_bytes();
    entry.extend_from_slice(json);
    entry.push(b'\n');
    entry
}

/// One line with its line feed; `None` if it is not whole and intact, the inner error if it is no entry that we know.
fn decode(line: &[u8]) -> Option<Result<Entry, serde_json::Error>> {
    let line = line.strip_suffix(b"\n")?;
    let mut parts = line.splitn(3, |byte| *byte == b' ');
    let length: usize = str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let digest: Digest32 = str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let json = parts.next()?;
    (json.len() == length && Digest32::of(json) == digest).then(|| {
        if json.starts_with(SEEN_START) {
            serde_json::from_slice(json).map(|SeenLine { seen }| Entry::Seen(seen))
        } else {
            serde_json::from_slice(json).map(Entry::Record)
        }
    })
}

/// A file's name is on disk only once its folder is.
fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Gives `take` every intact entry. Returns the length that they take up.
fn read_entries(path: &Path, file: &File, mut take: impl FnMut(Entry)) -> Result<u64, OpenError> {
    let mut reader = BufReader::new(file);
    let (mut length, mut bad_line) = (0, None);
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
            Some(Ok(entry)) => {
                length += bytes as u64;
                take(entry);
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
    Ok(length)
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
