//! The proxy against nodes over loopback and a real local chain: what programs get, what nodes get, and what
//! neither must.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod node;
mod proxied;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Incoming};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use node::{ANSWER, ChatScript, Guest, Node, Script};
use proxied::{PROMPT, Served, TON, World, chat, text};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

/// The payloads of a stream's events.
fn events(stream: &str) -> Vec<Value> {
    let lines = stream.lines().filter_map(|line| line.strip_prefix("data: "));
    lines
        .filter(|data| *data != "[DONE]")
        .map(|data| serde_json::from_str(data).unwrap())
        .collect()
}

fn content(stream: &str) -> String {
    let events = events(stream);
    let pieces = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    pieces.collect()
}

fn chats(node: &Node) -> usize {
    node.requests()
        .iter()
        .filter(|line| line.contains("/v1/chat"))
        .count()
}

fn quotes(node: &Node) -> usize {
    node.requests()
        .iter()
        .filter(|line| line.contains("cocoon/evidence"))
        .count()
}

/// Nothing of a prompt came out of TLS.
fn assert_got_no_prompt(node: &Node) {
    let received = node.received();
    assert!(!String::from_utf8_lossy(&received).contains(PROMPT));
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_get_the_answer_and_its_receipt_is_kept() {
    let world = World::new().await;
    let node = world.node(ChatScript::default()).await;
    let proxy = world.proxy(&[&node]).await;

    let streamed = text(proxy.chat(true).await).await;
    assert_eq!(content(&streamed), ANSWER.concat());
    assert!(streamed.ends_with("data: [DONE]\n\n"), "{streamed}");
    // Programs take the first choice of every event.
    assert!(
        events(&streamed)
            .iter()
            .all(|event| event["choices"][0].is_object()),
        "{streamed}"
    );
    let id = events(&streamed)[0]["id"].as_str().unwrap().to_owned();
    let kept = proxy.get_json(&format!("/receipts/{id}")).await;
    assert_eq!(kept["receipt"]["receipt"]["request_id"], *id);
    assert_eq!(kept["amount_nano"], 34_000_000);

    let whole: Value = serde_json::from_str(&text(proxy.chat(false).await).await).unwrap();
    assert_eq!(whole["choices"][0]["message"]["content"], ANSWER.concat());
    assert_eq!(
        proxy.get_json("/receipts").await["receipts"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let receipts = proxy.get_json("/receipts").await;
    assert_eq!(
        (&receipts["answers"], &receipts["paid_nano"]),
        (&json!(2), &json!(68_000_000))
    );
    let metrics = proxy.get("/metrics").await;
    assert!(
        metrics.contains("requests_total{outcome=\"answered\"} 2\n"),
        "{metrics}"
    );
    assert!(metrics.contains("spent_nanoton_total 68000000\n"), "{metrics}");
    // One connection served both, on one grant.
    assert_eq!(
        node.requests()
            .iter()
            .filter(|line| line.contains("/grant"))
            .count(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn models_and_verification_are_shown() {
    let world = World::new().await;
    let node = world.node(ChatScript::default()).await;
    let proxy = world.proxy(&[&node]).await;
    assert_eq!(proxy.get_json("/v1/models").await["data"][0]["id"], "cocoon-demo");
    assert_eq!(proxy.get_json("/v1/models/cocoon-demo").await["object"], "model");
    let shown = proxy.get_json("/verification").await;
    assert_eq!(shown["nodes"][0]["state"], "verified");
    assert_eq!(shown["nodes"][0]["report"]["verdict"], "SIMULATED");
    assert!(
        shown["nodes"][0]["report"]["fresh"]["checks"]
            .as_array()
            .unwrap()
            .len()
            > 10
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_passed_on_piece_by_piece() {
    let world = World::new().await;
    let gate = Arc::new(Semaphore::new(1));
    let node = world
        .node(ChatScript {
            gate: Some(gate.clone()),
            ..ChatScript::default()
        })
        .await;
    let proxy = world.proxy(&[&node]).await;
    let mut body = proxy.chat(true).await.into_body();
    let mut seen = String::new();
    for pieces in 1..=ANSWER.len() {
        // The next piece exists only once this one has arrived.
        while content(&seen) != ANSWER[..pieces].concat() {
            let frame = body.frame().await.unwrap().unwrap();
            seen += std::str::from_utf8(&frame.into_data().unwrap()).unwrap();
        }
        gate.add_permits(1);
    }
    let rest = body.collect().await.unwrap().to_bytes();
    assert!(rest.ends_with(b"data: [DONE]\n\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_goes_elsewhere_while_nothing_was_delivered() {
    let failures = [
        ChatScript {
            refuse: Some(StatusCode::SERVICE_UNAVAILABLE),
            ..ChatScript::default()
        },
        ChatScript {
            break_after: Some(0),
            ..ChatScript::default()
        },
    ];
    for failure in failures {
        let world = World::new().await;
        let (failing, good) = (world.node(failure).await, world.node(ChatScript::default()).await);
        let proxy = world.proxy(&[&failing, &good]).await;
        // Whichever is picked first, each is answered; the failing one is asked once and then left alone.
        for _ in 0..6 {
            assert_eq!(content(&text(proxy.chat(true).await).await), ANSWER.concat());
        }
        assert_eq!(chats(&good), 6);
        assert!(chats(&failing) <= 2, "{}", chats(&failing));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_broke_off_is_not_asked_for_again() {
    let world = World::new().await;
    let gate = Arc::new(Semaphore::new(1));
    let breaking = ChatScript {
        break_after: Some(1),
        gate: Some(gate.clone()),
        ..ChatScript::default()
    };
    let node = world.node(breaking).await;
    let proxy = world.proxy(&[&node]).await;
    let mut body = proxy.chat(true).await.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(content(std::str::from_utf8(&first).unwrap()), ANSWER[0]);
    gate.add_permits(1);
    let rest = body.collect().await.unwrap().to_bytes();
    let rest = std::str::from_utf8(&rest).unwrap();
    assert!(!rest.contains("[DONE]"), "{rest}");
    assert_eq!(events(rest).last().unwrap()["error"]["code"], "answer_broken");
    assert_eq!(chats(&node), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_receipt_ends_the_use_of_a_node() {
    let world = World::new().await;
    let node = world
        .node(ChatScript {
            change: Some(|receipt| receipt.served_nano += 1),
            ..ChatScript::default()
        })
        .await;
    let proxy = world.proxy(&[&node]).await;
    let answer = text(proxy.chat(true).await).await;
    assert!(!answer.contains("[DONE]"), "{answer}");
    assert!(events(&answer).last().unwrap()["error"].is_object());
    assert_eq!(
        proxy.get_json("/verification").await["nodes"][0]["state"],
        "distrusted"
    );
    assert!(
        proxy.get_json("/receipts").await["receipts"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    assert_eq!(proxy.chat(true).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(chats(&node), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_the_policy_refuses_gets_nothing() {
    let world = World::new().await;
    let good = world.node(ChatScript::default()).await;
    let cheaper = Guest::boot_with(&world.platform, 1, |launch| {
        launch.prices.input_nano_per_kilotoken = 1;
    });
    let other = Node::honest(cheaper).await;
    let proxy = world.proxy(&[&other, &good]).await;
    for _ in 0..4 {
        assert_eq!(content(&text(proxy.chat(true).await).await), ANSWER.concat());
    }
    assert_eq!(chats(&good), 4);
    assert_got_no_prompt(&other);
    let shown = proxy.get_json("/verification").await;
    assert_eq!(shown["nodes"][0]["fault"]["exit_code"], 10);
    assert_eq!(shown["nodes"][0]["fault"]["report"]["verdict"], "FAIL");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_certificate_is_verified_before_the_next_byte() {
    let world = World::new().await;
    let gate = Arc::new(Semaphore::new(0));
    let node = world
        .node(ChatScript {
            gate: Some(gate.clone()),
            ..ChatScript::default()
        })
        .await;
    let proxy = world.proxy(&[&node]).await;
    let ask = || {
        let request = proxy.post().body(Full::new(Bytes::from(chat(true).to_string())));
        let client = Client::builder(TokioExecutor::new()).build_http();
        tokio::spawn(async move { text(client.request(request.unwrap()).await.unwrap()).await })
    };
    let first = ask();
    while chats(&node) < 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(quotes(&node), 1);
    node.rotate();
    // The first connection is busy, so this request makes a new one, which shows the new certificate.
    let second = ask();
    while chats(&node) < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(quotes(&node), 2);
    gate.add_permits(2 * (ANSWER.len() + 1));
    for answer in [first, second] {
        assert_eq!(content(&answer.await.unwrap()), ANSWER.concat());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_cannot_ask_or_look() {
    let world = World::new().await;
    let node = world.node(ChatScript::default()).await;
    let proxy = world.proxy(&[&node]).await;
    for (name, value) in [
        ("origin", "https://attacker.example"),
        ("host", "attacker.example"),
    ] {
        let asked = proxy.send(proxy.post().header(name, value), &chat(true)).await;
        assert_eq!(asked.status(), StatusCode::FORBIDDEN);
        let url = format!("http://{}/receipts", proxy.address);
        let looked = proxy
            .send(Request::get(url).header(name, value), &Value::Null)
            .await;
        assert_eq!(looked.status(), StatusCode::FORBIDDEN);
    }
    assert_got_no_prompt(&node);
    assert!(proxy.get("/metrics").await.contains("trespasses_total 4\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_locked_than_allowed() {
    let world = World::new().await;
    let node = world.node(ChatScript::default()).await;
    let proxy = world.proxy_with(&[&node], TON / 100, false).await;
    let refused = proxy.chat(true).await;
    assert_eq!(refused.status(), StatusCode::PAYMENT_REQUIRED);
    let error: Value = serde_json::from_str(&text(refused).await).unwrap();
    assert!(
        error["error"]["message"].as_str().unwrap().contains("--max-ton"),
        "{error}"
    );
    assert_got_no_prompt(&node);
}

/// A host can have its guest refuse: by saying that there is no credit, for example. Each grant costs gas and stays open
/// for a day.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_refuses_its_grant_is_not_given_another_one() {
    let world = World::new().await;
    let script = Script {
        refuses_grants: true,
        ..Script::default()
    };
    let node = Node::scripted(Guest::boot(&world.platform, 1), script).await;
    let proxy = world.proxy_with(&[&node], TON, false).await;
    for _ in 0..3 {
        let refused = proxy.chat(true).await;
        assert_eq!(refused.status(), StatusCode::BAD_GATEWAY);
        let error = text(refused).await;
        assert!(error.contains("refused by script"), "{error}");
        // A grant's id covers when it ends, in seconds: made in the same second, another one would be the same.
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    let deposit = world.deposit().await;
    assert_eq!((deposit.grants.len(), deposit.reserved_nano), (1, TON / 2));
    assert_got_no_prompt(&node);
}

/// A guest can draw on a grant to its last second, so a grant for the day after must not come on top of it: whether the
/// node serves on the old one, which is then used, or has its guest refuse.
#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_ends_soon_counts_as_long_as_it_can_be_drawn_upon() {
    for (refuses_grants, expected) in [(false, StatusCode::OK), (true, StatusCode::BAD_GATEWAY)] {
        let world = World::new().await;
        let script = Script {
            refuses_grants,
            ..Script::default()
        };
        let node = Node::scripted(Guest::boot(&world.platform, 1), script).await;
        let proxy = world.proxy_with(&[&node], TON, false).await;
        world.lock(&node, 600).await;
        assert_eq!(proxy.chat(false).await.status(), expected);
        let deposit = world.deposit().await;
        assert_eq!((deposit.grants.len(), deposit.reserved_nano), (1, TON));
    }
}

/// Each start makes another guest, for which nothing is locked yet; the grant of the one before stays open for a day,
/// and a host that can break its TEE draws on all of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_started_again_and_again_gets_no_more_than_its_share() {
    let world = World::new().await;
    let node = world.node(ChatScript::default()).await;
    let proxy = world.proxy_with(&[&node], TON, false).await;
    for (boot, expected) in [
        (2, StatusCode::OK),
        (3, StatusCode::OK),
        (4, StatusCode::PAYMENT_REQUIRED),
    ] {
        let answer = settled(&proxy).await;
        assert_eq!(answer.status(), expected, "before start {boot}");
        node.restart(Guest::boot(&world.platform, boot));
    }
    let deposit = world.deposit().await;
    assert_eq!((deposit.grants.len(), deposit.reserved_nano), (2, TON));
}

/// An answer that is broken off is charged without a receipt; and whoever can break a TEE can claim anything.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_used_without_a_receipt_counts() {
    let world = World::new().await;
    let script = Script {
        uses_grants_up: true,
        chat: ChatScript {
            break_after: Some(1),
            ..ChatScript::default()
        },
        ..Script::default()
    };
    let node = Node::scripted(Guest::boot(&world.platform, 1), script).await;
    let proxy = world.proxy_with(&[&node], TON, false).await;
    for _ in 0..4 {
        for _ in 0..50 {
            let answer = proxy.chat(true).await;
            if !answer.status().is_server_error() {
                let _ = answer.into_body().collect().await;
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    let deposit = world.deposit().await;
    assert!(deposit.grants.len() > 1, "{deposit:?}");
    assert!(deposit.reserved_nano <= TON, "{deposit:?}");
}

/// A grant that `cocoon chat` had locked for a large sum, for example.
#[tokio::test(flavor = "multi_thread")]
async fn of_an_earlier_grant_no_more_is_drawn_than_allowed() {
    let world = World::new().await;
    let node = world.node(ChatScript::default()).await;
    let max_nano = TON / 5;
    let proxy = world.proxy_with(&[&node], max_nano, false).await;
    world.lock(&node, 3_600).await;
    let mut spent_nano = 0;
    let refused = loop {
        let answer = proxy.chat(false).await;
        if answer.status() != StatusCode::OK {
            break answer;
        }
        let answer: Value = serde_json::from_str(&text(answer).await).unwrap();
        spent_nano = answer["cocoon"]["receipt"]["receipt"]["served_nano"]
            .as_u64()
            .unwrap();
        assert!(spent_nano <= max_nano);
    };
    assert_eq!(refused.status(), StatusCode::PAYMENT_REQUIRED);
    assert!(spent_nano > 0);
    assert!(text(refused).await.contains("--max-ton leaves"));
}

/// What comes of a request once the node is not left alone any more.
async fn settled(proxy: &Served) -> Response<Incoming> {
    for _ in 0..50 {
        let answer = proxy.chat(false).await;
        if !answer.status().is_server_error() {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("the node does not come back");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_said_in_openais_form() {
    let world = World::new().await;
    let node = world
        .node(ChatScript {
            refuse: Some(StatusCode::BAD_REQUEST),
            ..ChatScript::default()
        })
        .await;
    let proxy = world.proxy(&[&node]).await;
    let mut other_model = chat(false);
    other_model["model"] = json!("gpt-9");
    let too_large = json!({"model": "cocoon-demo", "messages": "x".repeat(1024 * 1024)});
    for (body, status) in [
        (json!("no request"), StatusCode::BAD_REQUEST),
        (other_model, StatusCode::NOT_FOUND),
        (too_large, StatusCode::PAYLOAD_TOO_LARGE),
        (chat(false), StatusCode::BAD_REQUEST),
    ] {
        let refused = proxy.send(proxy.post(), &body).await;
        assert_eq!(refused.status(), status);
        let error: Value = serde_json::from_str(&text(refused).await).unwrap();
        assert!(error["error"]["message"].is_string(), "{error}");
    }
    // Only the last one was the node's to refuse; nobody else was asked again.
    assert_eq!(chats(&node), 1);
}
