//! Peers that are slow, silent or loud: each is cut off within its deadline, and a fair client is served after it.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail like tests")]

#[allow(dead_code, reason = "other tests use the rest")]
mod world;

use std::time::Duration;

use cocoon_agent::serve::Deadlines;
use hyper::StatusCode;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use world::World;

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
