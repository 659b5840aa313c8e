//! Where everything in a file system goes, and the bytes of all that is not a file's content.
//!
//! Superblock (block 0), inodes, directories, then the content of files, each from a block boundary (so that the
//! kernel maps pages straight from the disk). Inodes are numbered in path order, parents first. Sources: kernel
//! documentation filesystems/erofs.rst and fs/erofs/erofs_fs.h (Linux 7.2). Extended inodes, data layout
//! EROFS_INODE_FLAT_PLAIN, no feature flags, no checksum (dm-verity covers all).

use std::collections::BTreeMap;

use super::names::{Directory, NamedFile, Names, Node};
use crate::verity::BLOCK_BYTES;

pub(super) const MAGIC: u32 = 0xE0F5_E1E2;
pub(super) const BLOCK_BITS: u8 = 12;
pub(super) const SUPERBLOCK_OFFSET: usize = 1024;
pub(super) const INODE_BYTES: usize = 64;
/// Node ids count units of this size from the start of the disk.
const NID_BYTES: usize = 32;
pub(super) const DIRENT_BYTES: usize = 12;
/// The root's node id has 16 bits; it is the first inode, in block 1.
pub(super) const ROOT_NID: u16 = (BLOCK_BYTES / NID_BYTES) as u16;
pub(super) const NIDS_PER_INODE: u64 = (INODE_BYTES / NID_BYTES) as u64;
const FORMAT_EXTENDED: u16 = 1;
const TYPE_FILE: u8 = 1;
const TYPE_DIRECTORY: u8 = 2;
pub(super) const DIRECTORY_MODE: u32 = 0o040_755;

/// A planned file system.
#[derive(Debug)]
pub struct Layout {
    /// In the order of their numbers.
    pub inodes: Vec<Inode>,
    /// Of the whole file system.
    pub blocks: u64,
}

/// A directory or a file, and its place.
#[derive(Debug)]
pub struct Inode {
    /// Absolute path.
    pub path: String,
    /// `st_mode`.
    pub mode: u32,
    /// Length of the content; of the entries for a directory.
    pub bytes: u64,
    /// The first block of the content.
    pub start_block: u64,
    /// For a file: its number among the [`Names`].
    pub file: Option<usize>,
    links: u32,
    /// For a directory: its blocks.
    entries: Vec<u8>,
}

impl Layout {
    /// Plans a file system with these names.
    pub fn new(names: &Names) -> Self {
        let mut layout = Self {
            inodes: Vec::new(),
            blocks: 0,
        };
        layout.add_directory("/", &names.root, 0);
        let mut next = 1 + blocks((layout.inodes.len() * INODE_BYTES) as u64);
        // All directories before all files: they are written, and read, together.
        for directories in [true, false] {
            for inode in &mut layout.inodes {
                if inode.file.is_none() == directories {
                    inode.start_block = next;
                    next += blocks(inode.bytes);
                }
            }
        }
        layout.blocks = next;
        layout
    }

    /// Numbers a directory and all below it; returns its number.
    fn add_directory(&mut self, path: &str, directory: &Directory, parent: usize) -> usize {
        let number = self.inodes.len();
        self.inodes.push(Inode {
            path: path.to_owned(),
            mode: DIRECTORY_MODE,
            bytes: 0,
            start_block: 0,
            file: None,
            links: 2,
            entries: Vec::new(),
        });
        let mut entries = BTreeMap::from([(".", (number, TYPE_DIRECTORY)), ("..", (parent, TYPE_DIRECTORY))]);
        for (name, node) in directory {
            let path = format!("{}/{name}", path.trim_end_matches('/'));
            let entry = match node {
                Node::Directory(below) => {
                    self.inodes[number].links += 1;
                    (self.add_directory(&path, below, number), TYPE_DIRECTORY)
                }
                Node::File(file) => (self.add_file(path, file), TYPE_FILE),
            };
            entries.insert(name, entry);
        }
        let entries = directory_blocks(&entries);
        self.inodes[number].bytes = entries.len() as u64;
        self.inodes[number].entries = entries;
        number
    }

    fn add_file(&mut self, path: String, file: &NamedFile) -> usize {
        self.inodes.push(Inode {
            path,
            mode: file.mode,
            bytes: file.bytes,
            start_block: 0,
            file: Some(file.number),
            links: 1,
            entries: Vec::new(),
        });
        self.inodes.len() - 1
    }

    /// Superblock, inodes and directories, in whole blocks.
    pub fn metadata(&self) -> Vec<u8> {
        let mut bytes = vec![0; SUPERBLOCK_OFFSET];
        bytes.extend(self.superblock());
        pad(&mut bytes);
        for (number, inode) in self.inodes.iter().enumerate() {
            bytes.extend(inode_bytes(number, inode));
        }
        pad(&mut bytes);
        for inode in &self.inodes {
            bytes.extend(&inode.entries);
            pad(&mut bytes);
        }
        bytes
    }

    /// `struct erofs_super_block`.
    fn superblock(&self) -> [u8; 128] {
        let mut bytes = [0; 128];
        put(&mut bytes, 0, &MAGIC.to_le_bytes());
        put(&mut bytes, 12, &[BLOCK_BITS]);
        put(&mut bytes, 14, &ROOT_NID.to_le_bytes());
        put(&mut bytes, 16, &(self.inodes.len() as u64).to_le_bytes());
        put(&mut bytes, 36, &low_block(self.blocks).to_le_bytes());
        bytes
    }
}

/// `struct erofs_inode_extended`.
fn inode_bytes(number: usize, inode: &Inode) -> [u8; INODE_BYTES] {
    let mut bytes = [0; INODE_BYTES];
    put(&mut bytes, 0, &FORMAT_EXTENDED.to_le_bytes());
    put(&mut bytes, 4, &(inode.mode as u16).to_le_bytes());
    put(&mut bytes, 8, &inode.bytes.to_le_bytes());
    put(&mut bytes, 16, &low_block(inode.start_block).to_le_bytes());
    put(&mut bytes, 20, &(number as u32 + 1).to_le_bytes());
    put(&mut bytes, 44, &inode.links.to_le_bytes());
    bytes
}

/// Blocks of `struct erofs_dirent` followed by the names; only the last block may be short.
fn directory_blocks(entries: &BTreeMap<&str, (usize, u8)>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = entries.iter().peekable();
    while rest.peek().is_some() {
        pad(&mut out);
        let mut used = 0;
        let mut block = Vec::new();
        while let Some((name, entry)) =
            rest.next_if(|(name, _)| used + DIRENT_BYTES + name.len() <= BLOCK_BYTES)
        {
            used += DIRENT_BYTES + name.len();
            block.push((name, entry));
        }
        let mut name_offset = block.len() * DIRENT_BYTES;
        for (name, (number, kind)) in &block {
            out.extend(nid(*number).to_le_bytes());
            out.extend((name_offset as u16).to_le_bytes());
            out.extend([*kind, 0]);
            name_offset += name.len();
        }
        for (name, _) in &block {
            out.extend(name.as_bytes());
        }
    }
    out
}

fn nid(number: usize) -> u64 {
    u64::from(ROOT_NID) + number as u64 * NIDS_PER_INODE
}

/// How many blocks this many bytes take.
pub(super) fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES as u64)
}

/// Block numbers have 32 bits: 16 TiB, more than any disk this is written to, and what the reader accepts.
fn low_block(block: u64) -> u32 {
    u32::try_from(block).expect("a volume under 16 TiB")
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}
