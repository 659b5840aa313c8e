//! The machines whose tables a release publishes (`measurements/profiles`): `acpi` makes one file for all of them, and
//! with it `predict` does without QEMU.
//!
//! Runs the QEMU that COCOON_QEMU names, or else `qemu-system-x86_64`; without one, or without `COCOON_VECTORS`, the
//! test that needs it says so and passes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use cocoon_measurements::{
    LaunchPlatform, LaunchSpec,
    acpi::{MachineShape, QemuBuild, TablesFile},
};
use serde_json::Value;

use super::{
    Inputs,
    hardware::{linux, printed, refused, vector},
};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles")
}

/// By name, as the program takes them.
fn profiles() -> Vec<PathBuf> {
    let entries = folder().read_dir().unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn qemu() -> Option<String> {
    let named = std::env::var("COCOON_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".to_owned());
    if QemuBuild::of(Path::new(&named)).is_err() {
        eprintln!("skipped: no {named} here; COCOON_QEMU may name another");
        return None;
    }
    Some(named)
}

#[test]
fn every_profile_is_another_tdx_machine() {
    let specs = profiles()
        .into_iter()
        .map(|path| LaunchSpec::load(&path).unwrap());
    let mut shapes = Vec::new();
    for spec in specs {
        assert_eq!(spec.platform, LaunchPlatform::Tdx);
        assert_eq!(spec.qemu.version, None, "one profile for each QEMU");
        let shape = MachineShape::of(&spec).unwrap();
        assert!(!shapes.contains(&shape), "{shape:?}");
        shapes.push(shape);
    }
    assert!(shapes.len() >= 4);
}

#[test]
fn a_published_file_predicts_each_profile_and_no_other_machine() {
    let (Some(qemu), Some(firmware)) = (qemu(), vector("firmware/OVMF.inteltdx.fd")) else {
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    let published = scratch.path().join("acpi-tables.json");
    let output = Command::new(env!("CARGO_BIN_EXE_cocoon-measure"))
        .args(["acpi", "--json", "--qemu", &qemu, "--out"])
        .args([&published, Path::new("--spec"), &folder()])
        .output()
        .unwrap();
    let report = printed(&output);
    let machines = report["machines"].as_array().unwrap();
    assert_eq!(machines.len(), profiles().len());
    let json = fs::read(&published).unwrap();
    assert_eq!(TablesFile::parse(&json).unwrap().machines.len(), machines.len());

    let tables = ["--tables", published.to_str().unwrap()];
    for (profile, machine) in profiles().iter().zip(machines) {
        assert_eq!(machine["spec"], profile.to_str().unwrap());
        let text = fs::read_to_string(profile).unwrap();
        let inputs = Inputs::of(&firmware, &linux(), &text);
        let prediction = printed(&inputs.run(&[&tables[..], &["--json"]].concat()));
        let events = prediction["registers"]["rtmr0"][0]["events"].as_array().unwrap();
        let measured: Vec<_> = events.iter().map(|event| &event["digest"]).collect();
        for name in ["etc/table-loader", "etc/acpi/rsdp", "etc/acpi/tables"] {
            assert!(measured.contains(&digest(machine, name)), "{name} of {profile:?}");
        }
        let spec = LaunchSpec::load(profile).unwrap();
        let vcpus = format!("vcpus = {}", spec.vcpus.get());
        let other = text.replace(&vcpus, &format!("{vcpus}0"));
        let inputs = Inputs::of(&firmware, &linux(), &other);
        refused(&inputs, &tables, 3, "no tables for this machine");
    }
}

/// What `acpi` says of one file of a machine.
fn digest<'a>(machine: &'a Value, name: &str) -> &'a Value {
    let files = machine["files"].as_array().unwrap();
    &files.iter().find(|file| file["name"] == name).unwrap()["sha384"]
}

#[test]
fn a_folder_without_a_launch_spec_is_an_error() {
    let empty = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_cocoon-measure"))
        .args(["acpi", "--qemu", "qemu-system-x86_64", "--spec"])
        .arg(empty.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("has no LaunchSpec"));
}
