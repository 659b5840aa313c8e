//! The files beside a manifest, which QEMU is given, and whether a file is the one that the manifest means.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use cocoon_evidence::Digest32;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::ManifestError;
use crate::spec::LaunchPlatform;

/// A longer artifact is not read into memory; firmware and kernel are shorter, the root file system is hashed
/// in pieces.
const ARTIFACT_READ_BYTES_MAX: u64 = 512 * 1024 * 1024;

const FIRMWARE: &str = "firmware";
const FIRMWARE_SNP: &str = "firmware_snp";

/// The files that QEMU is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifacts {
    /// UEFI firmware: code and variables in one file.
    pub firmware: Artifact,
    /// Firmware for AMD SEV-SNP, where `firmware` is for TDX; absent from images that boot on one kind of machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware_snp: Option<Artifact>,
    /// A Linux bzImage with EFI stub.
    pub kernel: Artifact,
    /// The root file system with its dm-verity tree behind it.
    pub root: Artifact,
}

/// One file beside the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// Its name, in the manifest's own folder.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Of the whole file.
    pub sha256: Digest32,
}

impl Artifacts {
    /// Each artifact with its name in the manifest.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &Artifact)> {
        let firmware_snp = self.firmware_snp.iter().map(|artifact| (FIRMWARE_SNP, artifact));
        [(FIRMWARE, &self.firmware)]
            .into_iter()
            .chain(firmware_snp)
            .chain([("kernel", &self.kernel), ("root", &self.root)])
    }

    /// What a platform boots, with its name in the manifest.
    pub fn firmware_for(&self, platform: LaunchPlatform) -> (&'static str, &Artifact) {
        match (platform, &self.firmware_snp) {
            (LaunchPlatform::Snp, Some(firmware)) => (FIRMWARE_SNP, firmware),
            _ => (FIRMWARE, &self.firmware),
        }
    }
}

impl Artifact {
    /// Describes the file at `path`, for a manifest in the same folder.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        let (bytes, sha256) = hash_file(path)?;
        let file = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a UTF-8 file name"))?;
        Ok(Self {
            file: file.to_owned(),
            bytes,
            sha256,
        })
    }

    /// Reads the file at `path` whole, if it is this artifact; `name` is for the error.
    ///
    /// # Errors
    /// [`ManifestError::Read`] or [`ManifestError::Mismatch`].
    pub fn read(&self, name: &'static str, path: &Path) -> Result<Vec<u8>, ManifestError> {
        let read = |source| ManifestError::Read {
            path: path.to_owned(),
            source,
        };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(read)?;
        file.take(self.bytes.min(ARTIFACT_READ_BYTES_MAX) + 1)
            .read_to_end(&mut bytes)
            .map_err(read)?;
        self.compare(name, path, bytes.len() as u64, Digest32::of(&bytes))?;
        Ok(bytes)
    }

    /// Hashes the file at `path` without keeping it, and compares; `name` is for the error.
    ///
    /// # Errors
    /// [`ManifestError::Read`] or [`ManifestError::Mismatch`].
    pub fn verify(&self, name: &'static str, path: &Path) -> Result<(), ManifestError> {
        let (bytes, sha256) = hash_file(path).map_err(|source| ManifestError::Read {
            path: path.to_owned(),
            source,
        })?;
        self.compare(name, path, bytes, sha256)
    }

    fn compare(
        &self,
        name: &'static str,
        path: &Path,
        bytes: u64,
        sha256: Digest32,
    ) -> Result<(), ManifestError> {
        if (bytes, sha256) == (self.bytes, self.sha256) {
            return Ok(());
        }
        Err(ManifestError::Mismatch {
            name,
            path: path.to_owned(),
            found_bytes: bytes,
            found: sha256,
            expected_bytes: self.bytes,
            expected: self.sha256,
        })
    }
}

fn hash_file(path: &Path) -> io::Result<(u64, Digest32)> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let bytes = io::copy(&mut file, &mut hash)?;
    Ok((bytes, Digest32(hash.finalize().into())))
}
