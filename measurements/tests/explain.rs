//! `cocoon-measure explain` from outside: files in, causes and exit codes out.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod small_image;

use std::{fs, path::Path, process::Command};

use serde_json::Value;
use small_image::kernel;

const SPEC: &str = "platform = \"simulated\"\nmachine = \"q35-1\"\nvcpus = 2\nmemory_mib = 1024\n";

/// A folder with an image and a LaunchSpec.
fn image() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    small_image::write(folder.path(), &[0x90; 0x4000], &kernel());
    fs::write(folder.path().join("spec.toml"), SPEC).unwrap();
    folder
}

fn measure(folder: &Path, arguments: &str) -> (Option<i32>, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_cocoon-measure"))
        .current_dir(folder)
        .args(arguments.split(' '))
        .args(["--json"])
        .output()
        .unwrap();
    let document = serde_json::from_slice(&output.stdout);
    (
        output.status.code(),
        document.unwrap_or_else(|_| String::from_utf8_lossy(&output.stderr).into()),
    )
}

/// A TD report with the registers of a prediction (TDREPORT_STRUCT: TDINFO_STRUCT starts at 512).
fn td_report(folder: &Path, spec: &str) {
    let predict = format!("predict --manifest manifest.json --spec {spec}");
    let (code, prediction) = measure(folder, &predict);
    assert_eq!(code, Some(0), "{prediction}");
    let mut report = vec![0; 1024];
    report[0] = 0x81;
    for (name, at) in [("mrtd", 528), ("rtmr0", 720), ("rtmr1", 768), ("rtmr2", 816)] {
        let value = prediction["registers"][name][0]["value"].as_str().unwrap();
        report[at..at + 48].copy_from_slice(&hex::decode(value).unwrap());
    }
    fs::write(folder.join("report"), report).unwrap();
}

fn explain(folder: &Path) -> (Option<i32>, Value) {
    measure(
        folder,
        "explain --manifest manifest.json --spec spec.toml --quote report",
    )
}

#[test]
fn the_described_machine_needs_no_explanation() {
    let folder = image();
    td_report(folder.path(), "spec.toml");
    let (code, document) = explain(folder.path());
    assert_eq!(
        (code, &document["agrees"]),
        (Some(0), &Value::Bool(true)),
        "{document}"
    );
    assert_eq!(document["schema"], "cocoon.explain/1");
}

#[test]
fn another_machine_is_named_with_what_to_change() {
    for (from, to, id, change) in [
        (
            "memory_mib = 1024",
            "memory_mib = 4096",
            "memory",
            "memory_mib = 4096",
        ),
        ("vcpus = 2", "vcpus = 9", "vcpus", "vcpus = 9"),
    ] {
        let folder = image();
        fs::write(folder.path().join("other.toml"), SPEC.replace(from, to)).unwrap();
        td_report(folder.path(), "other.toml");
        let (code, document) = explain(folder.path());
        assert_eq!(code, Some(10), "{document}");
        let first = &document["causes"][0];
        assert_eq!(
            (&first["id"], &first["certainty"]),
            (&id.into(), &"reproduced".into()),
            "{document}"
        );
        assert!(first["change"].as_str().unwrap().contains(change), "{first}");
    }
}

#[test]
fn without_evidence_the_command_line_is_wrong() {
    let folder = image();
    let (code, _) = measure(folder.path(), "explain --manifest manifest.json --spec spec.toml");
    assert_eq!(code, Some(2));
}

#[test]
fn a_prediction_is_compared_with_evidence_register_by_register() {
    let folder = image();
    td_report(folder.path(), "spec.toml");
    let (_, prediction) = measure(folder.path(), "predict --manifest manifest.json --spec spec.toml");
    fs::write(folder.path().join("prediction.json"), prediction.to_string()).unwrap();
    let (code, document) = measure(folder.path(), "diff prediction.json report");
    assert_eq!(code, Some(0), "{document}");
    fs::write(
        folder.path().join("other.toml"),
        SPEC.replace("vcpus = 2", "vcpus = 3"),
    )
    .unwrap();
    td_report(folder.path(), "other.toml");
    let (code, document) = measure(folder.path(), "diff prediction.json report");
    assert_eq!(
        (code, &document["rows"][0]["path"]),
        (Some(10), &"rtmr0".into()),
        "{document}"
    );
}
