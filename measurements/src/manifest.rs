//! The image's manifest: which files it consists of, what they hash to and what they were made from.
//!
//! `cocoon-image build` writes it, `cocoon-measure predict` and the launcher read it. It is not signed and
//! proves nothing: whoever uses an artifact checks its hash here, and an auditor rebuilds the image.
//!
//! Versions: a key that no reader has to know to use the image safely is added as an optional one, and manifests
//! without it stay readable; a reader that does not know it refuses the manifest, as it refuses every unknown key.
//! Anything else raises [`Manifest::version`].

mod origin;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use cocoon_evidence::Digest32;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};

use crate::spec::LaunchPlatform;

pub use self::origin::{Commit, ExpectedLaunch, Origin, RegisterName};

/// A longer manifest is refused: a root file system of 20,000 files needs about 5 MiB.
pub const MANIFEST_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The launcher attaches the root first.
const ROOT_DEVICE: &str = "/dev/vda";

/// A longer kernel command line is refused by Linux on x86 (COMMAND_LINE_SIZE, with its NUL).
pub const COMMAND_LINE_BYTES_MAX: usize = 2047;

/// A longer artifact is not read into memory; firmware and kernel are shorter, the root file system is hashed
/// in pieces.
const ARTIFACT_READ_BYTES_MAX: u64 = 512 * 1024 * 1024;

const VERSION: u32 = 1;
const FIRMWARE: &str = "firmware";
const FIRMWARE_SNP: &str = "firmware_snp";

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

/// One entry of the root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Absolute path in the guest.
    pub path: String,
    /// Type and permissions.
    pub mode: FileMode,
    /// Length of the content; of the target for a symbolic link; 0 for other types.
    pub bytes: u64,
    /// Of the content; of the target for a symbolic link; of nothing for other types.
    pub sha256: Digest32,
    /// Which input it came from.
    pub source: String,
}

/// `st_mode` of a file: type and permissions, in JSON as six octal digits, like git's tree entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMode(pub u32);

impl Serialize for FileMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:06o}", self.0))
    }
}

