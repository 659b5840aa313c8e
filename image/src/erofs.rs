//! Writes uncompressed EROFS file systems, always the same bytes for the same tree.
//!
//! A tree is built entry by entry, never from a host folder: modes, owners, times and order do not depend on
//! the machine. Owner is 0:0 and every time is 0. Layout: superblock (block 0), inodes, directories, then the
//! content of files in path order, each from a block boundary (so that the kernel maps pages straight from
//! the disk). Sources: kernel documentation filesystems/erofs.rst and fs/erofs/erofs_fs.h (Linux 7.2).
//! Extended inodes, data layout EROFS_INODE_FLAT_PLAIN, no feature flags, no checksum (dm-verity covers all).

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use cocoon_evidence::Digest32;
use sha2::{Digest as _, Sha256};

use crate::verity::{BLOCK_BYTES, Sealed, VerityWriter};

const MAGIC: u32 = 0xE0F5_E1E2;
const BLOCK_BITS: u8 = 12;
const SUPERBLOCK_OFFSET: usize = 1024;
const INODE_BYTES: usize = 64;
/// Node ids count units of this size from the start of the disk.
const NID_BYTES: usize = 32;
const DIRENT_BYTES: usize = 12;
const NAME_BYTES_MAX: usize = 255;
/// The root's node id has 16 bits; it is the first inode, in block 1.
const ROOT_NID: u16 = (BLOCK_BYTES / NID_BYTES) as u16;
const FORMAT_EXTENDED: u16 = 1;
const TYPE_FILE: u8 = 1;
const TYPE_DIRECTORY: u8 = 2;
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const DIRECTORY_MODE: u32 = S_IFDIR | 0o755;

/// What a file holds.
#[derive(Debug, Clone)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// The first `bytes` bytes of a file that must have exactly that length when it is read.
    File {
        /// On this machine.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
}

/// A file system to be written.
#[derive(Debug, Default)]
pub struct Tree {
    root: Directory,
}

type Directory = BTreeMap<String, Node>;

#[derive(Debug)]
enum Node {
    Directory(Directory),
    File { mode: u32, content: Content },
}

/// One entry as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Absolute path.
    pub path: String,
    /// `st_mode`.
    pub mode: u32,
    /// Length of the content, 0 for a directory.
    pub bytes: u64,
    /// Of the content, of nothing for a directory.
    pub sha256: Digest32,
}

/// Why a path cannot be added.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} cannot be in the file system: {reason}")]
pub struct PathError {
    path: String,
    reason: &'static str,
}

/// Why a volume was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A source file cannot be read.
    #[error("cannot read {}", path.display())]
    Source {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A source file is not as long as it was when it was added.
    #[error("{} changed its length while the volume was written (it had {expected} bytes); try again", path.display())]
    Changed {
        /// Which.
        path: PathBuf,
        /// Its former length.
        expected: u64,
    },
    /// The volume cannot be written: mostly a full disk.
    #[error("cannot write the volume; is there enough space?")]
    Volume(#[source] io::Error),
}

impl PathError {
    fn new(path: &str, reason: &'static str) -> Self {
        Self {
            path: path.to_owned(),
            reason,
        }
    }
}

impl Content {
    /// The content of a file as it is now.
    ///
    /// # Errors
    /// It is not there or not a regular file.
    pub fn of_file(path: &Path) -> Result<Self, WriteError> {
        let source = |source| WriteError::Source {
            path: path.to_owned(),
            source,
        };
        let metadata = path.metadata().map_err(source)?;
        if !metadata.is_file() {
            return Err(source(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            )));
        }
        Ok(Self::File {
            path: path.to_owned(),
            bytes: metadata.len(),
        })
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { bytes, .. } => *bytes,
        }
    }
}

impl Tree {
    /// Adds an empty directory, mode 0755, with its parents.
    ///
    /// # Errors
    /// The path is not absolute and plain, or a file is in the way.
    pub fn add_directory(&mut self, path: &str) -> Result<(), PathError> {
        self.directory(path, &parts(path)?).map(|_| ())
    }

