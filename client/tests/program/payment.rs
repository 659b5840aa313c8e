//! `cocoon chat` with a prompt, `cocoon deposit`: what is paid for, and what is not.

use std::{fs, os::unix::fs::PermissionsExt as _};

use cocoon_protocol::{AccountAddress, SignedReceipt};

use crate::{
    node::{ANSWER, Guest, Node},
    world::{World, assert_exit, json, wrong_policy},
};

#[tokio::test(flavor = "multi_thread")]
async fn chat_pays_answers_and_uses_the_grant_again() {
    let world = World::new().await;
    world.new_wallet().await;
    let first = world
        .chat("policy.toml", &["--receipt-out", "receipt.json"])
        .await;
    assert_exit(&first, 0);
    assert_eq!(
        String::from_utf8(first.stdout).unwrap().trim_end(),
        ANSWER.concat()
    );
    let receipt: SignedReceipt =
        serde_json::from_slice(&fs::read(world.path("receipt.json")).unwrap()).unwrap();

    let deposit = world.deposit().await;
    let grants = deposit["grants"].as_array().unwrap();
    assert_eq!(grants.len(), 1);
    assert_eq!(grants[0]["id"], receipt.receipt.grant.to_string());
    assert_eq!(deposit["reserved_nano"], 1_000_000_000);

    let second = json(&world.chat("policy.toml", &["--json"]).await);
    assert_eq!(second["answer"], ANSWER.concat());
    assert_eq!(second["amount_nano"], 34_000_000);
    assert_eq!(second["receipt"]["receipt"]["served_nano"], 68_000_000);
    assert_eq!(
        world.deposit().await["grants"].as_array().unwrap().len(),
        1,
        "a second grant was locked"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_receipt_can_be_kept_nothing_is_sent_or_paid() {
    let world = World::new().await;
    world.new_wallet().await;
    let chat = world
        .chat("policy.toml", &["--receipt-out", "no/such/folder"])
        .await;
    assert_exit(&chat, 2);
    assert!(!String::from_utf8_lossy(&world.node.received()).contains("/v1/chat"));
    assert_eq!(world.deposit().await["reserved_nano"], 0);
    // Nor is a file left where nothing could be paid.
    let chat = world
        .chat(
            "policy.toml",
            &["--max-ton", "0.001", "--receipt-out", "receipt.json"],
        )
        .await;
    assert_exit(&chat, 30);
    assert!(!world.path("receipt.json").exists());
    // A disk that fills up meanwhile.
    let chat = world
        .chat("policy.toml", &["--json", "--receipt-out", "/dev/full"])
        .await;
    assert_exit(&chat, 40);
    let shown: serde_json::Value = serde_json::from_slice(&chat.stdout).unwrap();
    assert_eq!(shown["answer"], ANSWER.concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_from_standard_input_reaches_the_node() {
    let world = World::new().await;
    world.new_wallet().await;
    fs::write(world.path("record.txt"), "a line of a medical record\n").unwrap();
    let file = fs::File::open(world.path("record.txt")).unwrap();
    assert_exit(&world.chat_reading("policy.toml", &["-"], file.into()).await, 0);
    let received = world.node.received();
    let received = String::from_utf8_lossy(&received);
    assert!(received.contains("\"a line of a medical record\""), "{received}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_grant_reserves_can_be_withdrawn() {
    let world = World::new().await;
    world.new_wallet().await;
    assert_exit(&world.chat("policy.toml", &["--max-ton", "0.5"]).await, 0);
    let to = AccountAddress(cocoon_evidence::Digest32::of(b"owner")).to_string();
    let fixed = [
        "deposit",
        "withdraw",
        "--network",
        "local",
        "--wallet",
        "wallet",
        "--ton-config",
        "ton.json",
        "--to",
        &to,
        "--amount",
    ];
    let too_much = world.cocoon(&[fixed.as_slice(), &["0.5"]].concat()).await;
    assert_exit(&too_much, 30);
    let before = world.deposit().await["balance_nano"].as_u64().unwrap();
    assert_exit(&world.cocoon(&[fixed.as_slice(), &["0.01"]].concat()).await, 0);
    let after = world.deposit().await;
    assert!(after["balance_nano"].as_u64().unwrap() <= before - 10_000_000);
    assert_eq!(after["reserved_nano"], 500_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_policy_sends_nothing_and_touches_no_wallet() {
    let world = World::new().await;
    fs::write(world.path("wrong.toml"), wrong_policy(&world).to_toml()).unwrap();

    let verified = world.verify("wrong.toml", &[]).await;
    assert_exit(&verified, 10);
    let table = String::from_utf8(verified.stdout).unwrap();
    assert!(
        table
            .lines()
            .any(|line| line.contains("RTMR1") && line.ends_with("FAIL")),
        "{table}"
    );

    // There is no wallet: were it looked for, the exit code would be 30.
    let asked = world.chat("wrong.toml", &[]).await;
    assert_exit(&asked, 10);
    assert!(asked.stdout.is_empty());
    let error = String::from_utf8(asked.stderr).unwrap();
    assert!(
        error.contains("RTMR1") && error.contains("what to do:"),
        "{error}"
    );
    for request in world.node.requests() {
        assert!(request.contains(" /.well-known/cocoon/"), "{request}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsafe_or_missing_wallet_pays_nothing() {
    let world = World::new().await;
    assert_exit(&world.chat("policy.toml", &[]).await, 30);
    world.new_wallet().await;
    fs::set_permissions(world.path("wallet"), fs::Permissions::from_mode(0o644)).unwrap();
    let asked = world.chat("policy.toml", &[]).await;
    assert_exit(&asked, 30);
    assert!(String::from_utf8(asked.stderr).unwrap().contains("chmod 600"));
    fs::set_permissions(world.path("wallet"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(world.deposit().await["deployed"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cap_below_one_request_locks_nothing() {
    let world = World::new().await;
    world.new_wallet().await;
    let asked = world.chat("policy.toml", &["--max-ton", "0.01"]).await;
    assert_exit(&asked, 30);
    assert!(String::from_utf8(asked.stderr).unwrap().contains("--max-ton"));
    assert_eq!(world.deposit().await["balance_nano"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_contract_that_is_not_compiled_in_is_not_paid() {
    let mut world = World::new().await;
    world.new_wallet().await;
    let guest = Guest::boot_with(&world.platform, 1, |launch| {
        launch.settlement.contract_code.depth += 1;
    });
    fs::write(world.path("policy.toml"), guest.policy().to_toml()).unwrap();
    world.node = Node::honest(guest).await;
    let asked = world.chat("policy.toml", &[]).await;
    assert_exit(&asked, 30);
    assert!(String::from_utf8(asked.stderr).unwrap().contains("contract code"));
    assert_eq!(world.deposit().await["balance_nano"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_simulated_guest_gets_no_real_coins() {
    let mut world = World::new().await;
    world.new_wallet().await;
    let guest = Guest::boot_with(&world.platform, 1, |launch| {
        launch.settlement.network = cocoon_protocol::NetworkId::TESTNET;
    });
    fs::write(world.path("policy.toml"), guest.policy().to_toml()).unwrap();
    world.node = Node::honest(guest).await;
    let asked = world.chat("policy.toml", &[]).await;
    assert_exit(&asked, 30);
    assert!(String::from_utf8(asked.stderr).unwrap().contains("SIMULATED"));
}
