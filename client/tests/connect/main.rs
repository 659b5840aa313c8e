//! What a client accepts from a node, and what it refuses: each attack by name.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "../node/mod.rs"]
mod node;

mod named_evidence;
mod receipts;

use std::time::Duration;

use cocoon::{CertificateFault, ConnectError, Deadlines, ExchangeError, Exit, Session, Step, connect};
use cocoon_evidence::Digest48;
use cocoon_verify::{Expect, Floors, Policy, RefusalClass};
use node::{
    ANSWER, DAY_S, Guest, Identity, Node, OPTIONS, PROMPT, Reply, Script, TOKENS, Then, now_s, owner,
    platform, prompt,
};
use tokio::task::JoinSet;

use crate::named_evidence::half_of_it;

async fn dial(node: &Node, policy: &Policy) -> Result<Session, ConnectError> {
    connect(
        &node.endpoint,
        policy,
        Floors::default(),
        now_s(),
        &Deadlines::default(),
    )
    .await
}

/// For a step that is known to stall. Exchanges before it have to be through by then, on a busy machine, too.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// Nothing but requests for evidence came out of TLS.
fn assert_sent_nothing(node: &Node) {
    for request in node.requests() {
        assert!(request.contains(" /.well-known/cocoon/"), "{request}");
    }
    let received = node.received();
    let text = String::from_utf8_lossy(&received);
    assert!(!text.contains("/v1/"), "{text}");
    assert!(!text.contains(PROMPT));
}

async fn refused(script: Script, identity: impl FnOnce(&mut Guest) -> Identity) -> (ConnectError, Node) {
    let mut guest = Guest::boot(&platform(), 1);
    let policy = guest.policy();
    let identity = identity(&mut guest);
    let node = Node::serve(guest, &identity, script).await;
    let error = dial(&node, &policy).await.unwrap_err();
    assert_sent_nothing(&node);
    (error, node)
}

fn honest(guest: &mut Guest) -> Identity {
    Identity::of(guest, -60, DAY_S - 60)
}

/// With its evidence by digest.
fn named(guest: &mut Guest) -> Identity {
    Identity::by_digest(guest, |_| ())
}

