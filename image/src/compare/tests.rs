//! What differs between two small images is named by file, place and field.

use std::{collections::BTreeMap, fs, os::unix::fs::FileExt as _};

use cocoon_evidence::Digest32;
use cocoon_measurements::{Artifact, Artifacts, Commit, ExpectedLaunch, FileMode, ImageProfile, Origin};
use tempfile::TempDir;

use super::*;
use crate::erofs::{Content, Tree};

/// A whole small image: firmware, kernel, and a root with these files.
pub(crate) fn image(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    fs::write(place("firmware.fd"), [7; 5000]).unwrap();
    fs::write(place("kernel"), [8; 5000]).unwrap();
    let mut tree = Tree::default();
    tree.add_directory("/dev").unwrap();
    for (path, content) in files {
        tree.add_file(path, 0o755, Content::Bytes(content.to_vec()))
            .unwrap();
    }
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(place("root.img"))
        .unwrap();
    let (sealed, entries) = tree.write(file, "root").unwrap();
    let artifact = |name: &str| Artifact::of_file(&place(name)).unwrap();
    let manifest = Manifest {
        version: 1,
        profile: ImageProfile::Cpu,
        command_line: format!(
            "dm-mod.create=\"root,,0,ro,0 8 verity {} 0\"",
            sealed.verity.table("/dev/vda")
        ),
        artifacts: Artifacts {
            firmware: artifact("firmware.fd"),
            firmware_snp: None,
            kernel: artifact("kernel"),
            root: artifact("root.img"),
        },
        root_verity: sealed.verity,
        inputs: BTreeMap::new(),
        input_digest: Digest32::of(b"inputs"),
        origin: None,
        expected: vec![],
        files: entries
            .into_iter()
            .map(|entry| FileEntry {
                package: None,
                source: "test".into(),
                path: entry.path,
                mode: FileMode(entry.mode),
                bytes: entry.bytes,
                sha256: entry.sha256,
            })
            .collect(),
    };
    fs::write(place(MANIFEST), serde_json::to_string(&manifest).unwrap()).unwrap();
    dir
}

pub(crate) const FILES: [(&str, &[u8]); 4] = [
    ("/init", &[1; 9000]),
    ("/lib/x86_64-linux-gnu/libc.so", &[2; 100]),
    ("/lib-of-another-order", &[3; 4096]),
    ("/usr/bin/engine", &[4; 20_000]),
];

fn lines(one: &TempDir, other: &TempDir) -> Vec<String> {
    let compared = compare(one.path(), other.path()).unwrap();
    compared.iter().map(Compared::to_string).collect()
}

