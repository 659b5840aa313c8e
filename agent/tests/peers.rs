//! Peers that are slow, silent or loud: each is cut off within its deadline, and a fair client is served after it.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail like tests")]

#[allow(dead_code, unused_imports, reason = "other tests use the rest")]
mod world;

use std::{sync::atomic::Ordering, time::Duration};

use cocoon_agent::serve::{Deadlines, PROMPT_BYTES_MAX};
use cocoon_protocol::{SessionProof, SignedGrant};
use hyper::StatusCode;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_rustls::client::TlsStream;
use world::{World, chat_body, owner};

const SHORT: Duration = Duration::from_millis(50);

/// All that comes until the agent ends the connection. Were it never to, the test would fail here.
async fn to_the_end(mut stream: impl AsyncRead + Unpin) -> String {
    let mut bytes = vec![];
    let read = stream.read_to_end(&mut bytes);
    // An end without TLS's closing message is an end.
    let _ = tokio::time::timeout(Duration::from_secs(60), read)
        .await
        .expect("the agent ends the connection");
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn is_served(world: &World) {
    let (status, _) = world.client().await.send("GET", "/v1/models", vec![]).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn a_peer_that_never_begins_the_handshake_is_cut_off() {
    let handshake = Deadlines {
        handshake: SHORT,
        ..Deadlines::default()
    };
    let world = World::start_with(4, handshake).await;
    assert_eq!(to_the_end(world.silent().await).await, "");
    let mut clear = world.silent().await;
    clear.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(to_the_end(clear).await.len(), 7, "one alert");
}

#[tokio::test]
async fn a_body_that_trickles_in_is_cut_off() {
    let body = Deadlines {
        body: SHORT,
        head: Duration::from_millis(500),
        ..Deadlines::default()
    };
    let world = World::start_with(4, body).await;
    let mut tls = world.raw().await;
    let head = b"POST /.well-known/cocoon/evidence HTTP/1.1\r\ncontent-length: 32\r\n\r\nx";
    tls.write_all(head).await.unwrap();
    let answer = to_the_end(tls).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn a_peer_that_closes_in_the_middle_of_a_body_is_let_go() {
    let world = World::start().await;
    let mut tls = world.raw().await;
    let head = b"POST /.well-known/cocoon/evidence HTTP/1.1\r\ncontent-length: 32\r\n\r\nx";
    tls.write_all(head).await.unwrap();
    tls.shutdown().await.unwrap();
    let answer = to_the_end(tls).await;
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    is_served(&world).await;
}

#[tokio::test]
async fn oversized_and_too_many_headers_are_refused() {
    let world = World::start().await;
    let long = format!("x-long: {}\r\n", "x".repeat(20 * 1024));
    let many = (0..65)
        .map(|number| format!("x-{number}: 1\r\n"))
        .collect::<String>();
    for headers in [long, many] {
        let mut tls = world.raw().await;
        let head = format!("GET /v1/models HTTP/1.1\r\n{headers}\r\n");
        tls.write_all(head.as_bytes()).await.unwrap();
        let answer = to_the_end(tls).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    is_served(&world).await;
}

#[tokio::test]
async fn a_peer_that_asks_and_reads_nothing_is_cut_off() {
    let write = Deadlines {
        write: SHORT,
        ..Deadlines::default()
    };
    let world = World::start_with(4, write).await;
    let mut tls = world.raw().await;
    let ask = async {
        // Answers pile up until none can be written; then the agent goes.
        while tls.write_all(b"GET /v1/models HTTP/1.1\r\n\r\n").await.is_ok() {
            tls.flush().await.unwrap_or_default();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ask)
        .await
        .expect("the agent ends the connection");
    is_served(&world).await;
}

fn places(connections: usize) -> Deadlines {
    Deadlines {
        connections,
        ..Deadlines::default()
    }
}

/// A connection with a bound grant, on which anything can be written.
async fn paying_raw(world: &World, grant: &SignedGrant) -> TlsStream<DuplexStream> {
    let mut tls = world.raw().await;
    let label = SessionProof::EXPORTER_LABEL;
    let exporter = tls.get_ref().1.export_keying_material([0; 32], label, None);
    let proof = SessionProof::sign(&owner(), &exporter.unwrap(), &grant.grant);
    let body = json!({"grant": grant, "proof": proof}).to_string();
    let head = format!("POST /v1/cocoon/grant HTTP/1.1\r\ncontent-length: {}", body.len());
    tls.write_all(format!("{head}\r\n\r\n{body}").as_bytes())
        .await
        .unwrap();
    // Its body alone is filled up to so much.
    let mut answer = [0; 1024];
    tls.read_exact(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    tls
}

/// 256 of them were enough to shut everybody else out.
#[tokio::test]
async fn idle_connections_do_not_shut_others_out() {
    let world = World::start_with(4, places(8)).await;
    let (mut paying, _) = world.paying_client().await;
    let mut idle = vec![];
    for _ in 0..20 {
        idle.push(world.silent().await);
    }
    is_served(&world).await;
    assert_eq!(to_the_end(idle.remove(0)).await, "", "the longest here had to go");
    let (status, _) = paying.chat("count 1", json!({})).await;
    assert_eq!(status, StatusCode::OK, "who pays goes last");
}

#[tokio::test]
async fn when_every_place_serves_an_answer_the_next_is_told_to_come_again() {
    let world = World::start_with(4, places(2)).await;
    let ((mut one, _), (mut two, _)) = (world.paying_client().await, world.paying_client().await);
    let stream = json!({"stream": true});
    let mut answers = vec![];
    for client in [&mut one, &mut two] {
        let body = chat_body("hang", &stream);
        answers.push(client.open("POST", "/v1/chat/completions", body).await);
    }
    let mut late = world.client().await;
    let refused = late.open("GET", "/v1/models", vec![]).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(refused.headers()["connection"], "close");
    // A place is free again when an answer's connection ends.
    drop((answers.remove(0), one));
    let served = async {
        while world.client().await.send("GET", "/v1/models", vec![]).await.0 != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let served = tokio::time::timeout(Duration::from_secs(60), served).await;
    served.expect("a place is free again");
}

#[tokio::test]
async fn prompts_beyond_the_memory_for_them_are_told_to_come_again() {
    let world = World::start_with(64, Deadlines::default()).await;
    let (_, grant) = world.paying_client().await;
    // With the rest of the body as much as a prompt may have.
    let long = "x".repeat((1 << 20) - 1024);
    let ask = |line| {
        let messages = [("system", long.as_str()), ("user", line)]
            .map(|(role, content)| json!({"role": role, "content": content}));
        chat_body("", &json!({"messages": messages, "stream": true}))
    };
    let mut answers = vec![];
    for _ in 0..PROMPT_BYTES_MAX >> 20 {
        let mut client = world.client().await;
        assert_eq!(client.bind(&grant, &owner()).await.0, StatusCode::OK);
        let answer = client.open("POST", "/v1/chat/completions", ask("hang")).await;
        assert_eq!(answer.status(), StatusCode::OK);
        answers.push((answer, client));
    }
    let next = async || {
        let mut client = world.client().await;
        assert_eq!(client.bind(&grant, &owner()).await.0, StatusCode::OK);
        client
            .open("POST", "/v1/chat/completions", ask("count 1"))
            .await
            .status()
    };
    assert_eq!(next().await, StatusCode::SERVICE_UNAVAILABLE);
    drop(answers.remove(0));
    let free = async {
        while next().await != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let free = tokio::time::timeout(Duration::from_secs(60), free).await;
    free.expect("it is given back");
}

/// One grant and 32 of them were enough to have everybody else's prompts refused.
#[tokio::test]
async fn prompts_that_are_announced_and_never_sent_shut_nobody_out() {
    let world = World::start_with(64, Deadlines::default()).await;
    let (mut client, grant) = world.paying_client().await;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        1 << 20
    );
    let mut announced = vec![];
    for _ in 0..PROMPT_BYTES_MAX >> 20 {
        let mut paying = paying_raw(&world, &grant).await;
        paying.write_all(head.as_bytes()).await.unwrap();
        let mut answered = vec![];
        while !answered.ends_with(b"HTTP/1.1 100 Continue\r\n\r\n") {
            answered.push(paying.read_u8().await.unwrap());
        }
        // Its memory is set aside.
        announced.push(paying);
    }
    let (status, _) = client.chat("count 1", json!({})).await;
    assert_eq!(status, StatusCode::OK);
    let given_up = to_the_end(announced.remove(0)).await;
    assert!(given_up.starts_with("HTTP/1.1 503"), "{given_up}");
}

/// The host answers one question at a time: with one for each connection, a slow one holds up who comes back.
#[tokio::test]
async fn a_host_that_stalls_does_not_hold_up_further_connections_on_a_known_grant() {
    let world = World::start().await;
    let (_first, grant) = world.paying_client().await;
    world.host.credit_stalls.store(true, Ordering::SeqCst);
    let mut further = world.client().await;
    let (status, balance) = further.bind(&grant, &owner()).await;
    assert_eq!(
        (status, &balance["credit_nano"]),
        (StatusCode::OK, &json!(1_000_000))
    );
    let (status, _) = further.chat("count 1", json!({})).await;
    assert_eq!(status, StatusCode::OK);
}
