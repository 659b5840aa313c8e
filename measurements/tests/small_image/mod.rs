//! The smallest image that a manifest can describe.

#![allow(dead_code, reason = "each test binary uses another part")]
#![allow(clippy::unwrap_used, reason = "a test's scaffolding fails the test")]

use std::{fs, path::Path};

use cocoon_evidence::Digest32;
use cocoon_measurements::{Artifact, Artifacts, ImageProfile, Manifest, VerityTree};

/// A PE32+ image with headers and 64 trailing bytes.
pub(crate) fn kernel() -> Vec<u8> {
    let mut image = vec![0; 0x240];
    for (at, bytes) in [
        (0, b"MZ".as_slice()),
        (0x3c, &[0x40]),
        (0x40, b"PE\0\0"),
        (0x54, &[240]),
        (0x58, &[0x0b, 0x02]),
        (0x58 + 60, &[0, 2]),
        (0x58 + 108, &[16]),
    ] {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }
    image
}

/// A manifest about a root of so many blocks, and about what `artifact` says of each file.
pub(crate) fn manifest(data_blocks: u64, artifact: impl Fn(&str) -> Artifact) -> Manifest {
    let root_verity = VerityTree {
        data_blocks,
        salt: Digest32::ZERO,
        root_hash: Digest32::of(b"root"),
    };
    Manifest {
        version: 1,
        profile: ImageProfile::Dev,
        command_line: format!(
            "ro dm-mod.create=\"root,,0,ro,0 8 verity {} 1 panic_on_corruption\"",
            root_verity.table("/dev/vda")
        ),
        artifacts: Artifacts {
            firmware: artifact("firmware.fd"),
            firmware_snp: None,
            kernel: artifact("kernel"),
            root: artifact("root.img"),
        },
        root_verity,
        inputs: [].into(),
        input_digest: Digest32::ZERO,
        origin: None,
        expected: vec![],
        files: vec![],
    }
}

/// Writes the files of an image, and a manifest that describes them.
pub(crate) fn write(folder: &Path, firmware: &[u8], kernel: &[u8]) {
    let path = |name: &str| folder.join(name);
    fs::write(path("firmware.fd"), firmware).unwrap();
    fs::write(path("kernel"), kernel).unwrap();
    fs::write(path("root.img"), vec![7; 8192]).unwrap();
    let manifest = manifest(1, |name| Artifact::of_file(&path(name)).unwrap());
    fs::write(path("manifest.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
}
