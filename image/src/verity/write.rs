//! Writes a volume and its dm-verity tree in one pass. As the number of data blocks is known beforehand, so is the
//! place of every hash block: nothing is kept in memory but one block for each level.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt as _,
};

use cocoon_evidence::Digest32;
use cocoon_measurements::VerityTree;
use sha2::{Digest as _, Sha256};

use super::{BLOCK_BYTES, level_blocks, level_starts};

/// A finished volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// What the kernel is told.
    pub verity: VerityTree,
    /// Length of data and tree.
    pub bytes: u64,
    /// Of data and tree.
    pub sha256: Digest32,
}

/// Takes exactly the announced data and writes it with its tree.
#[derive(Debug)]
pub struct VerityWriter {
    file: File,
    data_blocks: u64,
    salt: Digest32,
    /// Hash of a block that starts with the salt: cloned for every block.
    salted: Sha256,
    whole: Sha256,
    block: Vec<u8>,
    blocks_written: u64,
    /// From the leaves up; empty when there is a single data block, whose digest is then the root hash.
    levels: Vec<Level>,
    root_hash: Option<Digest32>,
}

/// The hash blocks of one level: the open one, and where it goes.
#[derive(Debug)]
struct Level {
    digests: Vec<u8>,
    position: u64,
    /// Digests still to come.
    missing: u64,
}

impl VerityWriter {
    /// Starts a volume of `data_blocks` blocks in an empty file.
    pub fn new(file: File, data_blocks: u64, salt: Digest32) -> Self {
        Self {
            file,
            data_blocks,
            salt,
            salted: Sha256::new_with_prefix(salt.as_bytes()),
            whole: Sha256::new(),
            block: Vec::with_capacity(BLOCK_BYTES),
            blocks_written: 0,
            levels: levels(data_blocks),
            root_hash: None,
        }
    }

    /// Fills the open block with zeros.
    ///
    /// # Errors
    /// The disk's.
    pub fn pad(&mut self) -> io::Result<()> {
        let missing = (BLOCK_BYTES - self.block.len()) % BLOCK_BYTES;
        self.write_all(&[0; BLOCK_BYTES][..missing])
    }

    /// Writes what is left and makes it durable.
    ///
    /// # Errors
    /// The disk's, or fewer data were written than announced.
    pub fn finish(mut self) -> io::Result<Sealed> {
        self.pad()?;
        let root_hash = self.root_hash.ok_or_else(|| {
            let (written, expected) = (self.blocks_written, self.data_blocks);
            io::Error::other(format!("{written} of {expected} data blocks were written"))
        })?;
        let end = self.file.metadata()?.len();
        let mut position = self.data_blocks * BLOCK_BYTES as u64;
        let mut block = [0; BLOCK_BYTES];
        while position < end {
            self.file.read_exact_at(&mut block, position)?;
            self.whole.update(block);
            position += BLOCK_BYTES as u64;
        }
        self.file.sync_all()?;
        Ok(Sealed {
            verity: VerityTree {
                data_blocks: self.data_blocks,
                salt: self.salt,
                root_hash,
            },
            bytes: end,
            sha256: Digest32(self.whole.finalize().into()),
        })
    }

    fn data_block(&mut self) -> io::Result<()> {
        if self.blocks_written == self.data_blocks {
            return Err(io::Error::other("more data than the volume was announced with"));
        }
        let offset = self.blocks_written * BLOCK_BYTES as u64;
        self.file.write_all_at(&self.block, offset)?;
        self.whole.update(&self.block);
        let mut digest = self.digest(&self.block);
        self.block.clear();
        self.blocks_written += 1;

        // The digest of a hash block that is full, or the last of its level, goes one level up.
        for index in 0..self.levels.len() {
            let level = &mut self.levels[index];
            level.digests.extend_from_slice(digest.as_bytes());
            level.missing -= 1;
            if level.missing > 0 && level.digests.len() < BLOCK_BYTES {
                return Ok(());
            }
            level.digests.resize(BLOCK_BYTES, 0);
            let (full, position) = (std::mem::take(&mut level.digests), level.position);
            level.position += 1;
            self.file.write_all_at(&full, position * BLOCK_BYTES as u64)?;
            digest = self.digest(&full);
        }
        if self.blocks_written == self.data_blocks {
            self.root_hash = Some(digest);
        }
        Ok(())
    }

    fn digest(&self, block: &[u8]) -> Digest32 {
        Digest32(self.salted.clone().chain_update(block).finalize().into())
    }
}

impl Write for VerityWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK_BYTES - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == BLOCK_BYTES {
            self.data_block()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn levels(data_blocks: u64) -> Vec<Level> {
    // Each level has a digest for every block of the one below.
    let below = [data_blocks].into_iter().chain(level_blocks(data_blocks));
    let levels = level_starts(data_blocks).into_iter().zip(below);
    levels
        .map(|(position, missing)| Level {
            digests: Vec::new(),
            position,
            missing,
        })
        .collect()
}
