//! What a client accepts from a node, and what it refuses: each attack by name.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod node;

use std::time::Duration;

use cocoon::{
    CertificateFault, ChatError, ChatMessage, ChatOptions, ChatRole, ConnectError, Deadlines, ExchangeError,
    Exit, ReceiptFault, Record, Session, Step, Verifier, connect, connect_recorded,
};
use cocoon_evidence::{Digest48, ReportData};
use cocoon_simulator::SimulatedPlatform;
use cocoon_verify::{Expect, Floors, Policy, RefusalClass};
use ed25519_dalek::SigningKey;
use node::{ANSWER, ChatScript, DAY_S, Guest, Identity, Lie, Node, Reply, Script, TOKENS, Then, now_s};
use tokio::task::JoinSet;

const PROMPT: &str = "the-secret-prompt";
const OPTIONS: ChatOptions = ChatOptions {
    output_tokens_max: 16,
    temperature: 0.0,
};

fn prompt() -> [ChatMessage; 1] {
    [ChatMessage {
        role: ChatRole::User,
        content: PROMPT.into(),
    }]
}

fn platform() -> SimulatedPlatform {
    let dir = tempfile::tempdir().unwrap();
    SimulatedPlatform::open_or_create(dir.path(), now_s()).unwrap()
}

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

    let owner = SigningKey::from_bytes(&[9; 32]);
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

const ASKED_FIRST: [&str; 1] = ["GET /.well-known/cocoon/certificate-evidence"];

/// Of 200 bytes of evidence that are announced, 100 come.
fn half_of_it(then: Then) -> Lie {
    Lie {
        to: ASKED_FIRST[0],
        after_the_truth: false,
        bytes: [
            b"HTTP/1.1 200 OK\r\ncontent-length: 200\r\n\r\n".as_slice(),
            &[7; 100],
        ]
        .concat(),
        then,
    }
}

#[tokio::test]
async fn evidence_named_by_digest_is_fetched_first_judged_and_kept() {
    let mut guest = Guest::boot(&platform(), 1);
    let (policy, identity) = (guest.policy(), named(&mut guest));
    let node = Node::serve(guest, &identity, Script::default()).await;
    let deadlines = Deadlines::default();
    let (record, session) =
        connect_recorded(&node.endpoint, &policy, Floors::default(), now_s(), &deadlines).await;
    assert!(session.unwrap().verification().certificate.is_accepted());
    let asked = node.requests();
    assert_eq!(
        (&asked[..1], asked.len()),
        (&ASKED_FIRST.map(String::from)[..], 3)
    );

    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("saved");
    record.unwrap().save(&saved).unwrap();
    let judge = || Record::load(&saved).unwrap().judge(&policy, Floors::default());
    judge().unwrap();
    let file = saved.join("certificate-evidence.cbor");
    let mut evidence = std::fs::read(&file).unwrap();
    evidence[100] ^= 1;
    std::fs::write(&file, evidence).unwrap();
    assert!(matches!(
        judge().unwrap_err(),
        ConnectError::Certificate(CertificateFault::OtherEvidence { .. })
    ));
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(judge().unwrap_err(), ConnectError::Incomplete));
}

#[tokio::test]
async fn a_proven_key_costs_no_fetch_of_its_evidence() {
    let mut guest = Guest::boot(&platform(), 1);
    let (policy, identity) = (guest.policy(), named(&mut guest));
    let node = Node::serve(guest, &identity, Script::default()).await;
    let verifier = Verifier::new(policy, Floors::default(), Deadlines::default()).unwrap();
    verifier.connect(&node.endpoint).await.unwrap();
    let cold = node.requests().len();
    verifier.connect(&node.endpoint).await.unwrap();
    assert_eq!(node.requests().len(), cold);
}

/// Genuine evidence, but not what the certificate names: of another guest, or of this one made anew.
#[tokio::test]
async fn other_evidence_than_the_certificate_names_is_refused_before_anything_else_is_asked() {
    let platform = platform();
    let mut guest = Guest::boot(&platform, 1);
    let policy = guest.policy();
    let identity = named(&mut guest);
    for other in [&mut Guest::boot(&platform, 2), &mut Guest::boot(&platform, 1)] {
        let bundle = other.bundle(ReportData([7; 64])).encode();
        let script = Script {
            named_evidence: Reply::Bytes(bundle),
            ..Script::default()
        };
        let node = Node::serve(Guest::boot(&platform, 1), &identity, script).await;
        let error = dial(&node, &policy).await.unwrap_err();
        assert!(
            matches!(
                error,
                ConnectError::Certificate(CertificateFault::OtherEvidence { .. })
            ),
            "{error:?}"
        );
        assert_eq!(Exit::from(&error), Exit::Channel);
        assert_eq!(node.requests(), ASKED_FIRST);
    }
}