pub(crate) fn flip(dir: &TempDir, file: &str, offset: u64) {
    let file = File::options()
        .read(true)
        .write(true)
        .open(dir.path().join(file))
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

#[test]
fn two_builds_of_the_same_are_the_same() {
    let same = ["firmware.fd", "kernel", "root.img", "manifest.json"];
    assert_eq!(
        lines(&image(&FILES), &image(&FILES)),
        same.map(|file| format!("{file}: the same"))
    );
}

#[test]
fn a_flipped_byte_of_firmware_or_kernel_is_found() {
    for (line, file) in ["firmware.fd", "kernel"].into_iter().enumerate() {
        let (one, other) = (image(&FILES), image(&FILES));
        flip(&one, file, 4321);
        assert_eq!(
            lines(&one, &other)[line],
            format!("{file}: DIFFERS in bytes 4321 to 4321")
        );
    }
}

#[test]
fn a_flipped_byte_of_the_root_is_found_in_its_file_though_the_manifest_keeps_silent() {
    let other = image(&FILES);
    let whole = fs::read(other.path().join("root.img")).unwrap();
    for (path, content) in FILES {
        let start = whole
            .windows(content.len())
            .position(|window| window == content)
            .unwrap() as u64;
        for at in [0, content.len() as u64 - 1] {
            let one = image(&FILES);
            flip(&one, "root.img", start + at);
            let found = lines(&one, &other).remove(2);
            assert!(
                found.ends_with(&format!(", first {path}, bytes {at} to {at}")),
                "{found}"
            );
        }
    }
    for (offset, place) in [
        (1024, "metadata"),
        (4096, "metadata"),
        (whole.len() as u64 - 1, "hash tree"),
    ] {
        let one = image(&FILES);
        flip(&one, "root.img", offset);
        let found = lines(&one, &other).remove(2);
        assert!(found.ends_with(place), "{found}");
    }
}

#[test]
fn another_program_is_named_though_everything_behind_it_has_moved() {
    let mut changed = FILES;
    changed[0].1 = &[1; 30_000];
    let found = lines(&image(&changed), &image(&FILES));
    assert!(
        found[2].ends_with("first /init, bytes 9000 to 29999"),
        "{}",
        found[2]
    );
    assert!(found[3].starts_with("manifest.json: DIFFERS in "), "{}", found[3]);
}

#[test]
fn a_file_that_only_one_has_is_named() {
    let more = [&FILES[..], &[("/usr/bin/sh", b"shell")]].concat();
    for (one, other) in [(&more[..], &FILES[..]), (&FILES[..], &more[..])] {
        let found = lines(&image(one), &image(other)).remove(2);
        assert!(found.ends_with("first /usr/bin/sh: only one has it"), "{found}");
    }
}

#[test]
fn a_cut_or_missing_file_is_found() {
    let (one, other) = (image(&FILES), image(&FILES));
    File::options()
        .write(true)
        .open(one.path().join("kernel"))
        .unwrap()
        .set_len(4000)
        .unwrap();
    assert_eq!(lines(&one, &other)[1], "kernel: DIFFERS in bytes 4000 to 4999");
    fs::remove_file(one.path().join("kernel")).unwrap();
    assert!(matches!(
        compare(one.path(), other.path()),
        Err(CompareError::Read { .. })
    ));
}

#[test]
fn another_commit_with_the_same_bytes_is_the_same_image_and_other_registers_are_not() {
    let (one, other) = (image(&FILES), image(&FILES));
    let change = |change: &dyn Fn(&mut Manifest)| {
        let path = one.path().join(MANIFEST);
        let mut manifest = Manifest::load(&path).unwrap();
        change(&mut manifest);
        fs::write(&path, serde_json::to_string(&manifest).unwrap()).unwrap();
        lines(&one, &other).remove(3)
    };
    let commit = Commit {
        id: "c".repeat(40),
        clean: true,
    };
    let origin = Origin {
        image_lock: Digest32::ZERO,
        cargo_lock: Digest32::ZERO,
        commit: Some(commit),
        builder_root: None,
    };
    let found = change(&|manifest| manifest.origin = Some(origin.clone()));
    assert_eq!(found, "manifest.json: the same");
    let launch = ExpectedLaunch {
        launch_spec: "4vcpu-16gib".into(),
        launch_spec_sha256: Digest32::ZERO,
        registers: BTreeMap::new(),
    };
    let found = change(&|manifest| manifest.expected = vec![launch.clone()]);
    assert!(found.starts_with("manifest.json: DIFFERS in expected"), "{found}");
}

#[test]
fn a_manifest_that_claims_absurd_lengths_is_no_panic() {
    let (one, other) = (image(&FILES), image(&FILES));
    let path = one.path().join(MANIFEST);
    let mut manifest = Manifest::load(&path).unwrap();
    for entry in &mut manifest.files {
        entry.bytes = u64::MAX;
    }
    fs::write(&path, serde_json::to_string(&manifest).unwrap()).unwrap();
    flip(&one, "root.img", 4096);
    let found = lines(&one, &other);
    assert!(
        found[2].contains("DIFFERS") && found[3].contains("files."),
        "{found:?}"
    );
}

#[test]
fn firmware_that_only_the_first_image_has_is_a_difference() {
    let (one, other) = (image(&FILES), image(&FILES));
    fs::write(one.path().join("snp.fd"), "firmware for SNP").unwrap();
    let path = one.path().join(MANIFEST);
    let mut manifest = Manifest::load(&path).unwrap();
    manifest.artifacts.firmware_snp = Some(Artifact::of_file(&one.path().join("snp.fd")).unwrap());
    fs::write(&path, serde_json::to_string(&manifest).unwrap()).unwrap();
    let lines = lines(&one, &other);
    assert_eq!(lines[1], "snp.fd: DIFFERS, only one image has it");
    assert!(
        lines.last().unwrap().contains("DIFFERS"),
        "the manifest says it too"
    );
}

/// Names in a manifest are whoever's who wrote it.
#[test]
fn a_manifest_cannot_write_to_the_auditors_terminal() {
    let change: [fn(&mut Manifest); 2] = [
        |manifest| manifest.files[1].path = "/\u{1b}[2Jall is well".into(),
        |manifest| {
            let name = "\u{1b}[2Jall is well".into();
            manifest.inputs.insert(name, Digest32::ZERO);
        },
    ];
    for change in change {
        let (one, other) = (image(&FILES), image(&FILES));
        let path = one.path().join(MANIFEST);
        let mut manifest = Manifest::load(&path).unwrap();
        change(&mut manifest);
        fs::write(&path, serde_json::to_string(&manifest).unwrap()).unwrap();
        flip(&one, "root.img", 30_000);
        let lines = lines(&one, &other).join("");
        assert!(lines.contains("all is well"), "{lines:?}");
        assert!(!lines.contains(char::is_control), "{lines:?}");
    }
}
