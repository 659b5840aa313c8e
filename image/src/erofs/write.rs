//! Writes a file system and its dm-verity tree, reading each source once.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    thread,
};

use cocoon_evidence::Digest32;
use cocoon_measurements::VerityTree;
use sha2::{Digest as _, Sha256};

use super::{Entry, Inode, Layout, Names, PathError};
use crate::verity::{BLOCK_BYTES, Sealed, VerityWriter, volume_bytes};

const BUFFER_BYTES: usize = 256 * 1024;

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
    names: Names,
    /// In the order in which the files were added.
    contents: Vec<Content>,
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
    /// A source file cannot be copied: it cannot be read, or the volume not be written.
    #[error("cannot copy {} into the volume; is there enough space?", path.display())]
    Copy {
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

    /// Its length.
    pub fn bytes(&self) -> u64 {
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
        self.names.add_directory(path)
    }

    /// Adds a file with the given permission bits; its parents get mode 0755.
    ///
    /// # Errors
    /// The path is not absolute and plain, or taken.
    pub fn add_file(&mut self, path: &str, permissions: u32, content: Content) -> Result<(), PathError> {
        self.names.add_file(path, permissions, content.bytes())?;
        self.contents.push(content);
        Ok(())
    }

    /// Writes the file system and its dm-verity tree into an empty file, then reads it for the hash of the whole and
    /// of each entry.
    ///
    /// # Errors
    /// See [`WriteError`]. The file is then incomplete.
    pub fn write(&self, file: File, domain: &str) -> Result<(Sealed, Vec<Entry>), WriteError> {
        let written = file.try_clone().map_err(WriteError::Volume)?;
        let verity = self.seal(file, domain)?;
        let bytes = volume_bytes(verity.data_blocks);
        let inodes = Layout::new(&self.names).inodes;
        let (whole, entries) = thread::scope(|scope| {
            let whole = scope.spawn(|| hash_part(&written, 0, bytes));
            let entries = inodes.iter().map(|inode| entry(inode, &written));
            let entries = entries.collect::<io::Result<Vec<_>>>();
            (whole.join().expect("hashing does not panic"), entries)
        });
        let sha256 = whole.map_err(WriteError::Volume)?;
        let mut entries = entries.map_err(WriteError::Volume)?;
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok((
            Sealed {
                verity,
                bytes,
                sha256,
            },
            entries,
        ))
    }

    /// Writes the file system and its dm-verity tree into an empty file, reading each source once, if the kernel does
    /// not share its blocks with the volume.
    ///
    /// The salt is a hash of `domain` and of the superblock, inodes and directories. A salt only has to keep
    /// one volume's hashes from being of use against another, and is public; a random one would make each
    /// build differ, one over the content would need a second pass over it.
    ///
    /// # Errors
    /// See [`WriteError`]. The file is then incomplete.
    pub fn seal(&self, file: File, domain: &str) -> Result<VerityTree, WriteError> {
        let layout = Layout::new(&self.names);
        let metadata = layout.metadata();
        let salt = Digest32::of_parts([b"cocoon-verity-salt-v1\0", domain.as_bytes(), b"\0", &metadata]);
        let mut volume = VerityWriter::new(file, layout.blocks, salt);
        volume.write_all(&metadata).map_err(WriteError::Volume)?;
        for number in layout.inodes.iter().filter_map(|inode| inode.file) {
            match &self.contents[number] {
                Content::Bytes(bytes) => volume.write_all(bytes).map_err(WriteError::Volume)?,
                Content::File { path, bytes } => copy_file(path, *bytes, &mut volume)?,
            }
            volume.pad().map_err(WriteError::Volume)?;
        }
        volume.finish().map_err(WriteError::Volume)
    }
}

fn copy_file(path: &Path, expected: u64, volume: &mut VerityWriter) -> Result<(), WriteError> {
    let source = |source| WriteError::Source {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(source)?;
    let copied = volume.copy(&file, expected).map_err(|source| WriteError::Copy {
        path: path.to_owned(),
        source,
    })?;
    // One byte more is a file that has grown.
    if copied < expected || file.read(&mut [0]).map_err(source)? > 0 {
        return Err(WriteError::Changed {
            path: path.to_owned(),
            expected,
        });
    }
    Ok(())
}

fn entry(inode: &Inode, volume: &File) -> io::Result<Entry> {
    let bytes = inode.file.map_or(0, |_| inode.bytes);
    Ok(Entry {
        path: inode.path.clone(),
        mode: inode.mode,
        bytes,
        sha256: hash_part(volume, inode.start_block * BLOCK_BYTES as u64, bytes)?,
    })
}

fn hash_part(file: &File, start: u64, bytes: u64) -> io::Result<Digest32> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let end = start + bytes;
    for at in (start..end).step_by(BUFFER_BYTES) {
        let used = (end - at).min(BUFFER_BYTES as u64) as usize;
        file.read_exact_at(&mut buffer[..used], at)?;
        hash.update(&buffer[..used]);
    }
    Ok(Digest32(hash.finalize().into()))
}
