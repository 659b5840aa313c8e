//! The whole agent, from the launch document to the usage record, over in-memory connections. The platform,
//! the host and the engine are played; TLS, HTTP, metering and signatures are real.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests may fail like tests"
)]

#[path = "guest/boots.rs"]
mod boots;
#[path = "guest/gpus.rs"]
mod gpus;
#[path = "guest/grants.rs"]
mod grants;
#[path = "guest/records.rs"]
mod records;
mod world;

use std::{sync::atomic::Ordering, time::Duration};

use cocoon_agent::serve::Deadlines;
use cocoon_evidence::{
    CertifiedEvidence, Digest32, ENDORSEMENTS_BYTES_MAX, EventKind, FreshBinding, Platform, Role,
    RuntimeEvent, TlsBinding,
};
use cocoon_protocol::{ContentKey, SignedReceipt, TokenCounts};
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use world::{ENDORSEMENTS, INPUT_TOKENS, NONCE, World, chat_body, events, wait_for};

/// More than any test takes.
const GRACE: Duration = Duration::from_secs(600);

/// A guest that waits for the client's close as long as it takes.
async fn patient_world() -> World {
    let deadlines = Deadlines {
        close: GRACE,
        ..Deadlines::default()
    };
    World::start_with(4, deadlines).await
}

fn parse(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap()
}

fn receipt_of(value: &Value) -> (SignedReceipt, ContentKey) {
    let part = |name: &str| value["cocoon"][name].clone();
    (
        serde_json::from_value(part("receipt")).unwrap(),
        serde_json::from_value(part("content_key")).unwrap(),
    )
}

#[tokio::test]
async fn fresh_evidence_binds_nonce_session_and_certificate_and_nothing_follows_ready() {
    let world = World::start().await;
    let mut client = world.client().await;
    let fresh = client.evidence().await;
    let bundle = &fresh.bundle;
    bundle.events.check_complete().unwrap();
    assert_eq!(
        bundle.events.payload(EventKind::LaunchDocument).unwrap(),
        world.host.document
    );
    let table = world.launch().model.verity.table("/dev/vdb");
    assert_eq!(bundle.events.payload(EventKind::Model).unwrap(), table.as_bytes());
    let binding = FreshBinding {
        nonce: &NONCE,
        exporter: &client.fresh,
        certificate: Digest32::of(&client.certificate),
        role: Role::Inference,
        log: bundle.events.replay(),
    };
    let Platform::Tdx { quote } = &bundle.platform else {
        panic!("the platform is TDX");
    };
    assert_eq!(quote.as_slice(), fresh.report_data(&binding.leaf()).0);

    let (mut paying, _) = world.paying_client().await;
    paying.chat("count 3", json!({})).await;
    let logged: Vec<_> = bundle.events.events().iter().map(RuntimeEvent::digest).collect();
    assert_eq!(*world.platform.extended.lock().unwrap(), logged);
}

#[tokio::test]
async fn the_certificate_carries_evidence_over_its_own_key_and_validity() {
    let world = World::start().await;
    let mut client = world.client().await;
    let usage_key = client.usage_key().await;
    let (_, certificate) = x509_parser::parse_x509_certificate(&client.certificate).unwrap();
    let CertifiedEvidence::Carried(bundle) = client.certified_evidence() else {
        panic!("without GPUs a bundle fits");
    };
    let validity = certificate.validity();
    let binding = TlsBinding {
        spki: certificate.public_key().raw,
        usage_key: &usage_key,
        not_before_s: validity.not_before.timestamp(),
        not_after_s: validity.not_after.timestamp(),
        role: Role::Inference,
        log: bundle.events.replay(),
    };
    let Platform::Tdx { quote } = &bundle.platform else {
        panic!("the platform is TDX");
    };
    assert_eq!(quote.as_slice(), binding.report_data().0);
    assert!(binding.not_after_s - binding.not_before_s <= 24 * 3600);
}

