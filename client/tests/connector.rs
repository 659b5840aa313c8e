//! Keys that are remembered: when a quote is asked for, and when possession of a key suffices.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod node;
#[path = "../../measurements/verify/tests/simulated_vendor/mod.rs"]
mod simulated_vendor;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use cocoon::{
    Accepted, ConnectError, Connector, ConnectorError, Deadlines, Exit, PROOFS_MAX, Seen, SeenError, Session,
    Verifier,
};
use cocoon_evidence::{Digest48, Endorsements};
use cocoon_simulator::{SIMULATED_TCB_EVALUATION_NUMBER, SimulatedPlatform};
use cocoon_verify::{Expect, Floors, Policy, RefusalClass};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode};
use hyper_util::{
    client::legacy::{Client, Error},
    rt::TokioExecutor,
};
use node::{DAY_S, Guest, Identity, Node, Reply, Script, now_s, platform};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

const QUOTE: &str = "POST /.well-known/cocoon/evidence";

fn verifier(policy: Policy) -> Arc<Verifier> {
    Arc::new(Verifier::new(policy, Floors::default(), Deadlines::default()).unwrap())
}

fn quotes(node: &Node) -> usize {
    node.requests().iter().filter(|line| *line == QUOTE).count()
}

fn wrong_policy(guest: &Guest) -> Policy {
    let mut terms = guest.policy_terms();
    terms.tdx_mut().unwrap().registers.rtmr2 = Expect::exact(Digest48::of(b"another command line"));
    Policy::new(terms).unwrap()
}

#[tokio::test]
async fn a_proven_key_needs_no_second_quote() {
    let guest = Guest::boot(&platform(), 1);
    let verifier = verifier(guest.policy());
    let node = Node::honest(guest).await;
    let first = verifier.connect(&node.endpoint).await.unwrap();
    let second = verifier.connect(&node.endpoint).await.unwrap();
    assert!(Arc::ptr_eq(first.proof(), second.proof()));
    assert_eq!(quotes(&node), 1);
}

#[tokio::test]
async fn many_first_contacts_at_once_cost_one_quote() {
    let guest = Guest::boot(&platform(), 1);
    let verifier = verifier(guest.policy());
    let node = Node::honest(guest).await;
    let connect = |_| {
        let (verifier, endpoint) = (verifier.clone(), node.endpoint.clone());
        tokio::spawn(async move { verifier.connect(&endpoint).await })
    };
    let tasks: Vec<_> = (0..16).map(connect).collect();
    for task in tasks {
        let session: Session = task.await.unwrap().unwrap();
        assert!(session.guest().is_simulated());
    }
    assert_eq!(quotes(&node), 1);
}

#[tokio::test]
async fn a_new_key_is_proven_anew() {
    let platform = platform();
    let mut guest = Guest::boot(&platform, 1);
    let verifier = verifier(guest.policy());
    let rotated = Identity::of(&mut guest, -60, DAY_S - 60);
    let before = Node::honest(guest).await;
    let after = Node::serve(Guest::boot(&platform, 1), &rotated, Script::default()).await;
    verifier.connect(&before.endpoint).await.unwrap();
    verifier.connect(&after.endpoint).await.unwrap();
    assert_eq!((quotes(&before), quotes(&after)), (1, 1));
    assert_eq!(verifier.proofs().len(), 2);
}

#[tokio::test]
async fn a_remembered_certificate_without_its_key_is_refused() {
    let platform = platform();
    let mut guest = Guest::boot(&platform, 1);
    let verifier = verifier(guest.policy());
    let identity = Identity::of(&mut guest, -60, DAY_S - 60);
    let thief = Node::serve(
        Guest::boot(&platform, 1),
        &Identity::stolen(&identity),
        Script::default(),
    )
    .await;
    let node = Node::serve(guest, &identity, Script::default()).await;
    verifier.connect(&node.endpoint).await.unwrap();
    let error = verifier.connect(&thief.endpoint).await.unwrap_err();
    assert!(matches!(error, ConnectError::Handshake(_)), "{error:?}");
    assert!(thief.received().is_empty());
}