impl<'de> Deserialize<'de> for FileMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let octal = text.len() == 6 && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        match u32::from_str_radix(&text, 8) {
            Ok(mode) if octal => Ok(Self(mode)),
            _ => Err(de::Error::custom(format!(
                "mode {text:?} has to be six octal digits"
            ))),
        }
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
            if file.is_empty() || file.starts_with('.') || file.contains(['/', '\0']) {
                return refuse(
                    name,
                    format!("file {file:?} has to be a file name in the manifest's folder"),
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

#[cfg(test)]
mod tests {
    use cocoon_evidence::Digest48;

    use super::*;

    fn manifest() -> Manifest {
        let root_verity = VerityTree {
            data_blocks: 1,
            salt: Digest32::ZERO,
            root_hash: Digest32::of(b"root"),
        };
        let artifact = |file: &str| Artifact {
            file: file.into(),
            bytes: 5,
            sha256: Digest32::of(b"bytes"),
        };
        Manifest {
            version: 1,
            profile: ImageProfile::Dev,
            command_line: format!(
                "ro dm-mod.create=\"root,,0,ro,0 8 verity {} 1 panic_on_corruption\"",
                root_verity.table(ROOT_DEVICE)
            ),
            artifacts: Artifacts {
                firmware: artifact("firmware.fd"),
                firmware_snp: None,
                kernel: artifact("kernel"),
                root: artifact("root.img"),
            },
            root_verity,
            inputs: BTreeMap::from([("linux-source".into(), Digest32::of(b"linux"))]),
            input_digest: Digest32::of(b"inputs"),
            origin: Some(Origin {
                image_lock: Digest32::of(b"image.lock"),
                cargo_lock: Digest32::of(b"Cargo.lock"),
                commit: Some(Commit {
                    id: "c".repeat(40),
                    clean: true,
                }),
                builder_root: None,
            }),
            expected: vec![ExpectedLaunch {
                launch_spec: "4vcpu-16gib".into(),
                launch_spec_sha256: Digest32::of(b"spec"),
                registers: BTreeMap::from([(RegisterName::Mrtd, vec![Digest48::of(b"mrtd")])]),
            }],
            files: vec![FileEntry {
                path: "/sbin/init".into(),
                mode: FileMode(0o100755),
                bytes: 1,
                sha256: Digest32::of(b"i"),
                source: "cocoon-agent".into(),
            }],
        }
    }

    fn load(text: &str) -> Result<Manifest, ManifestError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("manifest.json");
        std::fs::write(&path, text).unwrap();
        Manifest::load(&path)
    }

    #[test]
    fn round_trips_with_readable_modes() {
        let text = serde_json::to_string(&manifest()).unwrap();
        assert!(text.contains(r#""mode":"100755""#));
        assert_eq!(load(&text).unwrap(), manifest());
    }

    #[test]
    fn a_manifest_of_an_older_builder_is_read() {
        let mut value = serde_json::to_value(manifest()).unwrap();
        for key in ["origin", "expected"] {
            value.as_object_mut().unwrap().remove(key).unwrap();
        }
        let old = load(&value.to_string()).unwrap();
        assert_eq!((old.origin, old.expected), (None, vec![]));
        assert_eq!(old.artifacts, manifest().artifacts);
    }

    #[test]
    fn a_hostile_origin_or_expectation_is_refused() {
        let check = |change: &dyn Fn(&mut Manifest), says: &str| {
            let mut manifest = manifest();
            change(&mut manifest);
            let error = load(&serde_json::to_string(&manifest).unwrap()).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        };
        for id in ["", "C", &"C".repeat(40), &"c".repeat(41), &"c".repeat(1 << 20)] {
            let commit = Commit {
                id: id.into(),
                clean: true,
            };
            let says = "40 or 64 hexadecimal digits";
            check(
                &|m| m.origin.as_mut().unwrap().commit = Some(commit.clone()),
                says,
            );
        }
        for name in ["", "../launch", "a b", "\u{1b}[2J", &"x".repeat(65)] {
            check(&|m| m.expected[0].launch_spec = name.into(), "no plain name");
        }
        let many = |m: &mut Manifest| {
            let launch = m.expected[0].clone();
            let numbered = |number: usize| ExpectedLaunch {
                launch_spec: number.to_string(),
                ..launch.clone()
            };
            m.expected = (0..65).map(numbered).collect();
        };
        check(&many, "more than 64");
        check(&|m| m.expected.push(m.expected[0].clone()), "launch_spec twice");
        for count in [0, 9] {
            let values = vec![Digest48::ZERO; count];
            check(
                &|m| m.expected[0].registers = BTreeMap::from([(RegisterName::Rtmr1, values.clone())]),
                "no value or more than 8",
            );
        }
        let text = serde_json::to_string(&manifest()).unwrap();
        for text in [
            text.replace("\"mrtd\"", "\"pcr0\""),
            text.replace("\"clean\"", "\"dirty\""),
        ] {
            assert!(
                matches!(load(&text), Err(ManifestError::Malformed { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn contradictions_are_named() {
        let check = |change: fn(&mut Manifest), says: &str| {
            let mut manifest = manifest();
            change(&mut manifest);
            let error = load(&serde_json::to_string(&manifest).unwrap()).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        };
        check(|m| m.version = 2, "version is 2");
        let says = "has to create one device-mapper device";
        check(|m| m.command_line = "ro".into(), says);
        check(|m| m.root_verity.salt = Digest32::of(b"salt"), says);
        // The honest table stands there for show; the kernel would make the other device as well.
        check(
            |m| m.command_line += " dm-mod.create=\"evil,,0,ro,0 8 linear /dev/vda 0\"",
            says,
        );
        check(|m| m.command_line.push('\n'), "printable ASCII");
        check(|m| m.command_line = "x".repeat(2048), "at most 2047 bytes");
    }

    #[test]
    fn each_platform_boots_its_own_firmware_and_none_from_outside_the_folder() {
        let mut manifest = manifest();
        let snp = |manifest: &Manifest| {
            let (_, firmware) = manifest.artifacts.firmware_for(LaunchPlatform::Snp);
            firmware.file.clone()
        };
        assert_eq!(snp(&manifest), "firmware.fd", "an image with one firmware");
        let mut firmware_snp = manifest.artifacts.firmware.clone();
        firmware_snp.file = "firmware-snp.fd".into();
        manifest.artifacts.firmware_snp = Some(firmware_snp);
        let read = load(&serde_json::to_string(&manifest).unwrap()).unwrap();
        assert_eq!(snp(&read), "firmware-snp.fd");
        let (name, firmware) = read.artifacts.firmware_for(LaunchPlatform::Tdx);
        assert_eq!((name, firmware.file.as_str()), ("firmware", "firmware.fd"));
        manifest.artifacts.firmware_snp.as_mut().unwrap().file = "../firmware.fd".into();
        let error = manifest.check().unwrap_err().to_string();
        assert!(error.contains("firmware_snp"), "{error}");
    }

    #[test]
    fn an_artifact_outside_the_folder_is_refused() {
        for file in ["/etc/passwd", "../kernel", "..", "", "sub/kernel", ".hidden"] {
            let mut manifest = manifest();
            manifest.artifacts.kernel.file = file.into();
            assert!(
                matches!(
                    manifest.check(),
                    Err(ManifestError::Value { field: "kernel", .. })
                ),
                "{file:?}"
            );
        }
    }

    #[test]
    fn unknown_keys_bad_modes_and_giants_are_refused() {
        let text = serde_json::to_string(&manifest()).unwrap();
        let unknown = text.replacen('{', r#"{"extra":1,"#, 1);
        for text in [
            unknown,
            text.replace("100755", "0755"),
            text.replace("100755", "+00755"),
        ] {
            assert!(
                matches!(load(&text), Err(ManifestError::Malformed { .. })),
                "{text}"
            );
        }
        let giant = " ".repeat(MANIFEST_BYTES_MAX as usize + 1);
        assert!(matches!(load(&giant), Err(ManifestError::TooLarge { .. })));
    }

    #[test]
    fn another_artifact_is_told_with_both_hashes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        let kernel = manifest().artifacts.kernel;
        std::fs::write(&path, "bytes").unwrap();
        assert_eq!(kernel.read("kernel", &path).unwrap(), b"bytes");
        assert_eq!(Artifact::of_file(&path).unwrap(), kernel);
        for tampered in ["bytez", "bytes and more", ""] {
            std::fs::write(&path, tampered).unwrap();
            for error in [
                kernel.read("kernel", &path).unwrap_err(),
                kernel.verify("kernel", &path).unwrap_err(),
            ] {
                let text = error.to_string();
                assert!(text.contains("is not the kernel of the manifest"), "{text}");
                assert!(text.contains(&kernel.sha256.to_string()), "{text}");
            }
        }
    }
}
