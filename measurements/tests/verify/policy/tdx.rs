//! Policies for TDs: each register and attribute, lists of profiles, what is left open, and whose word a policy is.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use super::{Judged, PHALA, QUOTE, Vectors, assert_status, changed, other_value, tdx_policy};
use crate::measure;

#[test]
fn another_register_or_attribute_of_a_td_is_refused_by_its_row() {
    let Some(vectors) = Vectors::open() else { return };
    let (judged, policy) = (Judged::tdx(&vectors), tdx_policy(&vectors));
    for register in [
        "mrtd",
        "rtmr0",
        "rtmr1",
        "rtmr2",
        "mr_config_id",
        "mr_owner",
        "mr_owner_config",
    ] {
        let other = other_value(&policy, register);
        judged.refuses(10, &other, &format!("register.{register}"));
    }
    let attributes = changed(&policy, "0x0000000010000000", "0x0000000050000000");
    judged.refuses(10, &attributes, "td.attributes");
    let xfam = changed(&policy, "0x00000000000602e7", "0x00000000000600e7");
    judged.refuses(10, &xfam, "td.xfam");
}

#[test]
fn one_profile_of_a_list_is_enough_and_is_named() {
    let Some(vectors) = Vectors::open() else { return };
    let (judged, policy) = (Judged::tdx(&vectors), tdx_policy(&vectors));
    let line = policy.lines().find(|line| line.starts_with("rtmr0 = ")).unwrap();
    let (right, wrong) = (&line["rtmr0 = [\"".len()..line.len() - 2], "ab".repeat(48));
    let list = |first: &str, second: &str| {
        let item = |profile: &str, value: &str| format!("{{ profile = \"{profile}\", value = \"{value}\" }}");
        let items = [item("qemu-8.2", first), item("qemu-9.2", second)].join(", ");
        changed(&policy, line, &format!("rtmr0 = [{items}]"))
    };
    for (list, profile) in [
        (list(&wrong, right), "qemu-9.2"),
        (list(right, &wrong), "qemu-8.2"),
    ] {
        let judgement = judged.ends(0, &list, "");
        let checks = judgement["checks"].as_array().unwrap();
        let row = checks
            .iter()
            .find(|check| check["id"] == "register.rtmr0")
            .unwrap();
        assert_eq!(row["detail"], format!("as in profile {profile}"));
    }
    judged.refuses(10, &list(&wrong, &wrong), "register.rtmr0");
}

#[test]
fn what_a_policy_leaves_open_is_not_called_compared() {
    let Some(vectors) = Vectors::open() else { return };
    let policy = tdx_policy(&vectors);
    let line = policy.lines().find(|line| line.starts_with("mrtd = ")).unwrap();
    let open = changed(&policy, line, "mrtd = \"any-insecure\"");
    let judgement = Judged::tdx(&vectors).ends(0, &open, "");
    assert_status(&judgement, "register.mrtd", "SKIP");

    let (evidence, policy) = (vectors.path(QUOTE), vectors.scratch("open.toml", open.as_bytes()));
    let collateral = vectors.path("tdx/phala/tdx_quote_collateral.json");
    let common = [
        "--kind",
        "tdx",
        "--evidence",
        &evidence,
        "--collateral",
        &collateral,
    ];
    let output = measure(&[&common[..], &["--at", PHALA, "--policy", &policy]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    let verdict = text.lines().last().unwrap();
    let (said, skipped) = verdict.split_once("NOT compared: ").unwrap();
    assert!(said.starts_with("VERDICT: PASS: platform genuine"), "{verdict}");
    assert!(
        skipped.contains("register.mrtd") && skipped.contains("register.rtmr3"),
        "{verdict}"
    );
    assert!(!skipped.contains("register.rtmr0"), "{verdict}");
}

#[test]
fn a_text_that_is_no_policy_is_a_wrong_command_line() {
    let Some(vectors) = Vectors::open() else { return };
    let policy = tdx_policy(&vectors);
    let line = policy.lines().find(|line| line.starts_with("mrtd = ")).unwrap();
    for (from, to) in [
        (line, "mrtd = []"),
        (line, ""),
        ("[tcb]", "[tcb]\naccept_all = true"),
        ("[\"UpToDate\"]", "[\"Revoked\"]"),
        ("version = 1", "version = 2"),
        ("simulated = false", "simulated = true"),
    ] {
        let path = vectors.scratch("policy.toml", changed(&policy, from, to).as_bytes());
        let output = measure(&[
            "--kind",
            "tdx",
            "--evidence",
            &vectors.path(QUOTE),
            "--policy",
            &path,
        ]);
        assert_eq!(output.status.code(), Some(2), "{to}");
        assert!(output.stdout.is_empty(), "{to}");
    }
}

/// Signs with `cocoon-measure policy sign`; the public key.
fn sign(vectors: &Vectors, policy: &str, seed: &str) -> String {
    let key = vectors.scratch("key", seed.repeat(32).as_bytes());
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_cocoon-measure"));
    let output = program
        .args(["policy", "sign", policy, "--key", &key])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim_end().rsplit(' ').next().unwrap().to_owned()
}

#[test]
fn with_a_key_only_what_it_signed_counts() {
    let Some(vectors) = Vectors::open() else { return };
    let text = tdx_policy(&vectors);
    let policy = vectors.scratch("signed.toml", text.as_bytes());
    let (evidence, collateral) = (
        vectors.path(QUOTE),
        vectors.path("tdx/phala/tdx_quote_collateral.json"),
    );
    let verify = |keys: &[&str]| {
        let common = [
            "--kind",
            "tdx",
            "--evidence",
            &evidence,
            "--collateral",
            &collateral,
        ];
        let rest = ["--at", PHALA, "--json", "--policy", &policy];
        let keys: Vec<_> = keys.iter().flat_map(|key| ["--policy-key", key]).collect();
        let output = measure(&[&common[..], &rest, &keys].concat());
        (output.status.code(), output)
    };
    let other = vectors.scratch("other.toml", text.as_bytes());
    let stranger = sign(&vectors, &other, "33");
    assert_eq!(verify(&[&stranger]).0, Some(2), "there are no signatures");

    let [ours, theirs] = ["11", "22"].map(|seed| sign(&vectors, &policy, seed));
    for keys in [&[&*ours][..], &[&*theirs], &[&*stranger, &*ours]] {
        let (code, output) = verify(keys);
        assert_eq!(code, Some(0), "{keys:?}: {output:?}");
        let judgement = serde_json::from_slice(&output.stdout).unwrap();
        assert_status(&judgement, "policy.signature", "PASS");
    }
    let (code, output) = verify(&[&stranger]);
    assert_eq!(code, Some(2), "{output:?}");
    assert_eq!(verify(&["11"]).0, Some(2), "not a key");

    fs::write(&policy, changed(&text, "number = 1", "number = 2")).unwrap();
    assert_eq!(verify(&[&ours]).0, Some(2), "changed after it was signed");
    assert_eq!(verify(&[]).0, Some(0), "without a key it is one's own file");
    fs::write(&policy, &text).unwrap();
    assert_eq!(verify(&[&ours]).0, Some(0));
}
