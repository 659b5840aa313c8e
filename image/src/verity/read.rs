//! Reads a volume through its dm-verity tree, as the kernel of the guest does: what does not match the root hash is
//! not returned.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use cocoon_evidence::Digest32;
use cocoon_measurements::VerityTree;
use sha2::{Digest as _, Sha256};

use super::{BLOCK_BYTES, DIGEST_BYTES, DIGESTS_PER_BLOCK, level_starts, volume_bytes};

type Block = [u8; BLOCK_BYTES];

/// A volume, checked block by block as it is read.
#[derive(Debug)]
pub struct VerityReader {
    path: PathBuf,
    file: File,
    tree: VerityTree,
    /// Hash of a block that starts with the salt: cloned for every block.
    salted: Sha256,
    /// From the leaves up.
    levels: Vec<Level>,
}

#[derive(Debug)]
struct Level {
    /// Number of its first block in the volume.
    start: u64,
    /// The hash block that was checked last, by its number in the level.
    last: Option<(u64, Box<Block>)>,
}

/// Why a volume cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum VerityError {
    /// The file system refused.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not as long as data and tree.
    #[error("{} has {found} bytes; {data_blocks} data blocks and their hash tree have {expected}", path.display())]
    Length {
        /// Which file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// Of the data.
        data_blocks: u64,
        /// What it has to be.
        expected: u64,
    },
    /// A size that no volume has.
    #[error(
        "a volume of {data_blocks} data blocks cannot be: 1 to {} are possible",
        u32::MAX
    )]
    Size {
        /// As claimed.
        data_blocks: u64,
    },
    /// The bytes are not those of the root hash.
    #[error("{what} {block} does not match the root hash")]
    Mismatch {
        /// Data or hash block.
        what: &'static str,
        /// Its number in the volume.
        block: u64,
    },
    /// No data block has this number.
    #[error("there is no data block {block}")]
    NoBlock {
        /// The number.
        block: u64,
    },
}

impl VerityReader {
    /// Opens a volume, whose parameters may be anybody's claim.
    ///
    /// # Errors
    /// See [`VerityError`].
    pub fn open(path: &Path, tree: VerityTree) -> Result<Self, VerityError> {
        let read = |source| VerityError::Read {
            path: path.to_owned(),
            source,
        };
        let data_blocks = tree.data_blocks;
        // EROFS counts blocks in 32 bits.
        if data_blocks == 0 || data_blocks > u64::from(u32::MAX) {
            return Err(VerityError::Size { data_blocks });
        }
        let file = File::open(path).map_err(read)?;
        let found = file.metadata().map_err(read)?.len();
        let expected = volume_bytes(data_blocks);
        if found != expected {
            return Err(VerityError::Length {
                path: path.to_owned(),
                found,
                data_blocks,
                expected,
            });
        }
        let levels = level_starts(data_blocks).into_iter();
        Ok(Self {
            path: path.to_owned(),
            file,
            salted: Sha256::new_with_prefix(tree.salt.as_bytes()),
            tree,
            levels: levels.map(|start| Level { start, last: None }).collect(),
        })
    }

    /// A data block.
    ///
    /// # Errors
    /// See [`VerityError`].
    pub fn block(&mut self, number: u64) -> Result<Block, VerityError> {
        if number >= self.tree.data_blocks {
            return Err(VerityError::NoBlock { block: number });
        }
        let block = self.raw(number)?;
        let expected = self.expected(0, number)?;
        self.check("data block", number, &block, expected)?;
        Ok(block)
    }

    /// What the tree says about block `index` of the level below `level`.
    fn expected(&mut self, level: usize, index: u64) -> Result<Digest32, VerityError> {
        let Some(Level { start, last }) = self.levels.get(level) else {
            return Ok(self.tree.root_hash);
        };
        let (start, number) = (*start, index / DIGESTS_PER_BLOCK);
        if last.as_ref().is_none_or(|(checked, _)| *checked != number) {
            let block = self.raw(start + number)?;
            let expected = self.expected(level + 1, number)?;
            self.check("hash block", start + number, &block, expected)?;
            self.levels[level].last = Some((number, Box::new(block)));
        }
        let (_, block) = self.levels[level].last.as_ref().expect("it was just checked");
        let offset = (index % DIGESTS_PER_BLOCK) as usize * DIGEST_BYTES;
        let digest = block[offset..].first_chunk().expect("digests fill the block");
        Ok(Digest32(*digest))
    }

    fn check(
        &self,
        what: &'static str,
        number: u64,
        block: &Block,
        expected: Digest32,
    ) -> Result<(), VerityError> {
        let found = Digest32(self.salted.clone().chain_update(block).finalize().into());
        if found == expected {
            return Ok(());
        }
        Err(VerityError::Mismatch { what, block: number })
    }

    fn raw(&self, number: u64) -> Result<Block, VerityError> {
        let mut block = [0; BLOCK_BYTES];
        let read = self.file.read_exact_at(&mut block, number * BLOCK_BYTES as u64);
        read.map_err(|source| VerityError::Read {
            path: self.path.clone(),
            source,
        })?;
        Ok(block)
    }
}
