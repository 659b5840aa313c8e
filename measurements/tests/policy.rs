//! The program `cocoon-measure policy`: what it refuses to sign with, and what it refuses to read.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

fn sign(policy: &str, key: &str) -> Option<i32> {
    let program = env!("CARGO_BIN_EXE_cocoon-measure");
    let arguments = ["policy", "sign", policy, "--key", key];
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap()
        .status
        .code()
}

#[test]
fn a_key_that_others_can_read_signs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (policy, key) = (path("policy.toml"), path("key"));
    fs::write(&policy, "version = 1\n").unwrap();
    fs::write(&key, "11".repeat(32)).unwrap();
    for mode in [0o644, 0o660, 0o604, 0o600] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        // With 0600 the key is taken, and what is signed turns out to be no policy.
        assert_eq!(sign(&policy, &key), Some(3), "{mode:o}");
        assert!(!fs::exists(path("policy.toml.sig")).unwrap());
    }
}
