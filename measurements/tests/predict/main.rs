//! `cocoon-measure predict` from outside: files in, policy and exit codes out.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod hardware;
mod published;
#[path = "../small_image/mod.rs"]
mod small_image;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use cocoon_verify::{DocumentTerms, Policy};
use small_image::kernel;

/// Everything that one prediction reads.
struct Inputs(tempfile::TempDir);

impl Inputs {
    fn new() -> Self {
        Self::of(&[0x90; 0x4000], &kernel(), SPEC)
    }

    fn of(firmware: &[u8], kernel: &[u8], spec: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        small_image::write(folder.path(), firmware, kernel);
        fs::write(path("spec.toml"), spec).unwrap();
        let hash = "ab".repeat(32);
        let document = format!(
            r#"{{"model":{{"name":"m","verity":{{"data_blocks":7,"salt":"{hash}","root_hash":"{hash}"}}}}}}"#
        );
        fs::write(path("launch.json"), document).unwrap();
        fs::write(path("root.pem"), root_pem("Cocoon SIMULATED root")).unwrap();
        Self(folder)
    }

    fn folder(&self) -> &Path {
        self.0.path()
    }

    fn predict(&self, more: &[&str]) -> Output {
        let policy = ["--root", "root.pem", "--policy-out", "policy.toml"];
        self.run(&[&policy[..], more].concat())
    }

    fn run(&self, more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_cocoon-measure"))
            .current_dir(self.folder())
            .args(
                "predict --manifest manifest.json --spec spec.toml --launch-document launch.json".split(' '),
            )
            .args(more)
            .output()
            .unwrap()
    }

    /// Predicts after `change`; the exit code and stderr. There must be no policy.
    fn refused(change: impl FnOnce(&Path)) -> (Option<i32>, String) {
        let inputs = Self::new();
        change(inputs.folder());
        let output = inputs.predict(&[]);
        assert!(!inputs.folder().join("policy.toml").exists());
        assert!(output.stdout.is_empty());
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

const SPEC: &str = "platform = \"simulated\"\nmachine = \"q35-1\"\nvcpus = 2\nmemory_mib = 1024\n";

fn root_pem(common_name: &str) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::default();
    parameters
        .distinguished_name
        .push(rcgen::DnType::CommonName, common_name);
    parameters.self_signed(&key).unwrap().pem()
}

fn flip_byte(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes[100] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn the_policy_holds_what_was_printed() {
    let inputs = Inputs::new();
    let output = inputs.predict(&["--json", "--number", "5"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = fs::read_to_string(inputs.folder().join("policy.toml")).unwrap();
    let policy = Policy::parse(&text).unwrap();
    assert!(policy.is_simulated());
    assert_eq!(printed["schema"], "cocoon.predict/1");
    assert_eq!(printed["simulated"], true);
    assert_eq!(printed["td"]["attributes_from"], "simulated");
    let terms = policy.terms();
    assert_eq!(terms.number, 5);
    let registers = &terms.tdx().unwrap().registers;
    for (name, accepted) in [
        ("mrtd", &registers.mrtd),
        ("rtmr0", &registers.rtmr0),
        ("rtmr1", &registers.rtmr1),
        ("rtmr2", &registers.rtmr2),
    ] {
        let alternatives = &printed["registers"][name];
        assert_eq!(alternatives[0]["value"], accepted.to_string());
        assert_eq!(alternatives.as_array().unwrap().len(), 1);
    }
    let DocumentTerms::Digest(document) = &terms.events.launch_document else {
        panic!("the policy accepts one launch document");
    };
    assert_eq!(printed["launch_document_sha384"], document.to_string());
    assert!(
        inputs.predict(&[]).status.success(),
        "replaces an existing policy"
    );
}

#[test]
fn a_flipped_byte_in_any_artifact_is_told_apart() {
    for name in ["firmware", "kernel", "root"] {
        let (code, stderr) = Inputs::refused(|folder| {
            let file = folder
                .read_dir()
                .unwrap()
                .filter_map(|entry| Some(entry.ok()?.path()))
                .find(|path| {
                    path.file_stem().is_some_and(|stem| stem == name)
                        && path.extension() != Some("pem".as_ref())
                })
                .unwrap();
            flip_byte(&file);
        });
        assert_eq!(code, Some(4), "{stderr}");
        assert!(
            stderr.contains(&format!("is not the {name} of the manifest")),
            "{stderr}"
        );
    }
}

#[test]
fn a_root_that_is_garbage_or_not_a_simulators_is_refused() {
    for (root, says) in [
        ("garbage".to_owned(), "not exactly one certificate"),
        (root_pem("Somebody else"), "does not start with"),
        (
            root_pem("Cocoon SIMULATED root").repeat(2),
            "not exactly one certificate",
        ),
        ("x".repeat(70_000), "longer than"),
    ] {
        let (code, stderr) = Inputs::refused(|folder| fs::write(folder.join("root.pem"), root).unwrap());
        assert_eq!(code, Some(3));
        assert!(stderr.contains(says), "{stderr}");
    }
}

#[test]
fn a_missing_or_malformed_input_names_the_file() {
    for name in [
        "manifest.json",
        "spec.toml",
        "launch.json",
        "root.pem",
        "root.img",
    ] {
        let (code, stderr) = Inputs::refused(|folder| fs::remove_file(folder.join(name)).unwrap());
        assert_eq!(code, Some(3));
        assert!(stderr.contains(name), "{stderr}");
    }
    let (code, stderr) =
        Inputs::refused(|folder| fs::write(folder.join("spec.toml"), SPEC.replace('2', "0")).unwrap());
    assert_eq!(code, Some(3));
    assert!(stderr.contains("vcpus is 0"), "{stderr}");
}

#[test]
fn real_tdx_ends_with_its_own_code() {
    let (code, stderr) = Inputs::refused(|folder| {
        fs::write(folder.join("spec.toml"), SPEC.replace("simulated", "tdx")).unwrap();
    });
    assert_eq!(code, Some(5));
    assert!(stderr.contains("MRTD cannot be predicted"), "{stderr}");
}
