//! A node that never stops, and never gets anywhere: its handshake, its evidence, the head of its answer or the stream
//! come a byte at a time, or as padding without end. Every part has a deadline that a byte more does not move: the
//! client and the proxy end it with an error that says which part took too long.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod node;
mod proxied;

use std::{future::Future, time::Duration};

use cocoon::{ChatError, ConnectError, Deadlines, Endpoint, ExchangeError, Exit, Session, Step, connect};
use cocoon_verify::{Floors, Policy};
use hyper::StatusCode;
use node::{Guest, Lie, Node, OPTIONS, Script, TRICKLE_PAUSE, Then, now_s, owner, paid, platform, prompt};
use proxied::{World, text};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

/// What is too slow here never comes to its end; what comes before it has to, on a busy machine, too.
const SHORT: Duration = Duration::from_secs(5);
/// What is not ended by then is never ended.
const FOR_EVER: Duration = Duration::from_secs(100);

const ENDORSEMENTS: &str = "GET /.well-known/cocoon/endorsements";
const EVIDENCE: &str = "POST /.well-known/cocoon/evidence";
const GRANT: &str = "POST /v1/cocoon/grant";
const CHAT: &str = "POST /v1/chat/completions";

const HEAD: &str = "HTTP/1.1 200 OK\r\nx-one: ";
const BODY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 20000\r\n\r\n";
const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
/// As an agent fills up its cells.
const PADDING: &[u8] = b":\n\n";
const TEXT: &str = "data: {\"id\":\"chatcmpl-1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\
                    \"finish_reason\":null}]}\n\n";

/// Parts of an answer to a chat that come too slowly, the deadlines, and which of them ends it.
fn slow_answers() -> [(String, &'static [u8], Deadlines, Step); 4] {
    let first_text = Deadlines {
        first_text: SHORT,
        ..Deadlines::default()
    };
    let next_text = Deadlines {
        next_text: SHORT,
        ..Deadlines::default()
    };
    let answer = Deadlines {
        answer: SHORT,
        ..Deadlines::default()
    };
    [
        (HEAD.into(), b"x", first_text, Step::FirstText),
        (STREAM.into(), PADDING, first_text, Step::FirstText),
        (format!("{STREAM}{TEXT}"), PADDING, next_text, Step::NextText),
        (STREAM.into(), TEXT.as_bytes(), answer, Step::Chat),
    ]
}

fn trickle(to: &'static str, first: &str, then: &'static [u8]) -> Script {
    let lie = Lie {
        to,
        after_the_truth: false,
        bytes: first.into(),
        then: Then::Trickle(then),
    };
    Script {
        lie: Some(lie),
        ..Script::default()
    }
}

async fn ends<T>(what: &str, work: impl Future<Output = T>) -> T {
    let ended = timeout(FOR_EVER, work).await;
    ended.unwrap_or_else(|_| panic!("{what}: the client waits for ever"))
}

async fn refusal(endpoint: &Endpoint, policy: &Policy, deadlines: Deadlines) -> ConnectError {
    let connected = connect(endpoint, policy, Floors::default(), now_s(), &deadlines);
    ends("connecting", connected).await.unwrap_err()
}

#[track_caller]
fn assert_stalled(error: &ExchangeError, expected: Step, what: &str) {
    let ExchangeError::Stalled { step, after_ms } = error else {
        panic!("{what}: {error:?}");
    };
    assert_eq!((*step, *after_ms), (expected, SHORT.as_millis()), "{what}");
}

#[track_caller]
fn assert_unproven(error: &ConnectError, expected: Step, node: &Node) {
    assert_eq!(Exit::from(error), Exit::Unreachable);
    let ConnectError::Exchange(error) = error else {
        panic!("{error:?}");
    };
    assert_stalled(error, expected, "before verification");
    let received = String::from_utf8_lossy(&node.received()).into_owned();
    assert!(!received.contains("/v1/"), "{received}");
}

/// Passes bytes on, those of the node one by one. For one connection.
async fn slow_relay(node_port: u16) -> Endpoint {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let node = TcpStream::connect(("127.0.0.1", node_port)).await.unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_node, mut to_node) = node.into_split();
        let slowly = async {
            let mut byte = [0];
            while from_node.read_exact(&mut byte).await.is_ok() && to_client.write_all(&byte).await.is_ok() {
                sleep(TRICKLE_PAUSE).await;
            }
        };
        let _ = tokio::join!(copy(&mut from_client, &mut to_node), slowly);
    });
    endpoint.parse().unwrap()
}

