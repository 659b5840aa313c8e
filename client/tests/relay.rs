//! A man in the middle, and a host that lies about time: evidence that is genuine, but of another session, another
//! guest or another day.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod node;

use cocoon::{CertificateFault, ConnectError, Deadlines, Exit, Leaf, Verifier, connect};
use cocoon_evidence::{CertifiedEvidence, Digest32, Endorsements, FreshBinding, FreshTree};
use cocoon_simulator::COLLATERAL_LIFETIME_S;
use cocoon_verify::{Floors, RefusalClass};
use node::{DAY_S, Guest, Identity, Node, Reply, Script, now_s, platform};
use rustls::HandshakeKind;

fn honest(guest: &mut Guest) -> Identity {
    Identity::of(guest, -60, DAY_S - 60)
}

/// Connects to a node that is not let in, and got nothing but requests for evidence.
async fn refused(guest: Guest, identity: &Identity, script: Script) -> ConnectError {
    let policy = guest.policy();
    let node = Node::serve(guest, identity, script).await;
    let deadlines = Deadlines::default();
    let error = connect(&node.endpoint, &policy, Floors::default(), now_s(), &deadlines)
        .await
        .unwrap_err();
    for request in node.requests() {
        assert!(request.contains(" /.well-known/cocoon/"), "{request}");
    }
    error
}

#[track_caller]
fn assert_refused(error: &ConnectError, class: RefusalClass, exit: Exit) {
    match error {
        ConnectError::Refused { refusal, .. } => assert_eq!(refusal.class, class, "{error}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(Exit::from(error), exit);
}

/// The node's guest is one that the policy accepts, and holds its TLS key; what it answers for fresh evidence is made
/// by `change` out of what the client asked for.
async fn refused_fresh(change: impl Fn(&mut FreshBinding<'_>) + Send + Sync + 'static) -> ConnectError {
    let mut guest = Guest::boot(&platform(), 1);
    let identity = honest(&mut guest);
    let script = Script {
        fresh: Some(Box::new(move |guest, mut asked| {
            change(&mut asked);
            guest.fresh(&asked)
        })),
        ..Script::default()
    };
    refused(guest, &identity, script).await
}

/// He asks the genuine guest for a quote over the client's nonce. The guest signs it for the session with him, which
/// has another exporter than the client's session with him.
#[tokio::test]
async fn a_quote_that_a_man_in_the_middle_fetched_is_for_his_session() {
    let error = refused_fresh(|asked| asked.exporter = &[7; 32]).await;
    assert_refused(&error, RefusalClass::Channel, Exit::Channel);
}

#[tokio::test]
async fn a_quote_for_another_certificate_is_refused() {
    let error = refused_fresh(|asked| asked.certificate = Digest32::of(b"another certificate")).await;
    assert_refused(&error, RefusalClass::Channel, Exit::Channel);
}

#[tokio::test]
async fn a_quote_that_somebody_else_asked_for_is_refused() {
    let error = refused_fresh(|asked| asked.nonce = &[7; 32]).await;
    assert_refused(&error, RefusalClass::Channel, Exit::Channel);
}

/// What the client knows already proves nothing new, however it is wrapped.
#[tokio::test]
async fn the_certificates_own_evidence_reflected_as_fresh_is_refused() {
    let mut guest = Guest::boot(&platform(), 1);
    let identity = honest(&mut guest);
    let now = i64::try_from(now_s()).unwrap();
    let CertifiedEvidence::Carried(known) = Leaf::parse(&identity.certificate, now).unwrap().evidence else {
        panic!("the certificate carries its evidence");
    };
    let script = Script {
        fresh: Some(Box::new(move |_, asked| {
            let tree = FreshTree::new(&[asked.leaf()]).unwrap();
            tree.answer(0, known.clone())
        })),
        ..Script::default()
    };
    let error = refused(guest, &identity, script).await;
    assert_refused(&error, RefusalClass::Channel, Exit::Channel);
}

/// The guest takes the time from its host.
#[tokio::test]
async fn a_host_that_lies_about_time_is_refused() {
    let ahead = (DAY_S, 2 * DAY_S - 60);
    let behind = (-2 * DAY_S, -DAY_S - 60);
    for (from_s, to_s) in [ahead, behind] {
        let mut guest = Guest::boot(&platform(), 1);
        let identity = Identity::of(&mut guest, from_s, to_s);
        let error = refused(guest, &identity, Script::default()).await;
        assert!(
            matches!(error, ConnectError::Certificate(CertificateFault::Expired { .. })),
            "{error:?}"
        );
        assert_eq!(Exit::from(&error), Exit::Freshness);
    }
    let mut guest = Guest::boot(&platform(), 1);
    let for_ever = Identity::of(&mut guest, -60, 10_000 * DAY_S);
    let error = refused(guest, &for_ever, Script::default()).await;
    assert!(
        matches!(
            error,
            ConnectError::Certificate(CertificateFault::TooLongLived { .. })
        ),
        "{error:?}"
    );
    assert_eq!(Exit::from(&error), Exit::Channel);
}

/// The host hands the endorsements on, and would rather hand on those from before a hole was known.
#[tokio::test]
async fn endorsements_of_last_month_are_refused() {
    let platform = platform();
    let mut guest = Guest::boot(&platform, 1);
    let identity = honest(&mut guest);
    let then_s = now_s() - COLLATERAL_LIFETIME_S - 60;
    let old = Endorsements::of_tdx(platform.collateral(then_s).unwrap());
    let script = Script {
        endorsements: Reply::Bytes(old.encode()),
        ..Script::default()
    };
    let error = refused(guest, &identity, script).await;
    assert_refused(&error, RefusalClass::Freshness, Exit::Freshness);
}

/// The node offers tickets, as TLS servers do; a session resumed from one would have no evidence.
#[tokio::test]
async fn a_guest_that_offers_tickets_gets_a_full_handshake_each_time() {
    let guest = Guest::boot(&platform(), 1);
    let verifier = Verifier::new(guest.policy(), Floors::default(), Deadlines::default()).unwrap();
    let node = Node::honest(guest).await;
    for connections in 1..=3 {
        verifier.connect(&node.endpoint).await.unwrap();
        // The client is through before the node is.
        while node.handshakes().len() < connections {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(node.handshakes(), [HandshakeKind::Full; 3]);
}
