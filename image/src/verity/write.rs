//! Writes a volume and its dm-verity tree in one pass.
//!
//! The caller's thread copies data into the volume, where it can without this program seeing them (`io::copy` asks the
//! kernel for it; file systems that share extents copy nothing at all). One thread for each core follows and hashes
//! what was written, out of the page cache. As the number of data blocks is known beforehand, so is the place of
//! every hash block: what is kept in memory does not depend on the volume's length.

use std::{
    fs::File,
    io::{self, Read as _, Write},
    os::unix::fs::FileExt as _,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, SyncSender},
    },
    thread::{self, JoinHandle},
};

use cocoon_evidence::Digest32;
use cocoon_measurements::VerityTree;
use sha2::{Digest as _, Sha256};

use super::{BLOCK_BYTES, DIGESTS_PER_BLOCK, level_blocks, level_starts};
use crate::interrupt;

/// Data blocks that one thread hashes at a time: 4 MiB. A multiple of the digests in a hash block, so that no two
/// threads write to the same one.
const CHUNK_BLOCKS: u64 = 8 * DIGESTS_PER_BLOCK;
const CHUNK_BYTES: u64 = CHUNK_BLOCKS * BLOCK_BYTES as u64;
/// Blocks that are read at a time: few calls, and still in the processor's cache when they are hashed.
const PIECE_BLOCKS: usize = 64;
/// Chunks that may wait. More than the copier gets ahead would leave the page cache on a small machine.
const QUEUE_MAX: usize = 16;
/// More threads than this wait for the disk.
const THREADS_MAX: usize = 16;

/// Takes exactly the announced data and writes it with its tree.
#[derive(Debug)]
pub struct VerityWriter {
    file: Arc<File>,
    data_blocks: u64,
    salt: Digest32,
    /// Bytes written.
    position: u64,
    /// Chunks handed to the threads.
    handed_over: u64,
    hashers: Hashers,
}

impl VerityWriter {
    /// Starts a volume of `data_blocks` blocks in an empty file.
    pub fn new(file: File, data_blocks: u64, salt: Digest32) -> Self {
        let file = Arc::new(file);
        let task = Task {
            file: Arc::clone(&file),
            salted: Sha256::new_with_prefix(salt.as_bytes()),
            data_blocks,
        };
        Self {
            file,
            data_blocks,
            salt,
            position: 0,
            handed_over: 0,
            hashers: Hashers::start(&task),
        }
    }

    /// Copies up to `bytes` bytes of a file, from where it stands. Returns how many there were.
    ///
    /// # Errors
    /// The source's or the disk's, or this program is told to end.
    pub fn copy(&mut self, source: &File, bytes: u64) -> io::Result<u64> {
        let mut copied = 0;
        while copied < bytes {
            interrupt::check()?;
            let piece = (bytes - copied).min(CHUNK_BYTES);
            let count = io::copy(&mut source.take(piece), &mut &*self.file)?;
            copied += count;
            self.advance(count)?;
            if count < piece {
                break;
            }
        }
        Ok(copied)
    }

    /// Fills the last block with zeros.
    ///
    /// # Errors
    /// The disk's.
    pub fn pad(&mut self) -> io::Result<()> {
        let missing = self.position.next_multiple_of(BLOCK_BYTES as u64) - self.position;
        self.write_all(&[0; BLOCK_BYTES][..missing as usize])
    }

    /// Writes what is left and makes it durable.
    ///
    /// # Errors
    /// The disk's, or other data were written than announced.
    pub fn finish(mut self) -> io::Result<VerityTree> {
        self.pad()?;
        let (written, expected) = (self.position / BLOCK_BYTES as u64, self.data_blocks);
        if written != expected {
            return Err(io::Error::other(format!(
                "{written} of {expected} data blocks were written"
            )));
        }
        if written > self.handed_over * CHUNK_BLOCKS {
            self.hand_over()?;
        }
        self.hashers.stop()?;
        let root_hash = self.upper_levels()?;
        self.file.sync_all()?;
        Ok(VerityTree {
            data_blocks: self.data_blocks,
            salt: self.salt,
            root_hash,
        })
    }

    /// Every chunk that is complete goes to the threads.
    fn advance(&mut self, bytes: u64) -> io::Result<()> {
        self.position += bytes;
        if self.position > self.data_blocks * BLOCK_BYTES as u64 {
            return Err(io::Error::other("more data than the volume was announced with"));
        }
        while self.position >= (self.handed_over + 1) * CHUNK_BYTES {
            self.hand_over()?;
        }
        Ok(())
    }