#[tokio::test]
async fn a_new_tls_key_is_for_new_connections_and_drops_no_stream() {
    let deadlines = Deadlines {
        rotate: Duration::from_millis(50),
        ..Deadlines::default()
    };
    let world = World::start_with(4, deadlines).await;
    let (mut client, grant) = world.paying_client().await;
    let stream = json!({"stream": true});
    let response = client
        .open("POST", "/v1/chat/completions", chat_body("wait", &stream))
        .await;
    let first = client.certificate.clone();
    while world.client().await.certificate == first {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.script.go.notify_one();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let (receipt, _) = receipt_of(&parse(events(&body).iter().rev().nth(1).unwrap().as_bytes()));
    assert!(
        receipt.is_genuine(&grant.grant.agent_key),
        "the usage key is the same"
    );
    assert_eq!(receipt.receipt.tokens.output, 2);
    assert_eq!(client.evidence().await.bundle.events.events().len(), 5);
}

/// Anybody may ask for evidence; who pays does not wait for the quoting enclave.
#[tokio::test]
async fn a_quote_that_takes_long_holds_up_no_answer() {
    let world = World::start().await;
    let (mut paying, _) = world.paying_client().await;
    let mut stranger = world.client().await;
    world.platform.quotes_stall.store(true, Ordering::SeqCst);
    let asking = tokio::spawn(async move { stranger.evidence().await });
    wait_for(|| world.platform.quote_is_late.load(Ordering::SeqCst)).await;
    let (status, _) = paying.chat("count 2", json!({})).await;
    assert_eq!(status, StatusCode::OK);
    assert!(!asking.is_finished());
    world.platform.quotes_stall.store(false, Ordering::SeqCst);
    asking.await.unwrap().bundle.events.check_complete().unwrap();
}

/// NVIDIA's last a day: a guest that runs for longer would be refused.
#[tokio::test]
async fn endorsements_are_renewed_and_kept_where_the_host_gives_none() {
    let deadlines = Deadlines {
        renew: Duration::from_millis(20),
        ..Deadlines::default()
    };
    let world = World::start_with(4, deadlines).await;
    let mut client = world.client().await;
    let mut served = async || {
        let (status, body) = client
            .send("GET", "/.well-known/cocoon/endorsements", vec![])
            .await;
        assert_eq!(status, StatusCode::OK);
        body
    };
    assert_eq!(served().await, ENDORSEMENTS);
    let newer = b"newer".to_vec();
    let give = |endorsements| *world.host.newer_endorsements.lock().unwrap() = endorsements;
    give(Some(newer.clone()));
    let renewed = async {
        while served().await == ENDORSEMENTS {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), renewed)
        .await
        .unwrap();
    for useless in [None, Some(vec![0; ENDORSEMENTS_BYTES_MAX + 1])] {
        give(useless);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(served().await, newer);
    }
}

#[tokio::test]
async fn a_stream_ends_with_a_receipt_that_opens_and_a_record_that_matches() {
    let world = World::start().await;
    let (mut client, grant) = world.paying_client().await;
    let more = json!({"stream": true, "stream_options": {"include_usage": true}, "max_tokens": 9});
    let request = chat_body("count 3", &more);
    let (status, body) = client.chat("count 3", more).await;
    assert_eq!(status, StatusCode::OK);
    let events = events(&body);
    assert_eq!(events.last().unwrap(), "[DONE]");
    let chunks: Vec<Value> = events[..events.len() - 1]
        .iter()
        .map(|event| parse(event.as_bytes()))
        .collect();
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let answer: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(answer, "t1 t2 t3 ");
    let usage = chunks.iter().find(|chunk| chunk.get("usage").is_some()).unwrap();
    assert_eq!(usage["usage"]["total_tokens"], INPUT_TOKENS + 3);

    let (receipt, key) = receipt_of(chunks.last().unwrap());
    assert!(receipt.is_genuine(&grant.grant.agent_key));
    let inner = &receipt.receipt;
    assert_eq!(
        inner.tokens,
        TokenCounts {
            input: INPUT_TOKENS,
            output: 3
        }
    );
    assert_eq!(inner.grant, grant.grant.id());
    assert_eq!(inner.finish_reason, "stop");
    assert_eq!(inner.request_commitment, key.commit("request", &request));
    assert_eq!(inner.answer_commitment, key.commit("answer", answer.as_bytes()));

    let record = world.records(1).await.remove(0);
    assert_eq!(record.number, 1);
    assert!(record.voucher.is_genuine());
    assert_eq!(record.voucher.voucher.served, inner.served);
    assert_eq!(
        record.commitment,
        key.commit("receipt", &serde_json::to_vec(&receipt).unwrap())
    );
}

/// The sizes and times of what it gets must not tell the host when a token came, or how long it was.
#[tokio::test]
async fn a_stream_comes_in_cells_of_fixed_sizes_whether_there_is_text_or_not() {
    let world = World::start().await;
    let (mut client, _) = world.paying_client().await;
    let stream = json!({"stream": true});
    let response = client
        .open("POST", "/v1/chat/completions", chat_body("wait", &stream))
        .await;
    let mut body = response.into_body();
    let mut cells = vec![];
    // The engine says nothing after its first token, and still there are cells.
    while cells.len() < 4 {
        cells.push(body.frame().await.unwrap().unwrap().into_data().unwrap());
    }
    assert!(cells.iter().all(|cell| cell.len() == 1024));
    world.script.go.notify_one();
    while let Some(cell) = body.frame().await {
        cells.push(cell.unwrap().into_data().unwrap());
    }
    assert!(cells.iter().all(|cell| [1024, 4096].contains(&cell.len())));
    assert_eq!(events(&cells.concat()).last().unwrap(), "[DONE]");

    let (_, whole) = client.chat("count 2", json!({})).await;
    assert_eq!(whole.len(), 4096, "an answer in one piece");
}

#[tokio::test]
async fn an_engine_that_dies_mid_answer_is_an_error_for_its_requests_only() {
    let world = World::start().await;
    let (mut client, grant) = world.paying_client().await;
    let (status, body) = client.chat("die", json!({"stream": true})).await;
    assert_eq!(status, StatusCode::OK);
    let dying = events(&body);
    let last = parse(dying.last().unwrap().as_bytes());
    assert_eq!(last["error"]["code"], "engine_failed");
    assert!(dying.iter().any(|event| event.contains("t1 ")));

    wait_for(|| world.script.starts.load(Ordering::SeqCst) == 2).await;
    // The same connection, the same keys, the same account; a request in the pause is told to come again.
    let answer = loop {
        let (status, body) = client.chat("count 2", json!({})).await;
        if status == StatusCode::OK {
            break parse(&body);
        }
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let (receipt, _) = receipt_of(&answer);
    assert!(receipt.is_genuine(&grant.grant.agent_key));
    assert_eq!(
        receipt.receipt.served.output, 2,
        "the failed request is not charged"
    );
    assert_eq!(world.records(1).await.len(), 1);
}

#[tokio::test]
async fn a_request_that_the_engine_refuses_is_the_clients_fault_and_free() {
    let world = World::start().await;
    let (mut client, _) = world.paying_client().await;
    for stream in [false, true] {
        let (status, body) = client.chat("refuse", json!({"stream": stream})).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        let error = &parse(&body)["error"];
        assert_eq!(error["message"], "too long");
        assert_eq!(error["code"], "context_length_exceeded");
    }
    assert!(world.host.records.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_client_that_leaves_pays_for_what_was_generated() {
    let world = World::start().await;
    let (mut client, _) = world.paying_client().await;
    let response = client.stream("hang").await;
    assert_eq!(response.status(), StatusCode::OK);
    drop((response, client));
    let records = world.records(1).await;
    assert_eq!(
        records[0].tokens,
        TokenCounts {
            input: INPUT_TOKENS,
            output: 1
        }
    );
}

#[tokio::test]
async fn more_requests_than_places_are_told_to_come_again() {
    let world = World::start_with(1, Deadlines::default()).await;
    let ((mut one, _), (mut two, _)) = (world.paying_client().await, world.paying_client().await);
    let hanging = one
        .open(
            "POST",
            "/v1/chat/completions",
            chat_body("hang", &json!({"stream": true})),
        )
        .await;
    let refused = two
        .open("POST", "/v1/chat/completions", chat_body("count 1", &json!({})))
        .await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.headers().contains_key("retry-after"));
    drop(hanging);
}

#[tokio::test]
async fn a_shutdown_lets_requests_finish_and_hands_over_their_records() {
    let mut world = patient_world().await;
    let (mut client, _) = world.paying_client().await;
    let response = client.stream("wait").await;
    let (mut other, _) = world.paying_client().await;
    world.shut_down(GRACE).await;
    let (status, refusal) = other.chat("count 1", json!({})).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(parse(&refusal)["error"]["code"], "shutting_down");

    // It is charged from here on. As much time as a guest would need that did not wait for the client.
    world.script.go.notify_one();
    world.records(1).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(
        !world.guest.is_finished(),
        "the client does not have its answer yet"
    );
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let events = events(&body);
    assert_eq!(events.last().unwrap(), "[DONE]");
    assert!(events[events.len() - 2].contains("receipt"));
    world.ended().await;
}

#[tokio::test]
async fn what_was_answered_just_before_a_shutdown_is_waited_for() {
    let mut world = patient_world().await;
    let (mut client, _) = world.paying_client().await;
    let unread = client.stream("count 2").await;
    world.records(1).await;
    // So that it is over for HTTP.
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.shut_down(GRACE).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!world.guest.is_finished(), "the client has not taken it");
    unread.into_body().collect().await.unwrap();
    world.ended().await;
}

#[tokio::test]
async fn a_client_that_never_takes_its_answer_holds_up_a_shutdown_only_so_long() {
    let deadlines = Deadlines {
        close: Duration::from_millis(800),
        ..Deadlines::default()
    };
    let mut world = World::start_with(4, deadlines).await;
    let (mut client, _) = world.paying_client().await;
    let _unread = client.stream("wait").await;
    world.shut_down(GRACE).await;
    world.script.go.notify_one();
    world.ended().await;
    assert_eq!(world.host.records.lock().unwrap().len(), 1, "it is charged");
}

#[tokio::test]
async fn an_answer_that_takes_longer_than_the_grace_is_cut_off_and_charged_as_far_as_it_came() {
    let mut world = World::start().await;
    let (mut client, _) = world.paying_client().await;
    let response = client.stream("hang").await;
    world.shut_down(Duration::from_millis(100)).await;
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(events(&body).iter().any(|event| event.contains("t1 ")));
    assert!(events(&body).iter().any(|event| event.contains("\"receipt\"")));
    world.ended().await;
    assert_eq!(world.records(1).await[0].tokens.output, 1);
}

#[tokio::test]
async fn a_client_that_has_its_answer_is_told_that_the_node_shuts_down() {
    let deadlines = Deadlines {
        close: Duration::ZERO,
        ..Deadlines::default()
    };
    let mut world = World::start_with(4, deadlines).await;
    let ((mut client, _), (mut hanging, _)) = (world.paying_client().await, world.paying_client().await);
    client.chat("count 2", json!({})).await;
    let _held_up = hanging.stream("wait").await;
    world.shut_down(GRACE).await;
    let (status, refusal) = client.chat("count 1", json!({})).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(parse(&refusal)["error"]["code"], "shutting_down");
    world.script.go.notify_one();
    world.ended().await;
}

#[tokio::test]
async fn oversized_and_misdirected_requests_are_refused() {
    let world = World::start().await;
    let (mut client, _) = world.paying_client().await;
    let (status, _) = client.chat(&"x".repeat(2 << 20), json!({})).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);

    let mut client = world.client().await;
    let cases = [
        ("GET", "/", "", StatusCode::NOT_FOUND),
        ("GET", "/v1/chat/completions", "", StatusCode::METHOD_NOT_ALLOWED),
        (
            "POST",
            "/.well-known/cocoon/evidence",
            "short",
            StatusCode::BAD_REQUEST,
        ),
        ("POST", "/v1/cocoon/grant", "{}", StatusCode::BAD_REQUEST),
        ("GET", "/v1/models", "", StatusCode::OK),
        ("GET", "/.well-known/cocoon/endorsements", "", StatusCode::OK),
    ];
    for (method, path, body, expected) in cases {
        let (status, _) = client.send(method, path, body.into()).await;
        assert_eq!(status, expected, "{method} {path}");
    }
    let (status, _) = client
        .send("POST", "/.well-known/cocoon/evidence", vec![0; 33])
        .await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_head_that_trickles_in_is_cut_off() {
    let deadlines = Deadlines {
        head: Duration::from_millis(50),
        ..Deadlines::default()
    };
    let world = World::start_with(4, deadlines).await;
    let mut tls = world.raw().await;
    tls.write_all(b"GET /v1/models HTTP/1.1\r\nx-slow: ")
        .await
        .unwrap();
    // Ends with whatever hyper says about it; without the deadline this read would never end.
    let mut rest = vec![];
    let _ = tls.read_to_end(&mut rest).await;
    assert!(!rest.starts_with(b"HTTP/1.1 200"));
}