#[tokio::test]
async fn named_evidence_that_lies_about_its_lengths_is_refused() {
    type Lie = fn(&mut Vec<u8>);
    let lies: [Lie; 3] = [
        |evidence| evidence.truncate(900),
        |evidence| evidence.push(0),
        // The quote, a byte string of two length bytes, announces more than follows.
        |evidence| evidence[5..7].fill(0xff),
    ];
    for lie in lies {
        let (error, node) = refused(Script::default(), |guest| Identity::by_digest(guest, lie)).await;
        assert!(
            matches!(
                error,
                ConnectError::Certificate(CertificateFault::NamedEvidence(_))
            ),
            "{error:?}"
        );
        assert_eq!(node.requests(), ASKED_FIRST);
    }
    let half = Script {
        lie: Some(half_of_it(Then::Close)),
        ..Script::default()
    };
    let (error, node) = refused(half, named).await;
    assert!(
        matches!(error, ConnectError::Exchange(ExchangeError::Broken { .. })),
        "{error:?}"
    );
    let received = String::from_utf8(node.received()).unwrap();
    assert!(received.starts_with(ASKED_FIRST[0]), "{received}");
    assert_eq!(received.matches(" HTTP/1.1\r\n").count(), 1, "{received}");
}

#[tokio::test]
async fn named_evidence_that_is_not_given_is_no_evidence() {
    let script = Script {
        named_evidence: Reply::Error,
        ..Script::default()
    };
    let (error, node) = refused(script, named).await;
    assert!(
        matches!(
            error,
            ConnectError::Exchange(ExchangeError::Status {
                step: Step::NamedEvidence,
                status: 500,
                ..
            })
        ),
        "{error:?}"
    );
    assert_eq!(node.requests(), ASKED_FIRST);
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

async fn ask(chat: ChatScript) -> ChatError {
    let mut guest = Guest::boot(&platform(), 1);
    let (policy, identity) = (guest.policy(), honest(&mut guest));
    let script = Script {
        chat,
        ..Script::default()
    };
    let node = Node::serve(guest, &identity, script).await;
    let mut session = dial(&node, &policy).await.unwrap();
    let owner = SigningKey::from_bytes(&[9; 32]);
    let grant = session.offer(&node.grant(&owner), &owner).await.unwrap();
    session
        .open(grant)
        .chat(&prompt(), OPTIONS, |_| ())
        .await
        .unwrap_err()
}

#[tokio::test]
async fn a_forged_receipt_is_refused() {
    let forged = ask(ChatScript {
        forger: Some(SigningKey::from_bytes(&[8; 32])),
        ..ChatScript::default()
    });
    let error = forged.await;
    assert!(
        matches!(error, ChatError::Receipt(ReceiptFault::Signature)),
        "{error:?}"
    );
    assert_eq!(Exit::from(&error), Exit::Request);
}

#[tokio::test]
async fn a_receipt_for_another_text_is_refused() {
    let error = ask(ChatScript {
        other_text: true,
        ..ChatScript::default()
    })
    .await;
    assert!(
        matches!(error, ChatError::Receipt(ReceiptFault::Answer)),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_inflated_receipt_is_refused() {
    let error = ask(ChatScript {
        change: Some(|receipt| receipt.served_nano += 1),
        ..ChatScript::default()
    })
    .await;
    assert!(
        matches!(error, ChatError::Receipt(ReceiptFault::Amount { .. })),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_answer_without_receipt_is_not_taken_for_complete() {
    let error = ask(ChatScript {
        cut: true,
        ..ChatScript::default()
    })
    .await;
    assert!(matches!(error, ChatError::Cut), "{error:?}");
}

#[tokio::test]
async fn a_grant_of_somebody_else_is_not_taken() {
    let guest = Guest::boot(&platform(), 1);
    let policy = guest.policy();
    let node = Node::honest(guest).await;
    let mut session = dial(&node, &policy).await.unwrap();
    let (owner, thief) = (SigningKey::from_bytes(&[9; 32]), SigningKey::from_bytes(&[8; 32]));
    let error = session.offer(&node.grant(&owner), &thief).await.unwrap_err();
    assert!(
        matches!(error, ExchangeError::Status { status: 403, .. }),
        "{error:?}"
    );
}
