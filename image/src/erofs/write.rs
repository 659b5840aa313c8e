//! Writes a file system and its dm-verity tree, reading each source once.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use cocoon_evidence::Digest32;
use sha2::{Digest as _, Sha256};

use super::{Entry, Layout, Names, PathError};
use crate::verity::{Sealed, VerityWriter};

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

    /// Writes the file system and its dm-verity tree into an empty file, reading each source once.
    ///
    /// The salt is a hash of `domain` and of the superblock, inodes and directories. A salt only has to keep
    /// one volume's hashes from being of use against another, and is public; a random one would make each
    /// build differ, one over the content would need a second pass over it.
    ///
    /// # Errors
    /// See [`WriteError`]. The file is then incomplete.
    pub fn write(&self, file: File, domain: &str) -> Result<(Sealed, Vec<Entry>), WriteError> {
        let layout = Layout::new(&self.names);
        let metadata = layout.metadata();
        let salt = Digest32::of_parts([b"cocoon-verity-salt-v1\0", domain.as_bytes(), b"\0", &metadata]);
        let mut volume = VerityWriter::new(file, layout.blocks, salt);
        volume.write_all(&metadata).map_err(WriteError::Volume)?;
        let mut entries = Vec::new();
        for inode in &layout.inodes {
            let content = inode.file.map(|number| &self.contents[number]);
            entries.push(Entry {
                path: inode.path.clone(),
                mode: inode.mode,
                bytes: content.map_or(0, Content::bytes),
                sha256: match content {
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
