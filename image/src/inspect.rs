//! Says what is in an image: every entry of the root, read out of the root itself.
//!
//! The manifest is somebody's claim. What is believed is its root hash, which the measured command line carries
//! and an auditor compares with what a guest has proved; every block is checked against it. The manifest's list
//! only adds where a file came from, and is compared with what is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use cocoon_evidence::Digest32;
use cocoon_measurements::{Artifact, DebianPackage, FileEntry, FileMode, Manifest, ManifestError};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::{
    erofs::{self, FormError, Inode},
    verity::{BLOCK_BYTES, VerityError, VerityReader},
};

const MANIFEST: &str = "manifest.json";

/// What an image consists of.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// That every block of the root matches.
    pub root_hash: Digest32,
    /// The files that QEMU is given.
    pub artifacts: Vec<InspectedArtifact>,
    /// Every entry of the root, ordered by path.
    pub files: Vec<InspectedFile>,
    /// Paths that the manifest lists and the root does not have.
    pub absent: Vec<String>,
}

/// A file beside the manifest.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct InspectedArtifact {
    /// Its name.
    pub file: String,
    /// Length by the manifest.
    pub bytes: u64,
    /// By the manifest.
    pub sha256: Digest32,
    /// What is wrong with the file; none if it is the one of the manifest.
    pub problem: Option<String>,
}

/// An entry of the root.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct InspectedFile {
    /// Absolute path in the guest.
    pub path: String,
    /// Type and permissions.
    pub mode: FileMode,
    /// Length of the content, 0 for a directory.
    pub bytes: u64,
    /// Of the content, of nothing for a directory.
    pub sha256: Digest32,
    /// Where it is from, by the manifest; none if the manifest does not list it as it is.
    pub source: Option<String>,
    /// The Debian package that it is from, likewise.
    pub package: Option<DebianPackage>,
}

/// Why an image cannot be inspected.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The manifest.
    #[error("there is no usable image in {}", folder.display())]
    Manifest {
        /// Of the image.
        folder: PathBuf,
        /// Why.
        source: Box<ManifestError>,
    },
    /// The root's bytes.
    #[error("the root cannot be read by its root hash")]
    Volume(#[from] VerityError),
    /// What the bytes say.
    #[error("the root holds no file system of cocoon-image's")]
    Form(#[from] FormError),
    /// Bytes behind the end of a file.
    #[error("the last block of {path:?} holds something behind the file's end")]
    Hidden {
        /// The file.
        path: String,
    },
}

impl InspectError {
    /// Whether the root is not what it has to be, as opposed to one that could not be looked at.
    pub fn is_forgery(&self) -> bool {
        match self {
            Self::Manifest { .. } => false,
            Self::Volume(error) | Self::Form(FormError::Volume(error)) => {
                !matches!(error, VerityError::Read { .. })
            }
            Self::Form(_) | Self::Hidden { .. } => true,
        }
    }
}

impl Inspection {
    /// Whether image and manifest are the same.
    pub fn is_as_listed(&self) -> bool {
        let listed = self.files.iter().all(|file| file.source.is_some());
        let whole = self.artifacts.iter().all(|artifact| artifact.problem.is_none());
        listed && whole && self.absent.is_empty()
    }
}

/// Reads the whole image in `folder`.
///
/// # Errors
/// See [`InspectError`]. That manifest and image disagree is no error: see [`Inspection::is_as_listed`].
pub fn inspect(folder: &Path) -> Result<Inspection, InspectError> {
    let path = folder.join(MANIFEST);
    let manifest = Manifest::load(&path).map_err(|source| InspectError::Manifest {
        folder: folder.to_owned(),
        source: Box::new(source),
    })?;
    let root = Manifest::artifact_path(&path, &manifest.artifacts.root);
    let mut volume = VerityReader::open(&root, manifest.root_verity.clone())?;
    let data_blocks = manifest.root_verity.data_blocks;
    let layout = erofs::read(data_blocks, &mut |number| volume.block(number))?;

    let listed: BTreeMap<_, _> = manifest
        .files
        .iter()
        .map(|entry| (entry.path.as_str(), entry))
        .collect();
    let mut files = Vec::new();
    for inode in &layout.inodes {
        let entry = listed.get(inode.path.as_str());
        files.push(file(inode, entry.copied(), &mut volume)?);
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let found: BTreeSet<_> = files.iter().map(|file| file.path.as_str()).collect();
    let absent = listed.keys().filter(|path| !found.contains(*path));
    Ok(Inspection {
        root_hash: manifest.root_verity.root_hash,
        absent: absent.map(|path| (*path).to_owned()).collect(),
        artifacts: manifest
            .artifacts
            .named()
            .map(|(name, artifact)| inspected(name, artifact, &path))
            .collect(),
        files,
    })
}

fn inspected(name: &'static str, artifact: &Artifact, manifest: &Path) -> InspectedArtifact {
    let verified = artifact.verify(name, &Manifest::artifact_path(manifest, artifact));
    InspectedArtifact {
        file: artifact.file.clone(),
        bytes: artifact.bytes,
        sha256: artifact.sha256,
        problem: verified.err().map(|error| error.to_string()),
    }
}

fn file(
    inode: &Inode,
    listed: Option<&FileEntry>,
    volume: &mut VerityReader,
) -> Result<InspectedFile, InspectError> {
    let (bytes, sha256) = match inode.file {
        None => (0, Digest32::of(b"")),
        Some(_) => (inode.bytes, content(inode, volume)?),
    };
    let mode = FileMode(inode.mode);
    let same = |entry: &&FileEntry| (entry.mode, entry.bytes, entry.sha256) == (mode, bytes, sha256);
    let listed = listed.filter(same);
    Ok(InspectedFile {
        path: inode.path.clone(),
        mode,
        bytes,
        sha256,
        source: listed.map(|entry| entry.source.clone()),
        package: listed.and_then(|entry| entry.package.clone()),
    })
}

/// Hashes a file, and refuses what the rest of its last block may hold.
fn content(inode: &Inode, volume: &mut VerityReader) -> Result<Digest32, InspectError> {
    let mut hash = Sha256::new();
    let mut left = inode.bytes;
    let mut number = inode.start_block;
    while left > 0 {
        let block = volume.block(number)?;
        let used = left.min(BLOCK_BYTES as u64) as usize;
        hash.update(&block[..used]);
        if block[used..].iter().any(|byte| *byte != 0) {
            return Err(InspectError::Hidden {
                path: inode.path.clone(),
            });
        }
        left -= used as u64;
        number += 1;
    }
    Ok(Digest32(hash.finalize().into()))
}

#[cfg(test)]
mod tests;
