//! The image's manifest: which files it consists of, what they hash to and what they were made from.
//!
//! `cocoon-image build` writes it, `cocoon-measure predict` and the launcher read it. It is not signed and
//! proves nothing: whoever uses an artifact checks its hash here, and an auditor rebuilds the image.
//!
//! Versions: a key that no reader has to know to use the image safely is added as an optional one, and manifests
//! without it stay readable; a reader that does not know it refuses the manifest, as it refuses every unknown key.
//! Anything else raises [`Manifest::version`].

mod artifact;
mod entry;
mod origin;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use cocoon_evidence::Digest32;
use serde::{Deserialize, Serialize};

pub use self::{
    artifact::{Artifact, Artifacts},
    entry::{DebianPackage, FileEntry, FileMode},
    origin::{Commit, ExpectedLaunch, Origin, RegisterName},
};

/// A longer manifest is refused: a root file system of 20,000 files needs about 5 MiB.
pub const MANIFEST_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The launcher attaches the root first.
const ROOT_DEVICE: &str = "/dev/vda";

/// A longer kernel command line is refused by Linux on x86 (COMMAND_LINE_SIZE, with its NUL).
pub const COMMAND_LINE_BYTES_MAX: usize = 2047;

const VERSION: u32 = 1;

/// `manifest.json` of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// 1.
    pub version: u32,
    /// Which image.
    pub profile: ImageProfile,
    /// The kernel command line, whole, as QEMU is given it. It carries the root hash.
    pub command_line: String,
    /// What QEMU boots.
    pub artifacts: Artifacts,
    /// How the kernel verifies the root file system.
    pub root_verity: VerityTree,
    /// What the image was made from: name to SHA-256.
    pub inputs: BTreeMap<String, Digest32>,
    /// SHA-256 over all inputs, as the builder defines it: equal inputs give an equal image.
    pub input_digest: Digest32,
    /// The source; absent from manifests of older builders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// What the image measures to on the machines of `measurements/profiles`; empty if it boots on none of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected: Vec<ExpectedLaunch>,
    /// Every entry of the root file system, ordered by path.
    pub files: Vec<FileEntry>,
}

/// Which of the images a manifest describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageProfile {
    /// Has a console and the agent's half of the simulated platform; never for other people's prompts.
    Dev,
    /// Inference on the CPU.
    Cpu,
    /// Inference on a passed-through GPU.
    Gpu,
}

/// dm-verity parameters of a volume whose hash tree lies behind its data on the same disk (format 1,
/// SHA-256, data and hash blocks of 4096 bytes, no superblock).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerityTree {
    /// Length of the data in blocks of 4096 bytes; the hash tree starts at this block.
    pub data_blocks: u64,
    /// Hashed before every block.
    pub salt: Digest32,
    /// The root hash.
    pub root_hash: Digest32,
}

impl VerityTree {
    /// The device-mapper target parameters for this volume on `device` (kernel documentation,
    /// admin-guide/device-mapper/verity.rst).
    pub fn table(&self, device: &str) -> String {
        let Self {
            data_blocks,
            salt,
            root_hash,
        } = self;
        format!("1 {device} {device} 4096 4096 {data_blocks} {data_blocks} sha256 {root_hash} {salt}")
    }
}

/// Why a manifest or an artifact cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file system refused.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Over [`MANIFEST_BYTES_MAX`].
    #[error("{} is longer than {MANIFEST_BYTES_MAX} bytes: this is no manifest", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
    /// Not the JSON of [`Manifest`].
    #[error("{} is not a manifest of this version of cocoon-image", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A value that contradicts itself or another.
    #[error("the manifest's {field} {problem}")]
    Value {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// An artifact is not the one that the manifest names.
    #[error(
        "{} is not the {name} of the manifest: it has {found_bytes} bytes with SHA-256 {found}, the manifest \
         says {expected_bytes} bytes with {expected}; build the image again or use the manifest that \
         belongs to this file",
        path.display()
    )]
    Mismatch {
        /// Which artifact.
        name: &'static str,
        /// Where it lies.
        path: PathBuf,
        /// Its length.
        found_bytes: u64,
        /// Its hash.
        found: Digest32,
        /// The manifest's length.
        expected_bytes: u64,
        /// The manifest's hash.
        expected: Digest32,
    },
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn load(path: &Path) -> Result<Self, ManifestError> {
        let read = |source| ManifestError::Read {
            path: path.to_owned(),
            source,
        };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(read)?;
        file.take(MANIFEST_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(read)?;
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge {
                path: path.to_owned(),
            });
        }
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|source| ManifestError::Malformed {
            path: path.to_owned(),
            source,
        })?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Checks what the types do not: version, command line and file names.
    ///
    /// # Errors
    /// [`ManifestError::Value`] names the field.
    pub fn check(&self) -> Result<(), ManifestError> {
        let refuse = |field, problem: String| Err(ManifestError::Value { field, problem });
        if self.version != VERSION {
            return refuse(
                "version",
                format!("is {}, this program reads {VERSION}", self.version),
            );
        }
        let line = &self.command_line;
        if line.len() > COMMAND_LINE_BYTES_MAX || line.bytes().any(|byte| !(b' '..=b'~').contains(&byte)) {
            return refuse(
                "command_line",
                format!("has to be printable ASCII of at most {COMMAND_LINE_BYTES_MAX} bytes"),
            );
        }
        // One device-mapper table, and it is the root's: a second one could name the honest hash for show.
        let table = format!(" verity {} ", self.root_verity.table(ROOT_DEVICE));
        if line.matches("dm-mod.create=").count() != 1 || !line.contains(&table) {
            return refuse(
                "command_line",
                format!("has to create one device-mapper device, with the table{table}of root_verity"),
            );
        }
        for (name, artifact) in self.artifacts.named() {
            let file = &artifact.file;
            // It is printed, too: a terminal must not be told what to do.
            let plain = file.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
            if file.is_empty() || file.starts_with('.') || !plain {
                return refuse(
                    name,
                    format!("file {file:?} has to be a plain file name in the manifest's folder"),
                );
            }
        }
        self.origin.as_ref().map_or(Ok(()), Origin::check)?;
        origin::check_launches(&self.expected)
    }

    /// Where an artifact lies, for a manifest read from `manifest_path`.
    pub fn artifact_path(manifest_path: &Path, artifact: &Artifact) -> PathBuf {
        manifest_path.with_file_name(&artifact.file)
    }
}

#[cfg(test)]
mod tests;
