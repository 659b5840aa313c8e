//! Evidence that stands beside the certificate, which names it by its digest.

use cocoon::{
    CertificateFault, ConnectError, Deadlines, ExchangeError, Exit, Record, Step, Verifier, connect_recorded,
};
use cocoon_evidence::ReportData;
use cocoon_verify::Floors;

use crate::{
    dial, named,
    node::{Guest, Identity, Lie, Node, Reply, Script, Then, now_s, platform},
    refused,
};

const ASKED_FIRST: [&str; 1] = ["GET /.well-known/cocoon/certificate-evidence"];

/// Of 200 bytes of evidence that are announced, 100 come.
pub(crate) fn half_of_it(then: Then) -> Lie {
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
