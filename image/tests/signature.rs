//! `cocoon-image sign`, `verify-signature` and `inspect` from outside: openssl's keys, openssl's opinion, exit codes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use cocoon_image::signature::{ENVELOPE, envelope::pre_authentication};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

fn openssl(folder: &Path, arguments: &[&str]) -> Output {
    let mut openssl = Command::new("openssl");
    openssl.args(arguments).current_dir(folder).output().unwrap()
}

fn image(folder: &Path, command: &[&str]) -> Output {
    let mut image = Command::new(env!("CARGO_BIN_EXE_cocoon-image"));
    image.args(command).current_dir(folder).output().unwrap()
}

fn assert_code(output: &Output, code: i32, says: &str) {
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(says), "{text}");
}

/// Two key pairs of openssl's, and in `image` the smallest image that a manifest can describe.
fn house() -> TempDir {
    let house = tempfile::tempdir().unwrap();
    let path = house.path();
    for name in ["one", "two"] {
        let (secret, public) = (format!("{name}.pem"), format!("{name}.pub"));
        let made = openssl(path, &["genpkey", "-algorithm", "ed25519", "-out", &secret]);
        assert_code(&made, 0, "");
        fs::set_permissions(path.join(&secret), fs::Permissions::from_mode(0o600)).unwrap();
        assert_code(
            &openssl(path, &["pkey", "-in", &secret, "-pubout", "-out", &public]),
            0,
            "",
        );
    }
    let zeros = "0".repeat(64);
    let artifact = |file: &str| {
        let sha256: String = Sha256::digest(file)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        serde_json::json!({ "file": file, "bytes": file.len(), "sha256": sha256 })
    };
    let table = format!("1 /dev/vda /dev/vda 4096 4096 1 1 sha256 {zeros} {zeros}");
    let manifest = serde_json::json!({
        "version": 1,
        "profile": "dev",
        "command_line": format!("ro dm-mod.create=\"root,,0,ro,0 8 verity {table} 1 panic_on_corruption\""),
        "artifacts": {
            "firmware": artifact("firmware.fd"), "kernel": artifact("kernel"), "root": artifact("root.img"),
        },
        "root_verity": { "data_blocks": 1, "salt": zeros, "root_hash": zeros },
        "inputs": {},
        "input_digest": zeros,
        "files": [],
    });
    fs::create_dir(path.join("image")).unwrap();
    fs::write(path.join("image/manifest.json"), manifest.to_string()).unwrap();
    for file in ["firmware.fd", "kernel", "root.img"] {
        fs::write(path.join("image").join(file), file).unwrap();
    }
    house
}

#[test]
fn openssl_verifies_what_was_signed_with_its_key() {
    let house = house();
    let path = house.path();
    assert_code(
        &image(path, &["sign", "--key", "one.pem", "image"]),
        0,
        "signatures: 1",
    );
    let envelope = fs::read(path.join("image").join(ENVELOPE)).unwrap();
    let envelope: serde_json::Value = serde_json::from_slice(&envelope).unwrap();
    let decode = |value: &serde_json::Value| STANDARD.decode(value.as_str().unwrap()).unwrap();
    let payload = decode(&envelope["payload"]);
    let message = pre_authentication("application/vnd.in-toto+json", &payload);
    fs::write(path.join("message"), &message).unwrap();
    fs::write(path.join("sig"), decode(&envelope["signatures"][0]["sig"])).unwrap();
    let verify = "pkeyutl -verify -pubin -inkey one.pub -rawin -in message -sigfile sig";
    let verify: Vec<_> = verify.split(' ').collect();
    assert_code(&openssl(path, &verify), 0, "Signature Verified Successfully");
    fs::write(path.join("message"), &message[1..]).unwrap();
    assert_code(&openssl(path, &verify), 1, "");
}

#[test]
fn each_outcome_has_its_exit_code() {
    let house = house();
    let path = house.path();
    let verify = |key: &str| image(path, &["verify-signature", "--public-key", key, "image"]);
    let sign = |key: &str| image(path, &["sign", "--key", key, "image"]);
    assert_code(&verify("one.pub"), 3, "is missing; this image is not signed");
    assert_code(&sign("none.pem"), 3, "cannot read the key");
    assert_code(&sign("one.pub"), 2, "chmod 600");
    fs::set_permissions(path.join("two.pem"), fs::Permissions::from_mode(0o640)).unwrap();
    assert_code(&sign("two.pem"), 2, "chmod 600");
    assert_code(&sign("one.pem"), 0, "UNKNOWN: the manifest names no commit");
    assert_code(&verify("one.pem"), 2, "holds no Ed25519 public key");
    assert_code(&verify("two.pub"), 11, "no signature in it is by the key");
    assert_code(&verify("one.pub"), 0, "root.img         PASS");
    fs::set_permissions(path.join("two.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_code(&sign("two.pem"), 0, "signatures: 2");
    assert_code(&verify("one.pub"), 0, "PASS");
    assert_code(&verify("two.pub"), 0, "PASS");
    fs::write(path.join("image/kernel"), "evil").unwrap();
    assert_code(&verify("one.pub"), 10, "kernel           FAIL");
    assert_code(&sign("one.pem"), 10, "nothing was signed");
    fs::remove_file(path.join("image/kernel")).unwrap();
    assert_code(&verify("one.pub"), 3, "kernel           MISSING");
}

/// Scripts tell a forged image from one that could not be looked at by the code alone.
#[test]
fn a_root_that_its_hash_does_not_fit_is_not_taken_for_a_failed_run() {
    let house = house();
    assert_code(&image(house.path(), &["inspect", "image"]), 10, "DIFFERS");
    fs::remove_file(house.path().join("image/root.img")).unwrap();
    assert_code(&image(house.path(), &["inspect", "image"]), 1, "cannot read");
}