#[tokio::test]
async fn what_was_refused_is_not_remembered() {
    let guest = Guest::boot(&platform(), 1);
    let verifier = verifier(wrong_policy(&guest));
    let node = Node::honest(guest).await;
    for _ in 0..2 {
        let error = verifier.connect(&node.endpoint).await.unwrap_err();
        assert!(matches!(error, ConnectError::Refused { .. }), "{error:?}");
    }
    assert!(verifier.proofs().is_empty());
}

/// The host would rather hand on those from before a hole was known, which have not expired yet.
#[tokio::test]
async fn older_endorsements_than_a_running_program_accepted_are_refused() {
    let state = tempfile::tempdir().unwrap();
    let platform = SimulatedPlatform::open_or_create(state.path(), now_s()).unwrap();
    let collateral = platform.collateral(now_s()).unwrap();
    let newer = ["tcb_info", "qe_identity"]
        .iter()
        .fold(collateral, |collateral, document| {
            let signer = (state.path(), "tcb-signing.key");
            simulated_vendor::signed_again(signer, &collateral, document, |document| {
                document["tcbEvaluationDataNumber"] = json!(SIMULATED_TCB_EVALUATION_NUMBER + 1);
            })
        });
    let (newer, is_first) = (Endorsements::of_tdx(newer).encode(), AtomicBool::new(true));
    let endorsements = move |older| match is_first.swap(false, Ordering::Relaxed) {
        true => newer.clone(),
        false => older,
    };
    let script = Script {
        endorsements: Reply::Changed(Box::new(endorsements)),
        ..Script::default()
    };
    let guest = Guest::boot(&platform, 1);
    let policy = guest.policy();
    let (seen, file) = (Seen::at(state.path().join("seen.json")), Path::new("policy.toml"));
    let accepted = Accepted::remembered(Floors::default(), seen.clone(), file.into());
    let new_verifier = || Verifier::new(policy.clone(), accepted.clone(), Deadlines::default()).unwrap();
    let (verifier, other) = (new_verifier(), new_verifier());
    let node = Node::scripted(guest, script).await;
    verifier.connect(&node.endpoint).await.unwrap();
    // The next program knows, though this one still runs.
    let floors = seen.floors(&policy, file).unwrap();
    assert_eq!(floors.tcb_evaluation_number, SIMULATED_TCB_EVALUATION_NUMBER + 1);
    // Another key, which is proven anew.
    node.rotate();
    for verifier in [&verifier, &other] {
        let error = verifier.connect(&node.endpoint).await.unwrap_err();
        assert!(
            matches!(&error, ConnectError::Refused { refusal, .. } if refusal.class == RefusalClass::Tcb),
            "{error:?}"
        );
    }
}

/// A proxy runs for weeks; what another program of the same user accepts meanwhile holds for it, too.
#[tokio::test]
async fn what_another_program_has_ruled_out_since_is_not_accepted() {
    let state = tempfile::tempdir().unwrap();
    let guest = Guest::boot(&platform(), 1);
    let path = state.path().join("seen.json");
    let accepted = Accepted::remembered(Floors::default(), Seen::at(path.clone()), "policy.toml".into());
    let verifier = Verifier::new(guest.policy(), accepted, Deadlines::default()).unwrap();
    let node = Node::honest(guest).await;
    verifier.connect(&node.endpoint).await.unwrap();
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for numbers in ["policies", "tcb_evaluation"] {
        let mut raised = written.clone();
        let number = raised[numbers]
            .as_object_mut()
            .unwrap()
            .values_mut()
            .next()
            .unwrap();
        *number = json!(number.as_u64().unwrap() + 1);
        std::fs::write(&path, raised.to_string()).unwrap();
        node.rotate();
        let error = verifier.connect(&node.endpoint).await.unwrap_err();
        assert!(
            matches!(error, ConnectError::Seen(SeenError::Older { .. })),
            "{error:?}"
        );
        assert_eq!(Exit::from(&error), Exit::Policy);
    }
    std::fs::write(&path, written.to_string()).unwrap();
    node.rotate();
    verifier.connect(&node.endpoint).await.unwrap();
}

