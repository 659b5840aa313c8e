//! The whole way with a real guest: boot, verify, ask, pay, settle. One boot, many claims.

use cocoon_e2e::{Image, Node, describe, eventually};
use cocoon_protocol::{SignedReceipt, host::UsageRecord};
use cocoon_settlement::ChainError;

#[test]
fn a_guest_is_booted_verified_asked_and_paid() {
    let Some(image) = Image::from_env() else { return };
    let node = Node::configure(&image);
    node.up_and_serving();
    let before = node.balance_nano();

    let verified = node.verify("policy.toml");
    assert!(verified.status.success(), "{}", describe(&verified));
    let table = String::from_utf8_lossy(&verified.stdout);
    for row in ["MRTD", "RTMR0", "RTMR1", "RTMR2", "RTMR3", "SIMULATED"] {
        assert!(table.contains(row), "no {row} in\n{table}");
    }
    assert!(!table.contains("FAIL"), "{table}");

    let answer = node.chat("What is Cocoon?");
    assert!(answer.status.success(), "{}", describe(&answer));
    assert!(!answer.stdout.is_empty());
    let receipt = receipt(&node).receipt;
    assert!(
        receipt.tokens.input > 0 && receipt.tokens.output > 0,
        "{receipt:?}"
    );

    eventually("the voucher is settled", || node.balance_nano() > before);
    let after = node.balance_nano();
    let earned = after - before;
    assert!(
        earned <= receipt.served_nano,
        "earned {earned}, served {}",
        receipt.served_nano
    );
    assert!(
        earned * 10 > receipt.served_nano * 8,
        "gas took more than a fifth: {earned} of {}",
        receipt.served_nano
    );

    replayed_voucher_moves_nothing(&node, after);
    a_policy_with_a_foreign_root_is_refused(&image, &node);
    a_policy_for_other_firmware_is_refused(&node);
    more_than_there_is_cannot_be_locked(&node);

    let down = node.down();
    assert!(down.status.success(), "{}", describe(&down));
    assert_eq!(
        node.processes(),
        Vec::<String>::new(),
        "something is left running"
    );
}

/// The contract's exit code for a voucher that does not raise what is settled.
const EXIT_RAISE: i32 = 214;

/// The host keeps the voucher and sends it to the contract once more.
fn replayed_voucher_moves_nothing(node: &Node, balance: u64) {
    let record: UsageRecord = node.records().pop().expect("a record in the journal");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let config =
        cocoon_settlement::GlobalConfig::load(node.path("state/global.config.json")).expect("the config");
    let contract = record.voucher.voucher.contract;
    runtime.block_on(async {
        let network = cocoon_protocol::NetworkId::LOCAL;
        let chain = cocoon_settlement::ChainClient::connect(&config, network)
            .await
            .expect("the chain");
        let deposit = chain.balance(&contract).await.expect("its balance");
        let replayed = chain.submit(&record.voucher).await;
        assert!(
            matches!(
                replayed,
                Err(ChainError::Refused {
                    exit_code: Some(EXIT_RAISE),
                    ..
                })
            ),
            "{replayed:?}"
        );
        assert_eq!(
            chain.balance(&contract).await.expect("its balance"),
            deposit,
            "the replay burnt gas"
        );
    });
    assert_eq!(node.balance_nano(), balance);
}

/// The policy of an image with other firmware: the same in all but MRTD.
fn a_policy_for_other_firmware_is_refused(node: &Node) {
    let policy = std::fs::read_to_string(node.path("policy.toml")).expect("the policy");
    let start = policy.find("mrtd").expect("a policy names MRTD");
    let digit = start + policy[start..].find('"').expect("its value") + 1;
    let other = if policy[digit..].starts_with('0') {
        "1"
    } else {
        "0"
    };
    let wrong = [&policy[..digit], other, &policy[digit + 1..]].concat();
    std::fs::write(node.path("wrong.toml"), wrong).expect("writing the policy");
    refused(node, "wrong.toml", 10);
}

/// A root made elsewhere, by a provider who runs the same simulator.
fn a_policy_with_a_foreign_root_is_refused(image: &Image, node: &Node) {
    let stranger = Node::configure(image);
    std::fs::copy(stranger.path("policy.toml"), node.path("foreign.toml")).expect("copying the policy");
    refused(node, "foreign.toml", 11);
}

/// Neither verified nor served.
fn refused(node: &Node, policy: &str, exit_code: i32) {
    let records = node.records().len();
    for output in [node.verify(policy), node.chat_with(policy, "What is Cocoon?")] {
        assert_eq!(output.status.code(), Some(exit_code), "{}", describe(&output));
    }
    assert_eq!(node.records().len(), records, "something was served");
}

/// The local chain's giver hands out at most 1000 TON.
fn more_than_there_is_cannot_be_locked(node: &Node) {
    std::fs::remove_file(node.path("wallet")).expect("removing the wallet");
    let records = node.records().len();
    let mut command = node.chat_command("policy.toml", "What is Cocoon?");
    let asked = command.args(["--max-ton", "5000"]).output().expect("cocoon runs");
    assert_eq!(asked.status.code(), Some(30), "{}", describe(&asked));
    assert!(asked.stdout.is_empty());
    assert_eq!(node.records().len(), records, "something was served");
}

fn receipt(node: &Node) -> SignedReceipt {
    let text = std::fs::read(node.path("receipt.json")).expect("chat wrote a receipt");
    serde_json::from_slice(&text).expect("the receipt is JSON")
}
