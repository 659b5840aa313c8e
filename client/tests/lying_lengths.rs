//! Lengths that are not true: of HTTP bodies, chunks, heads and headers, of the evidence's parts and of whole
//! answers. Before the guest is verified they cost the client an error within its deadline, afterwards a request.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod node;

use std::time::Duration;

use cocoon::{ChatError, ConnectError, Deadlines, ExchangeError, Exit, Session, connect};
use cocoon_simulator::SimulatedPlatform;
use cocoon_verify::Floors;
use node::{Guest, Lie, Node, OPTIONS, Reply, Script, Then, now_s, owner, paid, platform, prompt};
use tokio::task::JoinSet;

const ENDORSEMENTS: &str = "GET /.well-known/cocoon/endorsements";
const EVIDENCE: &str = "POST /.well-known/cocoon/evidence";
const GRANT: &str = "POST /v1/cocoon/grant";
const CHAT: &str = "POST /v1/chat/completions";

/// Where the body does not end where its head says, and what keeps the client from waiting for ever.
const LIES: [(&str, &str, Then); 17] = [
    (
        "a body that never comes",
        "content-length: 100\r\n\r\n",
        Then::Hold,
    ),
    (
        "a body that breaks off",
        "content-length: 100\r\n\r\nabc",
        Then::Close,
    ),
    (
        "a body of 16 EiB",
        "content-length: 18446744073709551615\r\n\r\nabc",
        Then::Hold,
    ),
    (
        "a length over 64 bits",
        "content-length: 18446744073709551616\r\n\r\nabc",
        Then::Hold,
    ),
    ("a negative length", "content-length: -1\r\n\r\nabc", Then::Hold),
    (
        "a length that is no number",
        "content-length: 0x10\r\n\r\nabc",
        Then::Hold,
    ),
    (
        "two lengths",
        "content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        Then::Hold,
    ),
    (
        "a body of any length",
        "connection: close\r\n\r\n",
        Then::Flood(&[b' '; 4096]),
    ),
    (
        "a chunk that breaks off",
        "transfer-encoding: chunked\r\n\r\n10\r\nabc",
        Then::Close,
    ),
    (
        "a chunk that never comes",
        "transfer-encoding: chunked\r\n\r\n10\r\nabc",
        Then::Hold,
    ),
    (
        "a chunk of 16 EiB",
        "transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nabc",
        Then::Hold,
    ),
    (
        "a chunk over 64 bits",
        "transfer-encoding: chunked\r\n\r\n10000000000000000\r\nabc",
        Then::Hold,
    ),
    (
        "a chunk of negative size",
        "transfer-encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
        Then::Hold,
    ),
    (
        "a chunk longer than it says",
        "transfer-encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
        Then::Hold,
    ),
    (
        "chunks without end",
        "transfer-encoding: chunked\r\n\r\n",
        Then::Flood(b"4\r\n    \r\n"),
    ),
    (
        "a head without end",
        "x-one: 1\r\n",
        Then::Flood(b"x-more: 0123456789abcdef\r\n"),
    ),
    ("a header without end", "x-one: ", Then::Flood(&[b'x'; 4096])),
];

/// For lies that consist in waiting; all wait at once. What is true has to be through by then, on a busy machine, too.
fn short() -> Deadlines {
    let limit = Duration::from_secs(5);
    Deadlines {
        exchange: limit,
        first_text: limit,
        next_text: limit,
        answer: 3 * limit,
        ..Deadlines::default()
    }
}

async fn liar(platform: &SimulatedPlatform, script: Script) -> (Node, Result<Session, ConnectError>) {
    let guest = Guest::boot(platform, 1);
    let policy = guest.policy();
    let node = Node::scripted(guest, script).await;
    let session = connect(&node.endpoint, &policy, Floors::default(), now_s(), &short()).await;
    (node, session)
}

fn lie(to: &'static str, (_, head, then): (&str, &str, Then)) -> Script {
    let lie = Lie {
        to,
        after_the_truth: false,
        bytes: format!("HTTP/1.1 200 OK\r\n{head}").into_bytes(),
        then,
    };
    Script {
        lie: Some(lie),
        ..Script::default()
    }
}

#[track_caller]
fn assert_sent_nothing(node: &Node, what: &str) {
    let received = String::from_utf8_lossy(&node.received()).into_owned();
    assert!(!received.contains("/v1/"), "{what}: {received}");
}