#[tokio::test]
async fn a_handshake_a_byte_at_a_time_is_given_up() {
    let guest = Guest::boot(&platform(), 1);
    let policy = guest.policy();
    let node = Node::honest(guest).await;
    let relay = slow_relay(node.endpoint.port()).await;
    let deadlines = Deadlines {
        handshake: SHORT,
        ..Deadlines::default()
    };
    let error = refusal(&relay, &policy, deadlines).await;
    assert_unproven(&error, Step::Handshake, &node);
}

#[tokio::test]
async fn evidence_a_byte_at_a_time_is_given_up() {
    let (platform, mut waiting) = (platform(), JoinSet::new());
    for (to, step) in [(ENDORSEMENTS, Step::Endorsements), (EVIDENCE, Step::Evidence)] {
        for first in [HEAD, BODY] {
            let guest = Guest::boot(&platform, 1);
            waiting.spawn(async move {
                let policy = guest.policy();
                let node = Node::scripted(guest, trickle(to, first, b"x")).await;
                let deadlines = Deadlines {
                    exchange: SHORT,
                    ..Deadlines::default()
                };
                let error = refusal(&node.endpoint, &policy, deadlines).await;
                assert_unproven(&error, step, &node);
            });
        }
    }
    waiting.join_all().await;
}

/// Of a node that is proven: the client must not hang for it, either.
#[tokio::test]
async fn a_grant_that_is_answered_a_byte_at_a_time_is_given_up() {
    let (platform, mut waiting) = (platform(), JoinSet::new());
    for first in [HEAD, BODY] {
        let guest = Guest::boot(&platform, 1);
        waiting.spawn(async move {
            let deadlines = Deadlines {
                exchange: SHORT,
                ..Deadlines::default()
            };
            let (node, mut session) = verified(guest, trickle(GRANT, first, b"x"), deadlines).await;
            let (owner, grant) = (owner(), node.grant(&owner()));
            let refused = ends(first, session.offer(&grant, &owner)).await;
            assert_stalled(&refused.unwrap_err(), Step::Grant, first);
        });
    }
    waiting.join_all().await;
}

#[tokio::test]
async fn an_answer_that_trickles_for_ever_is_given_up() {
    let (platform, mut waiting) = (platform(), JoinSet::new());
    for (first, then, deadlines, step) in slow_answers() {
        let guest = Guest::boot(&platform, 1);
        waiting.spawn(async move {
            let (node, session) = verified(guest, trickle(CHAT, &first, then), deadlines).await;
            let mut paid = paid(&node, session).await;
            let asked = ends(&first, paid.chat(&prompt(), OPTIONS, |_| ())).await;
            let error = asked.unwrap_err();
            assert_eq!(Exit::from(&error), Exit::Request);
            let ChatError::Exchange(error) = error else {
                panic!("{first}: {error:?}");
            };
            assert_stalled(&error, step, &first);
        });
    }
    waiting.join_all().await;
}

async fn verified(guest: Guest, script: Script, deadlines: Deadlines) -> (Node, Session) {
    let policy = guest.policy();
    let node = Node::scripted(guest, script).await;
    let session = connect(&node.endpoint, &policy, Floors::default(), now_s(), &deadlines).await;
    (node, session.unwrap())
}

/// The program in front is told; one that got no byte yet gets a status.
#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_gives_up_an_answer_that_trickles_for_ever() {
    let mut waiting = JoinSet::new();
    for (first, then, deadlines, step) in slow_answers() {
        waiting.spawn(async move {
            let world = World::new().await;
            let guest = Guest::boot(&world.platform, 1);
            let node = Node::scripted(guest, trickle(CHAT, &first, then)).await;
            let proxy = world.proxy_within(&[&node], deadlines).await;
            let response = ends(&first, proxy.chat(true)).await;
            let (status, code, outcome) = if first.starts_with(STREAM) {
                (StatusCode::OK, "answer_broken", "failed")
            } else {
                (StatusCode::BAD_GATEWAY, "node_failed", "refused")
            };
            assert_eq!(response.status(), status, "{first}");
            let answer = ends(&first, text(response)).await;
            assert!(!answer.contains("[DONE]"), "{answer}");
            let told = format!("{step} took longer than {} ms", SHORT.as_millis());
            assert!(
                answer.contains(&told) && answer.contains(code),
                "{told}: {answer}"
            );
            let metrics = proxy.get("/metrics").await;
            let counted = format!("requests_total{{outcome=\"{outcome}\"}} 1\n");
            assert!(metrics.contains(&counted), "{metrics}");
        });
    }
    waiting.join_all().await;
}
