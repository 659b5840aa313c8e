//! Reads the names of a file system that somebody else says to have written.
//!
//! The bytes are hostile, even if their hash is right: the root hash is the same party's claim. So the names that
//! are found are laid out again by [`Layout`], and the result has to be what was read, byte for byte. What this
//! accepts holds no second tree, no entry that another program would see otherwise, no owner, time, link or
//! attribute: only what [`super::Tree`] can write.

use std::collections::BTreeSet;

use super::{
    Layout, Names, PathError,
    layout::{
        BLOCK_BITS, DIRECTORY_MODE, DIRENT_BYTES, INODE_BYTES, MAGIC, NIDS_PER_INODE, ROOT_NID,
        SUPERBLOCK_OFFSET, blocks,
    },
};
use crate::verity::{BLOCK_BYTES, VerityError};

/// More entries than a manifest of the largest length can list.
const INODES_MAX: u64 = 65_536;
/// Bounds what a chain of directories costs; the longest path of a root has some 100 bytes.
const PATH_BYTES_MAX: usize = 1024;
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const PERMISSIONS: u32 = 0o777;

type Block = [u8; BLOCK_BYTES];
/// Returns one block of the volume.
type Fetch<'a> = dyn FnMut(u64) -> Result<Block, VerityError> + 'a;