/// A later program could be shown older endorsements otherwise.
#[tokio::test]
async fn what_cannot_be_remembered_is_not_accepted() {
    let state = tempfile::tempdir().unwrap();
    let guest = Guest::boot(&platform(), 1);
    let path = state.path().join("seen.json");
    std::fs::write(&path, "{").unwrap();
    let accepted = Accepted::remembered(Floors::default(), Seen::at(path.clone()), "policy.toml".into());
    let verifier = Verifier::new(guest.policy(), accepted, Deadlines::default()).unwrap();
    let node = Node::honest(guest).await;
    let error = verifier.connect(&node.endpoint).await.unwrap_err();
    assert!(matches!(error, ConnectError::Seen(_)), "{error:?}");
    assert_eq!(Exit::from(&error), Exit::Usage);
    assert!(verifier.proofs().is_empty());
    // Once it can, the node is asked again.
    std::fs::remove_file(path).unwrap();
    verifier.connect(&node.endpoint).await.unwrap();
}

#[tokio::test]
async fn the_cache_of_proofs_is_bounded() {
    let platform = platform();
    let verifier = verifier(Guest::boot(&platform, 1).policy());
    for _ in 0..=PROOFS_MAX {
        let node = Node::honest(Guest::boot(&platform, 1)).await;
        verifier.connect(&node.endpoint).await.unwrap();
    }
    assert_eq!(verifier.proofs().len(), PROOFS_MAX);
}

#[tokio::test]
async fn nothing_leaves_once_the_proof_has_expired() {
    let mut guest = Guest::boot(&platform(), 1);
    let verifier = verifier(guest.policy());
    let identity = Identity::of(&mut guest, -60, 3);
    let node = Node::serve(guest, &identity, Script::default()).await;
    let mut stream = verifier.connect_stream(&node.endpoint).await.unwrap();
    while now_s() < stream.proof().until_s() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let error = stream.write_all(b"POST /v1/secret").await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
    let received = String::from_utf8_lossy(&node.received()).into_owned();
    assert!(!received.contains("/v1/"), "{received}");
    // The certificate is as old for whoever connects again.
    let again = verifier.connect(&node.endpoint).await.unwrap_err();
    assert!(matches!(again, ConnectError::Certificate(_)), "{again:?}");
}

async fn get(verifier: Arc<Verifier>, url: String) -> Result<(StatusCode, Bytes), Error> {
    let client = Client::builder(TokioExecutor::new()).build(Connector::new(verifier));
    let request = Request::get(url).body(Full::<Bytes>::default()).unwrap();
    let response = client.request(request).await?;
    let status = response.status();
    Ok((status, response.into_body().collect().await.unwrap().to_bytes()))
}

#[tokio::test]
async fn a_program_with_hyper_util_speaks_to_a_verified_guest() {
    let guest = Guest::boot(&platform(), 1);
    let verifier = verifier(guest.policy());
    let node = Node::honest(guest).await;
    let (status, body) = get(verifier, format!("{}/v1/models", node.endpoint))
        .await
        .unwrap();
    assert_eq!(status, StatusCode::OK);
    assert!(String::from_utf8_lossy(&body).contains("cocoon-demo"));
    assert_eq!(quotes(&node), 1);
}

#[tokio::test]
async fn a_program_with_hyper_util_sends_nothing_to_a_refused_guest() {
    let guest = Guest::boot(&platform(), 1);
    let verifier = verifier(wrong_policy(&guest));
    let node = Node::honest(guest).await;
    let error = get(verifier, format!("{}/v1/models", node.endpoint))
        .await
        .unwrap_err();
    let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<ConnectorError>());
    assert!(
        matches!(cause, Some(ConnectorError::Connect(ConnectError::Refused { .. }))),
        "{error:?}"
    );
    assert!(!node.requests().iter().any(|line| line.contains("/v1/")));
}