    /// Adds a file with the given permission bits; its parents get mode 0755.
    ///
    /// # Errors
    /// The path is not absolute and plain, or taken.
    pub fn add_file(&mut self, path: &str, permissions: u32, content: Content) -> Result<(), PathError> {
        let parts = parts(path)?;
        let (name, parents) = parts.split_last().expect("a path has at least one part");
        let directory = self.directory(path, parents)?;
        if directory.contains_key(*name) {
            return Err(PathError::new(path, "it is there already"));
        }
        let mode = S_IFREG | (permissions & 0o777);
        directory.insert((*name).to_owned(), Node::File { mode, content });
        Ok(())
    }

    fn directory(&mut self, path: &str, parts: &[&str]) -> Result<&mut Directory, PathError> {
        let mut directory = &mut self.root;
        for name in parts {
            let node = directory
                .entry((*name).to_owned())
                .or_insert_with(|| Node::Directory(Directory::new()));
            let Node::Directory(next) = node else {
                return Err(PathError::new(path, "a part of it is a file"));
            };
            directory = next;
        }
        Ok(directory)
    }

    /// Writes the file system and its dm-verity tree into an empty file, reading each source once.
    ///
    /// The salt is a hash of `domain` and of the superblock, inodes and directories. A salt only has to keep
    /// one volume's hashes from being of use against another, and is public; a random one would make each
    /// build differ, one over the content would need a second pass over it.
    ///
    /// # Errors
    /// See [`WriteError`]. The file is then incomplete.
    pub fn write(&self, file: File, domain: &str) -> Result<(Sealed, Vec<Entry>), WriteError> {
        let plan = Plan::new(&self.root);
        let metadata = plan.metadata();
        let salt = Digest32::of_parts([b"cocoon-verity-salt-v1\0", domain.as_bytes(), b"\0", &metadata]);
        let mut volume = VerityWriter::new(file, plan.blocks, salt);
        volume.write_all(&metadata).map_err(WriteError::Volume)?;
        let mut entries = Vec::new();
        for inode in &plan.inodes {
            entries.push(Entry {
                path: inode.path.clone(),
                mode: inode.mode,
                bytes: inode.content.map_or(0, Content::bytes),
                sha256: match inode.content {
                    None => Digest32::of(b""),
                    Some(content) => copy(content, &mut volume)?,
                },
            });
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        let sealed = volume.finish().map_err(WriteError::Volume)?;
        Ok((sealed, entries))
    }
}

/// The names of an absolute path; at least one.
fn parts(path: &str) -> Result<Vec<&str>, PathError> {
    let Some(relative) = path.strip_prefix('/') else {
        return Err(PathError::new(path, "it is not absolute"));
    };
    for name in relative.split('/') {
        let reason = match name {
            "" | "." | ".." => "its parts have to be plain names",
            _ if name.contains('\0') => "it has a zero byte",
            _ if name.len() > NAME_BYTES_MAX => "a part of it is longer than 255 bytes",
            _ => continue,
        };
        return Err(PathError::new(path, reason));
    }
    Ok(relative.split('/').collect())
}

fn copy(content: &Content, volume: &mut VerityWriter) -> Result<Digest32, WriteError> {
    let mut hash = Sha256::new();
    match content {
        Content::Bytes(bytes) => {
            hash.update(bytes);
            volume.write_all(bytes).map_err(WriteError::Volume)?;
        }
        Content::File { path, bytes } => copy_file(path, *bytes, volume, &mut hash)?,
    }
    volume.pad().map_err(WriteError::Volume)?;
    Ok(Digest32(hash.finalize().into()))
}

fn copy_file(
    path: &Path,
    expected: u64,
    volume: &mut VerityWriter,
    hash: &mut Sha256,
) -> Result<(), WriteError> {
    let failed = |source| WriteError::Source {
        path: path.to_owned(),
        source,
    };
    // One byte more, so that a file that has grown is noticed.
    let mut file = File::open(path).map_err(failed)?.take(expected + 1);
    let mut buffer = vec![0; 1 << 20];
    let mut copied = 0;
    loop {
        let count = file.read(&mut buffer).map_err(failed)?;
        copied += count as u64;
        if copied > expected || (count == 0 && copied < expected) {
            return Err(WriteError::Changed {
                path: path.to_owned(),
                expected,
            });
        }
        if count == 0 {
            return Ok(());
        }
        hash.update(&buffer[..count]);
        volume.write_all(&buffer[..count]).map_err(WriteError::Volume)?;
    }
}

/// Where everything goes. Inodes are numbered in path order, parents first.
struct Plan<'tree> {
    inodes: Vec<Inode<'tree>>,
    /// Of the whole file system.
    blocks: u64,
}