/// Why a volume holds no file system of [`super::Tree`]'s.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// A block cannot be had.
    #[error("the volume cannot be read")]
    Volume(#[from] VerityError),
    /// The first block.
    #[error("the superblock {0}")]
    Superblock(&'static str),
    /// A directory or file.
    #[error("{path:?} in the file system {problem}")]
    Node {
        /// Its path.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A name.
    #[error("a name in the file system is no name")]
    Name(#[from] PathError),
    /// Something besides the names.
    #[error(
        "block {block} of the file system is not what cocoon-image writes for these files: it was made by another \
         program, or hides something"
    )]
    Foreign {
        /// Its number.
        block: u64,
    },
}

/// Finds every directory and file of a volume of `blocks` blocks. The files' content is not read.
///
/// # Errors
/// See [`FormError`].
pub fn read(blocks: u64, fetch: &mut Fetch<'_>) -> Result<Layout, FormError> {
    let mut walk = Walk::open(blocks, fetch)?;
    while let Some((nid, path)) = walk.open.pop() {
        walk.visit(nid, &path)?;
    }
    let layout = Layout::new(&walk.names);
    if layout.blocks != blocks {
        return Err(FormError::Superblock("names another length than its files need"));
    }
    for (number, expected) in (0..).zip(layout.metadata().chunks(BLOCK_BYTES)) {
        if fetch(number)? != expected {
            return Err(FormError::Foreign { block: number });
        }
    }
    Ok(layout)
}

struct Walk<'a, 'b> {
    fetch: &'a mut Fetch<'b>,
    blocks: u64,
    inodes: u64,
    /// Blocks that no directory was read from: each block is one directory's, so reading ends.
    unread: u64,
    names: Names,
    /// Node ids that have a name; each has only one.
    named: BTreeSet<u64>,
    /// Named and not yet looked at.
    open: Vec<(u64, String)>,
}

struct Node {
    mode: u32,
    bytes: u64,
    start_block: u64,
}

impl<'a, 'b> Walk<'a, 'b> {
    fn open(blocks: u64, fetch: &'a mut Fetch<'b>) -> Result<Self, FormError> {
        let block = fetch(0)?;
        let (superblock, wrong) = (&block[SUPERBLOCK_OFFSET..], FormError::Superblock);
        if u32_at(superblock, 0) != MAGIC {
            return Err(wrong("is not that of an EROFS file system"));
        }
        let inodes = u64_at(superblock, 16);
        if superblock[12] != BLOCK_BITS || u16_at(superblock, 14) != ROOT_NID {
            return Err(wrong(
                "names a block size or a place of the root that cocoon-image never writes",
            ));
        }
        if inodes == 0 || inodes > INODES_MAX {
            return Err(wrong("names no entry or more than 65,536"));
        }
        if u64::from(u32_at(superblock, 36)) != blocks {
            return Err(wrong("names another length than the volume has"));
        }
        Ok(Self {
            fetch,
            blocks,
            inodes,
            unread: blocks,
            names: Names::default(),
            named: BTreeSet::from([u64::from(ROOT_NID)]),
            open: vec![(u64::from(ROOT_NID), "/".into())],
        })
    }

    fn visit(&mut self, nid: u64, path: &str) -> Result<(), FormError> {
        let wrong = |problem| FormError::Node {
            path: path.to_owned(),
            problem,
        };
        let node = self.node(nid)?.ok_or_else(|| wrong("has no inode"))?;
        let end = node.start_block.checked_add(blocks(node.bytes));
        if end.is_none_or(|end| end > self.blocks) {
            return Err(wrong("lies outside the volume"));
        }
        if node.mode == DIRECTORY_MODE {
            return self.directory(&node, path);
        }
        if node.mode & S_IFMT != S_IFREG || node.mode & !S_IFMT & !PERMISSIONS != 0 {
            return Err(wrong("is neither a directory with mode 0755 nor a plain file"));
        }
        self.names.add_file(path, node.mode & PERMISSIONS, node.bytes)?;
        Ok(())
    }

    /// None for a node id where no inode can be.
    fn node(&mut self, nid: u64) -> Result<Option<Node>, FormError> {
        let Some(number) = nid
            .checked_sub(u64::from(ROOT_NID))
            .map(|nids| nids / NIDS_PER_INODE)
        else {
            return Ok(None);
        };
        if number >= self.inodes {
            return Ok(None);
        }
        let per_block = (BLOCK_BYTES / INODE_BYTES) as u64;
        let block = (self.fetch)(1 + number / per_block)?;
        let inode = &block[(number % per_block) as usize * INODE_BYTES..][..INODE_BYTES];
        Ok(Some(Node {
            mode: u32::from(u16_at(inode, 4)),
            bytes: u64_at(inode, 8),
            start_block: u64::from(u32_at(inode, 16)),
        }))
    }

    fn directory(&mut self, node: &Node, path: &str) -> Result<(), FormError> {
        if path != "/" {
            self.names.add_directory(path)?;
        }
        let count = blocks(node.bytes);
        self.unread = self.unread.checked_sub(count).ok_or_else(|| FormError::Node {
            path: path.to_owned(),
            problem: "has its entries where another directory has them",
        })?;
        for index in 0..count {
            let block = (self.fetch)(node.start_block + index)?;
            let used = (node.bytes - index * BLOCK_BYTES as u64).min(BLOCK_BYTES as u64) as usize;
            let entries = entries(&block[..used]).ok_or_else(|| FormError::Node {
                path: path.to_owned(),
                problem: "has a damaged list of entries",
            })?;
            for (name, nid) in entries {
                self.enter(path, name, nid)?;
            }
        }
        Ok(())
    }

    fn enter(&mut self, directory: &str, name: &str, nid: u64) -> Result<(), FormError> {
        if name == "." || name == ".." {
            return Ok(());
        }
        let path = format!("{}/{name}", directory.trim_end_matches('/'));
        let problem = if name.is_empty() || name.contains('/') {
            "has a name that is no name"
        } else if path.len() > PATH_BYTES_MAX {
            "has a path of more than 1,024 bytes"
        } else if !self.named.insert(nid) {
            "has a second name"
        } else {
            self.open.push((nid, path));
            return Ok(());
        };
        Err(FormError::Node { path, problem })
    }
}

/// Names and node ids in a directory's block; none if they contradict themselves.
fn entries(block: &[u8]) -> Option<Vec<(&str, u64)>> {
    let name_offset = |index: usize| {
        let entry = block.get(index * DIRENT_BYTES..)?.get(..DIRENT_BYTES)?;
        Some(usize::from(u16_at(entry, 8)))
    };
    // The first name begins where the entries end.
    let count = name_offset(0)? / DIRENT_BYTES;
    let entry = |index: usize| {
        let start = name_offset(index)?;
        let end = if index + 1 < count {
            name_offset(index + 1)?
        } else {
            block.len()
        };
        // Zeros fill what the last name leaves of the block.
        let name = str::from_utf8(block.get(start..end)?)
            .ok()?
            .trim_end_matches('\0');
        Some((name, u64_at(block, index * DIRENT_BYTES)))
    };
    (0..count).map(entry).collect()
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, offset))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, offset))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, offset))
}

/// The caller has checked the length.
fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let found = bytes[offset..].first_chunk();
    *found.expect("the length was checked")
}
