//! Holds the dependency arrows of the design: a crate depends on what is listed here and on nothing else of
//! ours, and what must stay out of a trusted crate's tree is not in it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

/// Each of our crates and the ones of ours that it may depend on (normal and build dependencies).
const ARROWS: [(&str, &[&str]); 14] = [
    ("cocoon-evidence", &[]),
    ("cocoon-protocol", &["cocoon-evidence"]),
    ("cocoon-verify", &["cocoon-evidence"]),
    ("cocoon-measurements", &["cocoon-verify", "cocoon-evidence"]),
    ("cocoon-engine", &["cocoon-protocol"]),
    ("cocoon-gpu", &["cocoon-protocol", "cocoon-evidence"]),
    ("cocoon-agent", &["cocoon-protocol", "cocoon-evidence"]),
    ("cocoon-simulator", &["cocoon-evidence", "cocoon-protocol"]),
    ("cocoon-settlement", &["cocoon-protocol", "cocoon-evidence"]),
    ("cocoon-image", &["cocoon-measurements", "cocoon-evidence"]),
    (
        "cocoon",
        &[
            "cocoon-verify",
            "cocoon-measurements",
            "cocoon-protocol",
            "cocoon-evidence",
            "cocoon-settlement",
        ],
    ),
    (
        "cocoon-launch",
        &[
            "cocoon-measurements",
            "cocoon-protocol",
            "cocoon-evidence",
            "cocoon-simulator",
            "cocoon-settlement",
        ],
    ),
    // Runs the agent natively, with everything around it played.
    (
        "cocoon-soak",
        &["cocoon-agent", "cocoon-protocol", "cocoon-evidence"],
    ),
    // Tests of the whole way may use everything.
    ("cocoon-e2e", EVERYTHING),
];

const EVERYTHING: &[&str] = &[
    "cocoon",
    "cocoon-agent",
    "cocoon-engine",
    "cocoon-evidence",
    "cocoon-image",
    "cocoon-launch",
    "cocoon-measurements",
    "cocoon-protocol",
    "cocoon-settlement",
    "cocoon-simulator",
    "cocoon-verify",
];

/// A crate, what must not be anywhere below it, and why.
const ABSENT: [(&str, &[&str], &str); 3] = [
    (
        "cocoon-agent",
        &[
            "tch",
            "torch-sys",
            "nvml-wrapper-sys",
            "cocoon-verify",
            "cocoon-measurements",
            "dcap-qvl",
        ],
        "the agent holds the keys: no libtorch and no verifier in its trusted computing base",
    ),
    (
        "cocoon-verify",
        &["tokio", "reqwest", "hyper", "mio", "rustls", "socket2"],
        "a verdict depends on its arguments only: no network, no runtime",
    ),
    (
        "cocoon",
        &["cocoon-agent", "cocoon-engine", "tch", "torch-sys"],
        "clients install without libtorch",
    ),
];

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "cargo {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Our crates, each with those of ours that its manifest names outside dev-dependencies, on any target and
/// whether or not they are optional.
fn manifest_arrows() -> BTreeMap<String, BTreeSet<String>> {
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--format-version", "1", "--no-deps"])).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap();
            let ours = dependencies
                .iter()
                .filter(|dependency| dependency["kind"] != "dev" && dependency["path"].is_string())
                .map(name);
            (name(package), ours.collect())
        })
        .collect()
}

#[test]
fn no_crate_depends_on_another_unless_the_design_says_so() {
    let allowed = BTreeMap::from(ARROWS);
    let actual = manifest_arrows();
    let members: Vec<_> = actual.keys().map(String::as_str).collect();
    assert_eq!(
        members,
        allowed.keys().copied().collect::<Vec<_>>(),
        "a new crate needs its arrows in ARROWS and in docs/ARCHITECTURE.md"
    );
    let unlisted: Vec<_> = actual
        .iter()
        .flat_map(|(from, to)| to.iter().map(move |to| (from.as_str(), to.as_str())))
        .filter(|(from, to)| !allowed[from].contains(to))
        .collect();
    assert!(
        unlisted.is_empty(),
        "arrows that the design does not have: {unlisted:?}"
    );
}

#[test]
fn what_must_stay_out_of_a_crate_is_not_below_it() {
    for (package, absent, why) in ABSENT {
        // On all targets and with all features, so that none of them can smuggle it in.
        let tree = cargo(&[
            "tree",
            "--locked",
            "--package",
            package,
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--target",
            "all",
            "--all-features",
            "--format",
            "{p}",
        ]);
        let names: BTreeSet<_> = tree
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        assert!(names.contains("sha2"), "{package}: this is no tree: {tree}");
        let found: Vec<_> = absent.iter().filter(|name| names.contains(**name)).collect();
        assert!(found.is_empty(), "{package} contains {found:?}: {why}");
    }
}