struct Inode<'tree> {
    path: String,
    mode: u32,
    links: u32,
    start_block: u64,
    /// For a directory: its blocks.
    entries: Vec<u8>,
    /// For a file.
    content: Option<&'tree Content>,
}

impl Inode<'_> {
    fn bytes(&self) -> u64 {
        self.content.map_or(self.entries.len() as u64, Content::bytes)
    }
}

impl<'tree> Plan<'tree> {
    fn new(root: &'tree Directory) -> Self {
        let mut plan = Self {
            inodes: Vec::new(),
            blocks: 0,
        };
        plan.add_directory("/", root, 0);
        let inode_blocks = blocks((plan.inodes.len() * INODE_BYTES) as u64);
        let mut next = 1 + inode_blocks;
        // All directories before all files: they are written, and read, together.
        for directories in [true, false] {
            for inode in &mut plan.inodes {
                if inode.content.is_none() == directories {
                    inode.start_block = next;
                    next += blocks(inode.bytes());
                }
            }
        }
        plan.blocks = next;
        plan
    }

    /// Numbers a directory and all below it; returns its number.
    fn add_directory(&mut self, path: &str, directory: &'tree Directory, parent: usize) -> usize {
        let number = self.inodes.len();
        self.inodes.push(Inode {
            path: path.to_owned(),
            mode: DIRECTORY_MODE,
            links: 2,
            start_block: 0,
            entries: Vec::new(),
            content: None,
        });
        let mut entries = BTreeMap::from([(".", (number, TYPE_DIRECTORY)), ("..", (parent, TYPE_DIRECTORY))]);
        for (name, node) in directory {
            let path = format!("{}/{name}", path.trim_end_matches('/'));
            let entry = match node {
                Node::Directory(below) => {
                    self.inodes[number].links += 1;
                    (self.add_directory(&path, below, number), TYPE_DIRECTORY)
                }
                Node::File { mode, content } => {
                    self.inodes.push(Inode {
                        path,
                        mode: *mode,
                        links: 1,
                        start_block: 0,
                        entries: Vec::new(),
                        content: Some(content),
                    });
                    (self.inodes.len() - 1, TYPE_FILE)
                }
            };
            entries.insert(name, entry);
        }
        self.inodes[number].entries = directory_blocks(&entries);
        number
    }

    /// Superblock, inodes and directories, in whole blocks.
    fn metadata(&self) -> Vec<u8> {
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
fn inode_bytes(number: usize, inode: &Inode<'_>) -> [u8; INODE_BYTES] {
    let mut bytes = [0; INODE_BYTES];
    put(&mut bytes, 0, &FORMAT_EXTENDED.to_le_bytes());
    put(&mut bytes, 4, &(inode.mode as u16).to_le_bytes());
    put(&mut bytes, 8, &inode.bytes().to_le_bytes());
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
    u64::from(ROOT_NID) + (number * INODE_BYTES / NID_BYTES) as u64
}

fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES as u64)
}

