//! Volumes with a dm-verity tree.
//!
//! Format 1, SHA-256, data and hash blocks of 4096 bytes, no superblock (kernel documentation,
//! admin-guide/device-mapper/verity.rst). The tree lies directly behind the data, top level first.

mod read;
mod write;

pub use self::{
    read::{VerityError, VerityReader},
    write::{Sealed, VerityWriter},
};

/// Bytes in a data or hash block.
pub const BLOCK_BYTES: usize = 4096;

const DIGEST_BYTES: usize = 32;
const DIGESTS_PER_BLOCK: u64 = (BLOCK_BYTES / DIGEST_BYTES) as u64;

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
