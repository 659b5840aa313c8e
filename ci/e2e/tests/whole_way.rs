//! The whole way with a real guest: boot, verify, ask, pay, settle. One boot, many claims.

use std::{
    thread,
    time::{Duration, Instant},
};

use cocoon_e2e::{Image, Node, describe};
use cocoon_protocol::{SignedReceipt, host::UsageRecord};

/// The chain is local; a settlement takes well under a second once it is sent.
const SETTLEMENT_DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn a_guest_is_booted_verified_asked_and_paid() {
    let Some(image) = Image::from_env() else { return };
    let node = Node::configure(&image);
    node.up_and_serving();
    let before = balance_nano(&node);

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

    let after = wait_for(|| Some(balance_nano(&node)).filter(|after| *after > before));
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

    let down = node.down();
    assert!(down.status.success(), "{}", describe(&down));
    assert_eq!(
        node.processes(),
        Vec::<String>::new(),
        "something is left running"
    );
}

/// The host keeps the voucher and settles it once more. That the contract itself refuses the message is shown
/// by the settlement crate's own tests, which send it.
fn replayed_voucher_moves_nothing(node: &Node, balance: u64) {
    let record: UsageRecord = node.records().pop().expect("a record in the journal");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let config =
        cocoon_settlement::GlobalConfig::load(&node.path("state/global.config.json")).expect("the config");
    let contract = record.voucher.voucher.contract;
    runtime.block_on(async {
        let network = cocoon_protocol::NetworkId::LOCAL;
        let chain = cocoon_settlement::ChainClient::connect(&config, network)
            .await
            .expect("the chain");
        let deposit = chain.balance(&contract).await.expect("its balance");
        let state = chain
            .settle(&record.voucher)
            .await
            .expect("a settled voucher is no error");
        assert_eq!(state.served, record.voucher.voucher.served);
        assert_eq!(
            chain.balance(&contract).await.expect("its balance"),
            deposit,
            "the replay moved money"
        );
    });
    assert_eq!(balance_nano(node), balance);
}

/// A root made elsewhere, by a provider who runs the same simulator.
fn a_policy_with_a_foreign_root_is_refused(image: &Image, node: &Node) {
    let stranger = Node::configure(image);
    std::fs::copy(stranger.path("policy.toml"), node.path("foreign.toml")).expect("copying the policy");
    let verified = node.verify("foreign.toml");
    assert_eq!(verified.status.code(), Some(11), "{}", describe(&verified));
    let records = node.records().len();
    let asked = node.chat_with("foreign.toml", "What is Cocoon?");
    assert_eq!(asked.status.code(), Some(11), "{}", describe(&asked));
    assert!(asked.stdout.is_empty());
    assert_eq!(node.records().len(), records, "something was served");
}

fn receipt(node: &Node) -> SignedReceipt {
    let text = std::fs::read(node.path("receipt.json")).expect("chat wrote a receipt");
    serde_json::from_slice(&text).expect("the receipt is JSON")
}

fn balance_nano(node: &Node) -> u64 {
    node.status()["provider"]["balance_nano"]
        .as_u64()
        .expect("status tells the provider's balance")
}

fn wait_for<T>(mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SETTLEMENT_DEADLINE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(
            Instant::now() < deadline,
            "nothing was settled within {SETTLEMENT_DEADLINE:?}"
        );
        thread::sleep(Duration::from_millis(200));
    }
}
