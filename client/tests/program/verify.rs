//! `cocoon verify`: what it prints, saves and remembers, and its exit codes.

use std::{fs, os::unix::fs::PermissionsExt as _};

use cocoon_verify::Policy;
use serde_json::Value;

use crate::{
    node::{Guest, Node},
    world::{World, assert_exit, json, wrong_policy},
};

#[tokio::test(flavor = "multi_thread")]
async fn verify_prints_every_register_and_says_simulated() {
    let world = World::new().await;
    let output = world.verify("policy.toml", &[]).await;
    assert_exit(&output, 0);
    let table = String::from_utf8(output.stdout).unwrap();
    for row in [
        "MRTD",
        "RTMR0",
        "RTMR1",
        "RTMR2",
        "RTMR3",
        "event launch-document",
        "event usage-key",
    ] {
        assert!(
            table.lines().any(|line| line.contains(row)),
            "no {row} in\n{table}"
        );
    }
    assert!(
        table.lines().last().unwrap().starts_with("VERDICT: SIMULATED"),
        "{table}"
    );
    assert!(!table.contains('\u{1b}'), "no colours in a pipe");

    let report = json(&world.verify("policy.toml", &["--json"]).await);
    assert_eq!(report["verdict"], "SIMULATED");
    assert!(report["fresh"]["checks"].as_array().unwrap().len() > 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_saved_is_judged_again_without_the_node() {
    let mut world = World::new().await;
    assert_exit(&world.verify("policy.toml", &["--save", "saved"]).await, 0);
    let wrong = wrong_policy(&world);
    fs::write(world.path("wrong.toml"), wrong.to_toml()).unwrap();
    assert_exit(&world.verify("wrong.toml", &["--save", "refused"]).await, 10);
    let requests = world.node.requests().len();

    let offline = ["verify", "--offline", "saved", "--policy"];
    let again = world
        .cocoon(&[offline.as_slice(), &["policy.toml", "--explain"]].concat())
        .await;
    assert_exit(&again, 0);
    let table = String::from_utf8(again.stdout).unwrap();
    assert!(table.contains("RTMR2: the kernel's command line"), "{table}");
    assert!(table.contains("1 launch-document: "), "{table}");
    assert_exit(
        &world
            .cocoon(&[offline.as_slice(), &["wrong.toml"]].concat())
            .await,
        10,
    );
    assert_eq!(world.node.requests().len(), requests, "the node was asked");

    // A refused guest was not asked for fresh evidence: a kinder policy cannot make it up.
    let refused = ["verify", "--offline", "refused", "--policy", "policy.toml"];
    assert_exit(&world.cocoon(&refused).await, 11);

    for (file, byte) in [
        ("certificate.der", 900),
        ("evidence.cbor", 60),
        ("endorsements.cbor", 60),
    ] {
        let path = world.path("saved").join(file);
        let honest = fs::read(&path).unwrap();
        let mut changed = honest.clone();
        changed[byte] ^= 1;
        fs::write(&path, &changed).unwrap();
        let judged = world
            .cocoon(&[offline.as_slice(), &["policy.toml"]].concat())
            .await;
        assert!(
            matches!(judged.status.code(), Some(10..=14)),
            "{file}: {:?}",
            judged.status
        );
        fs::write(&path, vec![0; 1024 * 1024]).unwrap();
        assert_exit(
            &world
                .cocoon(&[offline.as_slice(), &["policy.toml"]].concat())
                .await,
            2,
        );
        fs::write(&path, honest).unwrap();
    }
    world.node = Node::honest(Guest::boot(&world.platform, 1)).await;
    assert_exit(&world.verify("policy.toml", &["--save", "saved"]).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_policy_than_one_that_was_accepted_is_refused() {
    let world = World::new().await;
    let write = |number| {
        let mut terms = Guest::boot(&world.platform, 1).policy_terms();
        terms.number = number;
        fs::write(world.path("policy.toml"), Policy::new(terms).unwrap().to_toml()).unwrap();
    };
    for (number, code) in [(7, 0), (8, 0), (7, 10), (8, 0)] {
        write(number);
        assert_exit(&world.verify("policy.toml", &[]).await, code);
    }
    let state = world.path("cocoon/seen.json");
    assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o600);
    // Another state knows nothing; a damaged one is no reason to accept.
    write(1);
    assert_exit(&world.verify("policy.toml", &["--state", "other.json"]).await, 0);
    fs::write(&state, "{").unwrap();
    assert_exit(&world.verify("policy.toml", &[]).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn unusable_files_and_absent_nodes_have_their_exit_codes() {
    let mut world = World::new().await;
    assert_exit(&world.verify("missing.toml", &[]).await, 2);
    fs::write(world.path("broken.toml"), "version = 1").unwrap();
    assert_exit(&world.verify("broken.toml", &[]).await, 2);
    let endpoint = world.node.endpoint.to_string();
    world.node = Node::honest(Guest::boot(&world.platform, 1)).await;
    let absent = world
        .cocoon(&["verify", &endpoint, "--policy", "policy.toml", "--json"])
        .await;
    assert_exit(&absent, 20);
    let report: Value = serde_json::from_slice(&absent.stdout).unwrap();
    assert_eq!(report["exit_code"], 20);
}