/// Whoever answers before verification is anybody.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_lie_about_their_length_prove_nothing() {
    let (platform, mut told) = (platform(), JoinSet::new());
    for to in [ENDORSEMENTS, EVIDENCE] {
        for what in LIES {
            let platform = platform.clone();
            told.spawn(async move {
                let (node, session) = liar(&platform, lie(to, what)).await;
                let error = session.unwrap_err();
                let told = format!("{to}, {}: {error:?}", what.0);
                assert!(matches!(error, ConnectError::Exchange(_)), "{told}");
                assert_eq!(Exit::from(&error), Exit::Unreachable, "{told}");
                assert_sent_nothing(&node, &told);
            });
        }
    }
    told.join_all().await;
}

/// A genuine guest does not do this; if one did, the client must not hang, and must not take the answer for whole.
#[tokio::test(flavor = "multi_thread")]
async fn answers_of_a_verified_node_that_lie_about_their_length_are_not_taken_for_whole() {
    let (platform, mut told) = (platform(), JoinSet::new());
    for what in LIES {
        told.spawn(a_verified_node_lies(platform.clone(), what));
    }
    told.join_all().await;
}

async fn a_verified_node_lies(platform: SimulatedPlatform, what: (&'static str, &'static str, Then)) {
    let owner = owner();
    let (node, session) = liar(&platform, lie(GRANT, what)).await;
    let error = session.unwrap().offer(&node.grant(&owner), &owner).await;
    assert!(
        !matches!(error, Ok(_) | Err(ExchangeError::Status { .. })),
        "{}: {error:?}",
        what.0
    );

    let (node, session) = liar(&platform, lie(CHAT, what)).await;
    let mut paid = paid(&node, session.unwrap()).await;
    let error = paid.chat(&prompt(), OPTIONS, |_| ()).await.unwrap_err();
    let told = format!("{}: {error:?}", what.0);
    assert!(matches!(error, ChatError::Exchange(_) | ChatError::Cut), "{told}");
    assert_eq!(Exit::from(&error), Exit::Request, "{told}");
}

/// They would be taken for the answer to the next request.
#[tokio::test]
async fn an_answer_before_its_request_is_refused() {
    let lie = Lie {
        to: EVIDENCE,
        after_the_truth: true,
        bytes: b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_vec(),
        then: Then::Hold,
    };
    let script = Script {
        lie: Some(lie),
        ..Script::default()
    };
    let (node, session) = liar(&platform(), script).await;
    let error = session.unwrap_err();
    assert!(
        matches!(&error, ConnectError::Exchange(ExchangeError::Malformed { reason, .. }) if reason.contains("sent more")),
        "{error:?}"
    );
    assert_eq!(Exit::from(&error), Exit::Unreachable);
    assert_sent_nothing(&node, "an answer too many");
}

/// CBOR heads with a length of 8 bytes: of a byte string, a text, an array and a map.
const LONG_HEADS: [u8; 4] = [0x5b, 0x7b, 0x9b, 0xbb];

/// Each of the first bytes of the bundle, where the heads of its parts are, becomes a head that announces more than
/// there is; and the whole becomes shorter and longer than it says.
#[tokio::test(flavor = "multi_thread")]
async fn fresh_evidence_that_lies_about_the_lengths_of_its_parts_is_refused() {
    let platform = platform();
    type Change = Box<dyn Fn(Vec<u8>) -> Vec<u8> + Send + Sync>;
    let mut changes: Vec<(String, Change)> = vec![
        (
            "one byte short".into(),
            Box::new(|mut bytes| {
                bytes.pop();
                bytes
            }),
        ),
        (
            "one byte long".into(),
            Box::new(|mut bytes| {
                bytes.push(0);
                bytes
            }),
        ),
        ("empty".into(), Box::new(|_| vec![])),
    ];
    for at in 0..24 {
        let head = LONG_HEADS[at % LONG_HEADS.len()];
        changes.push((
            format!("head {head:#x} at {at}"),
            Box::new(move |mut bytes| {
                bytes[at..at + 9].copy_from_slice(&[head, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
                bytes
            }),
        ));
    }
    for (what, change) in changes {
        let (node, session) = liar(
            &platform,
            Script {
                evidence: Reply::Changed(change),
                ..Script::default()
            },
        )
        .await;
        let error = session.unwrap_err();
        let exit = Exit::from(&error);
        assert!(
            matches!(exit, Exit::Signature | Exit::Channel | Exit::Policy),
            "{what}: {exit:?}: {error:?}"
        );
        assert_sent_nothing(&node, &what);
    }
}