/// Block numbers have 32 bits: 16 TiB, more than any disk this is written to.
fn low_block(block: u64) -> u32 {
    u32::try_from(block).expect("a volume under 16 TiB")
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    /// Content of every length that matters for padding, and a directory of several blocks.
    fn tree() -> Tree {
        let mut tree = Tree::default();
        tree.add_directory("/empty").unwrap();
        for length in [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 300_000] {
            let content = Content::Bytes((0..length).map(|at| (at % 251) as u8).collect());
            tree.add_file(&format!("/files/{length}"), 0o644, content)
                .unwrap();
        }
        for number in 0..400 {
            let path = format!("/many/a-rather-long-name-{number}");
            let content = Content::Bytes(path.clone().into_bytes());
            tree.add_file(&path, 0o755, content).unwrap();
        }
        tree
    }

    fn write(tree: &Tree, path: &Path) -> (Sealed, Vec<Entry>) {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .unwrap();
        tree.write(file, "test").unwrap()
    }

    #[test]
    fn fsck_extracts_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let (_, entries) = write(&tree(), &image);
        let out = dir.path().join("out");
        let Ok(output) = Command::new("fsck.erofs")
            .arg(format!("--extract={}", out.display()))
            .arg(&image)
            .output()
        else {
            eprintln!("SKIP: fsck.erofs (Debian: erofs-utils) is not installed");
            return;
        };
        assert!(output.status.success(), "{output:?}");
        for entry in &entries {
            let path = out.join(entry.path.trim_start_matches('/'));
            if entry.mode == DIRECTORY_MODE {
                assert!(path.is_dir(), "{}", entry.path);
            } else {
                assert_eq!(
                    Digest32::of(&fs::read(&path).unwrap()),
                    entry.sha256,
                    "{}",
                    entry.path
                );
            }
        }
        let count = fs::read_dir(out.join("many")).unwrap().count();
        assert_eq!((count, entries.len()), (400, 1 + 3 + 6 + 400));
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes_whatever_the_sources_are() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["b", "a", "c"];
        for (folder, reversed) in [("one", false), ("two", true)] {
            let folder = dir.path().join(folder);
            fs::create_dir(&folder).unwrap();
            let mut order = names;
            if reversed {
                order.reverse();
            }
            let mut tree = Tree::default();
            for name in order {
                let path = folder.join(name);
                fs::write(&path, name.repeat(5000)).unwrap();
                let file = File::options().write(true).open(&path).unwrap();
                let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
                if reversed {
                    file.set_times(times).unwrap();
                }
                let content = Content::of_file(&path).unwrap();
                tree.add_file(&format!("/dir/{name}"), 0o644, content).unwrap();
            }
            write(&tree, &folder.with_extension("img"));
        }
        let read = |name| fs::read(dir.path().join(name)).unwrap();
        assert!(read("one.img") == read("two.img"));
    }

    #[test]
    fn every_byte_of_content_reaches_the_root_hash_and_every_name_the_salt() {
        let seal = |name: &str, content: &[u8]| {
            let dir = tempfile::tempdir().unwrap();
            let mut tree = Tree::default();
            tree.add_file(name, 0o644, Content::Bytes(content.to_vec()))
                .unwrap();
            write(&tree, &dir.path().join("image")).0.verity
        };
        let (base, content, name) = (seal("/a", b"one"), seal("/a", b"two"), seal("/b", b"one"));
        assert_ne!(base.root_hash, content.root_hash);
        assert_eq!(base.salt, content.salt);
        assert_ne!(base.salt, name.salt);
    }

    #[test]
    fn bad_paths_are_refused() {
        let mut tree = Tree::default();
        let mut add = |path: &str| tree.add_file(path, 0o644, Content::Bytes(vec![]));
        for path in ["", "a", "/", "/a/", "//a", "/./a", "/a/../b", "/a\0b"] {
            assert!(add(path).is_err(), "{path:?}");
        }
        assert!(add(&format!("/{}", "x".repeat(256))).is_err());
        add("/a").unwrap();
        assert!(add("/a").is_err(), "twice");
        assert!(add("/a/b").is_err(), "below a file");
        assert!(tree.add_directory("/a").is_err(), "a directory over a file");
    }

    #[test]
    fn a_source_that_shrinks_grows_or_vanishes_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        fs::write(&source, "12345").unwrap();
        let mut tree = Tree::default();
        tree.add_file("/file", 0o644, Content::of_file(&source).unwrap())
            .unwrap();
        let attempt = || tree.write(tempfile::tempfile().unwrap(), "test").unwrap_err();
        for content in ["1234", "123456"] {
            fs::write(&source, content).unwrap();
            assert!(matches!(attempt(), WriteError::Changed { expected: 5, .. }));
        }
        fs::remove_file(&source).unwrap();
        assert!(matches!(attempt(), WriteError::Source { .. }));
        assert!(Content::of_file(dir.path()).is_err(), "a directory is no file");
    }

    #[test]
    fn a_full_disk_is_named_as_such() {
        let full = File::options().read(true).write(true).open("/dev/full").unwrap();
        let error = tree().write(full, "test").unwrap_err();
        let WriteError::Volume(source) = error else {
            panic!("{error}");
        };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    }
}
