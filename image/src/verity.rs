//! Volumes with a dm-verity tree.
//!
//! Format 1, SHA-256, data and hash blocks of 4096 bytes, no superblock (kernel documentation,
//! admin-guide/device-mapper/verity.rst). The tree lies directly behind the data, top level first.

mod read;
mod write;

pub use self::{
    read::{VerityError, VerityReader},
    write::VerityWriter,
};

use cocoon_evidence::Digest32;
use cocoon_measurements::VerityTree;

/// Bytes in a data or hash block.
pub const BLOCK_BYTES: usize = 4096;

const DIGEST_BYTES: usize = 32;
const DIGESTS_PER_BLOCK: u64 = (BLOCK_BYTES / DIGEST_BYTES) as u64;

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

/// How many hash blocks each level has, from the leaves up.
fn level_blocks(data_blocks: u64) -> Vec<u64> {
    let mut blocks = Vec::new();
    let mut below = data_blocks;
    while below > 1 {
        below = below.div_ceil(DIGESTS_PER_BLOCK);
        blocks.push(below);
    }
    blocks
}

/// Blocks of the whole tree.
pub fn tree_blocks(data_blocks: u64) -> u64 {
    level_blocks(data_blocks).iter().sum()
}

/// Length of data and tree.
pub fn volume_bytes(data_blocks: u64) -> u64 {
    (data_blocks + tree_blocks(data_blocks)) * BLOCK_BYTES as u64
}

/// The number in the volume of each level's first hash block, from the leaves up.
fn level_starts(data_blocks: u64) -> Vec<u64> {
    let mut end = data_blocks + tree_blocks(data_blocks);
    let starts = level_blocks(data_blocks).into_iter().map(|blocks| {
        end -= blocks;
        end
    });
    starts.collect()
}

#[cfg(test)]
mod tests;
