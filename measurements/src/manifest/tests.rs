//! Manifests as they are written, and as somebody hostile would.

use cocoon_evidence::Digest48;

use super::*;
use crate::spec::LaunchPlatform;

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
            package: None,
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
    let elsewhere = ["/etc/passwd", "../kernel", "..", "", "sub/kernel", ".hidden"];
    for file in elsewhere.into_iter().chain(["kernel\u{1b}[2J"]) {
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