#[track_caller]
fn assert_class(error: &ConnectError, class: RefusalClass, exit: Exit) {
    match error {
        ConnectError::Refused { refusal, .. } => assert_eq!(refusal.class, class, "{error}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(Exit::from(error), exit);
}

#[tokio::test]
async fn a_verified_node_answers_with_a_true_receipt() {
    let guest = Guest::boot(&platform(), 1);
    let (policy, usage_key) = (guest.policy(), guest.usage_key.verifying_key().to_bytes());
    let node = Node::honest(guest).await;
    let mut session = dial(&node, &policy).await.unwrap();
    assert_eq!(session.guest().usage_key(), &usage_key);
    assert!(session.guest().is_simulated());
    assert!(session.verification().fresh.as_ref().unwrap().is_accepted());
    assert_sent_nothing(&node);

    let owner = owner();
    let grant = session.offer(&node.grant(&owner), &owner).await.unwrap();
    assert_eq!(grant.standing().left_nano(), 1_000_000_000);
    let mut paid = session.open(grant);
    let mut streamed = String::new();
    for requests in 1..=2 {
        streamed.clear();
        let answer = paid
            .chat(&prompt(), OPTIONS, |text| streamed.push_str(text))
            .await
            .unwrap();
        assert_eq!(answer.text, ANSWER.concat());
        assert_eq!(streamed, answer.text);
        assert_eq!(answer.amount_nano, 34_000_000);
        assert_eq!(answer.receipt.receipt.served.output, TOKENS.output * requests);
    }
    assert_eq!(paid.standing().served_nano, 68_000_000);
}

#[tokio::test]
async fn a_wrong_policy_sends_nothing() {
    let guest = Guest::boot(&platform(), 1);
    let mut terms = guest.policy_terms();
    terms.tdx_mut().unwrap().registers.rtmr2 = Expect::exact(Digest48::of(b"another command line"));
    let node = Node::honest(guest).await;
    let error = dial(&node, &Policy::new(terms).unwrap()).await.unwrap_err();
    assert_class(&error, RefusalClass::Policy, Exit::Policy);
    assert_eq!(node.requests(), ["GET /.well-known/cocoon/endorsements"]);
    assert_sent_nothing(&node);
}

#[tokio::test]
async fn a_platform_below_the_wanted_security_version_is_refused() {
    let guest = Guest::boot(&platform(), 1);
    let mut terms = guest.policy_terms();
    terms.tdx_mut().unwrap().tcb.evaluation_number_min += 1;
    let node = Node::honest(guest).await;
    let error = dial(&node, &Policy::new(terms).unwrap()).await.unwrap_err();
    assert_class(&error, RefusalClass::Tcb, Exit::Tcb);
    assert_sent_nothing(&node);
}

#[tokio::test]
async fn a_guest_that_hides_its_gpus_evidence_is_refused() {
    let guest = Guest::boot_with_hidden_gpu(&platform());
    let policy = guest.policy();
    let node = Node::honest(guest).await;
    let error = dial(&node, &policy).await.unwrap_err();
    assert_class(&error, RefusalClass::Gpu, Exit::Gpu);
    assert_sent_nothing(&node);
}

#[tokio::test]
async fn a_foreign_root_is_refused() {
    let guest = Guest::boot(&platform(), 1);
    let policy = Guest::boot(&platform(), 1).policy();
    let node = Node::honest(guest).await;
    let error = dial(&node, &policy).await.unwrap_err();
    assert_class(&error, RefusalClass::Signature, Exit::Signature);
    assert_sent_nothing(&node);
}

#[tokio::test]
async fn relayed_evidence_under_another_tls_key_is_refused() {
    let (error, _) = refused(Script::default(), |guest| {
        Identity::with_evidence_of(&Identity::of(guest, -60, DAY_S - 60))
    })
    .await;
    assert_class(&error, RefusalClass::Channel, Exit::Channel);
}

#[tokio::test]
async fn replayed_fresh_evidence_is_refused() {
    let platform = platform();
    let mut guest = Guest::boot(&platform, 1);
    let policy = guest.policy();
    let identity = Identity::of(&mut guest, -60, DAY_S - 60);
    let first = Node::serve(guest, &identity, Script::default()).await;
    dial(&first, &policy).await.unwrap();
    let script = Script {
        evidence: Reply::Bytes(first.sent_evidence().remove(0)),
        ..Script::default()
    };
    let second = Node::serve(Guest::boot(&platform, 1), &identity, script).await;
    let error = dial(&second, &policy).await.unwrap_err();
    assert_class(&error, RefusalClass::Channel, Exit::Channel);
    assert_sent_nothing(&second);
}

#[tokio::test]
async fn fresh_evidence_of_another_guest_is_refused() {
    let platform = platform();
    let guest = Guest::boot(&platform, 1);
    let policy = guest.policy();
    let script = Script {
        evidence_guest: Some(Guest::boot(&platform, 2)),
        ..Script::default()
    };
    let node = Node::scripted(guest, script).await;
    let error = dial(&node, &policy).await.unwrap_err();
    assert!(matches!(error, ConnectError::AnotherGuest { .. }), "{error:?}");
    assert_eq!(Exit::from(&error), Exit::Channel);
    assert_sent_nothing(&node);
}

#[tokio::test]
async fn a_certificate_from_yesterday_is_refused() {
    let (error, node) = refused(Script::default(), |guest| Identity::of(guest, -2 * DAY_S, -DAY_S)).await;
    assert!(matches!(
        error,
        ConnectError::Certificate(CertificateFault::Expired { .. })
    ));
    assert_eq!(Exit::from(&error), Exit::Freshness);
    assert!(node.received().is_empty());
}

#[tokio::test]
async fn an_oversized_certificate_is_refused() {
    let (error, node) = refused(Script::default(), |_| Identity::oversized(40_000)).await;
    assert!(
        matches!(&error, ConnectError::CertificateForm(text) if text.contains("at most 32768")),
        "{error:?}"
    );
    assert_eq!(Exit::from(&error), Exit::Channel);
    assert!(node.received().is_empty());
}

#[tokio::test]
async fn oversized_endorsements_and_evidence_are_refused() {
    for step in [Step::NamedEvidence, Step::Endorsements, Step::Evidence] {
        let giant = || Reply::Bytes(vec![b' '; 1024 * 1024]);
        let mut script = Script::default();
        match step {
            Step::NamedEvidence => script.named_evidence = giant(),
            Step::Endorsements => script.endorsements = giant(),
            _ => script.evidence = giant(),
        }
        let (error, _) = refused(script, named).await;
        assert!(
            matches!(error, ConnectError::Exchange(ExchangeError::TooLarge { step: found, .. }) if found == step),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn garbage_for_fresh_evidence_is_refused() {
    let script = Script {
        evidence: Reply::Bytes(b"no evidence".to_vec()),
        ..Script::default()
    };
    let (error, _) = refused(script, honest).await;
    assert!(matches!(error, ConnectError::Evidence(_)), "{error:?}");
    assert_eq!(Exit::from(&error), Exit::Signature);
}

#[tokio::test]
async fn a_failing_node_cannot_write_to_the_terminal() {
    let script = Script {
        evidence: Reply::Error,
        ..Script::default()
    };
    let (error, _) = refused(script, honest).await;
    assert_eq!(Exit::from(&error), Exit::Unreachable);
    let text = error.to_string();
    assert!(text.contains("answered 500: out of quotes"), "{text}");
    assert!(!text.contains('\u{1b}'));
}

#[tokio::test]
async fn a_node_that_stalls_is_given_up() {
    type Stall = fn(&mut Script);
    let stalls: [(Step, Stall); 5] = [
        (Step::Handshake, |script| script.stall_handshake = true),
        (Step::NamedEvidence, |script| script.named_evidence = Reply::Stall),
        (Step::NamedEvidence, |script| {
            script.lie = Some(half_of_it(Then::Hold));
        }),
        (Step::Endorsements, |script| script.endorsements = Reply::Stall),
        (Step::Evidence, |script| script.evidence = Reply::Stall),
    ];
    let mut waiting = JoinSet::new();
    for (step, stall) in stalls {
        waiting.spawn(async move {
            let mut guest = Guest::boot(&platform(), 1);
            let (policy, identity) = (guest.policy(), named(&mut guest));
            let mut script = Script::default();
            stall(&mut script);
            let node = Node::serve(guest, &identity, script).await;
            let mut deadlines = Deadlines::default();
            match step {
                Step::Handshake => deadlines.handshake = STALLED_AFTER,
                _ => deadlines.exchange = STALLED_AFTER,
            }
            let error = connect(&node.endpoint, &policy, Floors::default(), now_s(), &deadlines)
                .await
                .unwrap_err();
            assert!(
                matches!(error, ConnectError::Exchange(ExchangeError::Stalled { step: found, .. }) if found == step),
                "{step}: {error:?}"
            );
            assert_eq!(Exit::from(&error), Exit::Unreachable);
            assert_sent_nothing(&node);
        });
    }
    waiting.join_all().await;
}

#[tokio::test]
async fn nobody_at_the_address_is_unreachable() {
    let guest = Guest::boot(&platform(), 1);
    let policy = guest.policy();
    let node = Node::honest(guest).await;
    let endpoint = node.endpoint.clone();
    drop(node);
    tokio::task::yield_now().await;
    let error = connect(
        &endpoint,
        &policy,
        Floors::default(),
        now_s(),
        &Deadlines::default(),
    )
    .await
    .unwrap_err();
    assert_eq!(Exit::from(&error), Exit::Unreachable, "{error:?}");
}

#[tokio::test]
async fn a_server_of_the_web_is_no_guest() {
    // An ordinary certificate without evidence: what any HTTPS server would show.
    let guest = Guest::boot(&platform(), 1);
    let policy = guest.policy();
    let identity = Identity::without_evidence();
    let node = Node::serve(guest, &identity, Script::default()).await;
    let error = dial(&node, &policy).await.unwrap_err();
    assert!(
        matches!(&error, ConnectError::CertificateForm(text) if text.contains("no evidence")),
        "{error:?}"
    );
    assert!(node.received().is_empty());
}
