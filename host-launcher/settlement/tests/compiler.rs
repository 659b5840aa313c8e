//! The committed contract code is what its source compiles to.
#![allow(clippy::panic, reason = "tests")]

use std::{path::Path, process::Command};

#[test]
fn the_committed_code_is_what_the_source_compiles_to() {
    let contract = Path::new(env!("CARGO_MANIFEST_DIR")).join("contract");
    let has_node = Command::new("node")
        .arg("--version")
        .output()
        .is_ok_and(|run| run.status.success());
    if !has_node || !contract.join("node_modules/@ton/tolk-js").is_dir() {
        eprintln!(
            "skipped: needs node and `npm ci` in host-launcher/settlement/contract (contract/build does both)"
        );
        return;
    }
    let run = Command::new(contract.join("build")).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}