    fn hand_over(&mut self) -> io::Result<()> {
        self.hashers.take(self.handed_over)?;
        self.handed_over += 1;
        Ok(())
    }

    /// The levels above the leaves' are small: each has a 128th of the one below.
    fn upper_levels(&self) -> io::Result<Digest32> {
        let task = Task {
            file: Arc::clone(&self.file),
            salted: Sha256::new_with_prefix(self.salt.as_bytes()),
            data_blocks: self.data_blocks,
        };
        let starts = level_starts(self.data_blocks);
        let mut below = 0..self.data_blocks;
        for (level, (start, blocks)) in starts.into_iter().zip(level_blocks(self.data_blocks)).enumerate() {
            if level > 0 {
                task.hash(below.start, below.end - below.start, start)?;
            }
            below = start..start + blocks;
        }
        let mut top = [0; BLOCK_BYTES];
        self.file
            .read_exact_at(&mut top, below.start * BLOCK_BYTES as u64)?;
        Ok(task.digest(&top))
    }
}

impl Write for VerityWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = (&*self.file).write(bytes)?;
        self.advance(count as u64)?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What every thread knows.
#[derive(Debug, Clone)]
struct Task {
    file: Arc<File>,
    /// Hash of a block that starts with the salt: cloned for every block.
    salted: Sha256,
    data_blocks: u64,
}

impl Task {
    fn run(&self, queue: &Mutex<Receiver<u64>>) -> io::Result<()> {
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        // A volume of one block has no tree: its digest is the root hash.
        let Some(leaves) = level_starts(self.data_blocks).first().copied() else {
            return Ok(());
        };
        while let Ok(chunk) = next() {
            let first = chunk * CHUNK_BLOCKS;
            let blocks = CHUNK_BLOCKS.min(self.data_blocks - first);
            self.hash(first, blocks, leaves + first / DIGESTS_PER_BLOCK)?;
        }
        Ok(())
    }

    /// Reads blocks and writes their digests to the hash blocks from `to` on.
    fn hash(&self, first: u64, blocks: u64, to: u64) -> io::Result<()> {
        let mut piece = vec![0; PIECE_BLOCKS * BLOCK_BYTES];
        let mut digests = Vec::new();
        let end = first + blocks;
        for start in (first..end).step_by(PIECE_BLOCKS) {
            let used = PIECE_BLOCKS.min((end - start) as usize) * BLOCK_BYTES;
            self.file
                .read_exact_at(&mut piece[..used], start * BLOCK_BYTES as u64)?;
            for block in piece[..used].chunks_exact(BLOCK_BYTES) {
                digests.extend_from_slice(self.digest(block).as_bytes());
            }
        }
        digests.resize(digests.len().next_multiple_of(BLOCK_BYTES), 0);
        self.file.write_all_at(&digests, to * BLOCK_BYTES as u64)
    }

    fn digest(&self, block: &[u8]) -> Digest32 {
        Digest32(self.salted.clone().chain_update(block).finalize().into())
    }
}

/// The threads, which end when the writer does.
#[derive(Debug)]
struct Hashers {
    queue: Option<SyncSender<u64>>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Hashers {
    fn start(task: &Task) -> Self {
        let (queue, waiting) = mpsc::sync_channel(QUEUE_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = (0..cores.min(THREADS_MAX)).map(|_| {
            let (task, waiting) = (task.clone(), Arc::clone(&waiting));
            thread::spawn(move || task.run(&waiting))
        });
        Self {
            queue: Some(queue),
            threads: threads.collect(),
        }
    }

    fn take(&mut self, chunk: u64) -> io::Result<()> {
        let queue = self.queue.as_ref().expect("it is there until the end");
        match queue.send(chunk) {
            Ok(()) => Ok(()),
            // All threads have ended, one of them with a reason.
            Err(_) => self.stop(),
        }
    }

    /// Waits until everything is hashed.
    fn stop(&mut self) -> io::Result<()> {
        self.queue = None;
        let ended = self.threads.drain(..).map(JoinHandle::join);
        let results: Vec<_> = ended.collect();
        let panicked = |_| Err(io::Error::other("a hashing thread panicked"));
        results
            .into_iter()
            .try_for_each(|result| result.unwrap_or_else(panicked))
    }
}

impl Drop for Hashers {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}
