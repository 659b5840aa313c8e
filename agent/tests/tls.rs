//! What the serving guest accepts of TLS: version 1.3, a full handshake each time, key exchanges of the design. Most
//! of it is asked by a library; what no library asks any more is written byte by byte.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail like tests")]

#[allow(dead_code, unused_imports, reason = "other tests use the rest")]
mod world;

use std::{io::Write as _, sync::Arc, time::Duration};

use hyper::StatusCode;
use rustls::{
    AlertDescription, ClientConfig, HandshakeKind, NamedGroup,
    client::Resumption,
    crypto::{
        CryptoProvider, SupportedKxGroup,
        aws_lc_rs::{self, kx_group},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    time::timeout,
};
use world::{World, tls::config_with};

/// Much longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// Of RFC 8446, section 4.2.
const PRE_SHARED_KEY: u16 = 41;
const SUPPORTED_VERSIONS: u16 = 43;

const TLS_1_0: u16 = 0x0301;
const TLS_1_1: u16 = 0x0302;
const TLS_1_2: u16 = 0x0303;
const TLS_1_3: u16 = 0x0304;

/// Content types of records, RFC 8446, appendix B.1.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;

/// A client that would resume and send early, were it let.
fn client(groups: &[&'static dyn SupportedKxGroup]) -> Arc<ClientConfig> {
    let provider = CryptoProvider {
        kx_groups: groups.to_vec(),
        ..aws_lc_rs::default_provider()
    };
    let mut config = config_with(provider).unwrap();
    config.resumption = Resumption::in_memory_sessions(8);
    config.enable_early_data = true;
    Arc::new(config)
}

#[tokio::test]
async fn a_client_that_wants_to_resume_or_to_send_early_gets_a_full_handshake_each_time() {
    let world = World::start().await;
    let client = client(&[kx_group::X25519MLKEM768]);
    for _ in 0..3 {
        let mut tls = world.raw_with(Arc::clone(&client)).await.unwrap();
        // Tickets come with the first answer at the latest.
        let ask = b"GET /v1/models HTTP/1.1\r\nconnection: close\r\n\r\n";
        tls.write_all(ask).await.unwrap();
        let mut answer = vec![];
        timeout(DEADLINE, tls.read_to_end(&mut answer))
            .await
            .expect("the agent ends the connection")
            .unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200"));
        let session = tls.get_mut().1;
        assert_eq!(session.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(session.tls13_tickets_received(), 0);
        assert!(!session.is_early_data_accepted());
        assert!(
            session
                .early_data()
                .is_none_or(|mut early| early.write(b"prompt").is_err())
        );
    }
}

#[tokio::test]
async fn the_hybrid_key_exchange_is_used_with_clients_that_have_it() {
    let world = World::start().await;
    let hybrid = kx_group::X25519MLKEM768;
    let classic = kx_group::X25519;
    let cases: [(&[&'static dyn SupportedKxGroup], _); 3] = [
        (&[hybrid, classic], NamedGroup::X25519MLKEM768),
        (&[classic], NamedGroup::X25519),
        (&[kx_group::SECP256R1], NamedGroup::secp256r1),
    ];
    for (offered, expected) in cases {
        let tls = world.raw_with(client(offered)).await.unwrap();
        let group = tls.get_ref().1.negotiated_key_exchange_group().unwrap();
        assert_eq!(group.name(), expected, "{offered:?}");
    }
}

#[tokio::test]
async fn a_client_without_a_key_exchange_of_ours_is_refused() {
    let world = World::start().await;
    let refused = world.raw_with(client(&[kx_group::SECP384R1])).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("HandshakeFailure"), "{refused}");
    is_served(&world).await;
}

#[tokio::test]
async fn a_client_of_an_older_tls_is_refused() {
    let world = World::start().await;
    // Before TLS 1.3 there was no list: the hello's own version is the highest.
    let hellos = [
        hello(TLS_1_0, &[]),
        hello(TLS_1_1, &[]),
        hello(TLS_1_2, &[]),
        hello(TLS_1_2, &[versions(&[TLS_1_2])]),
        hello(TLS_1_2, &[versions(&[TLS_1_2, TLS_1_1])]),
    ];
    for hello in hellos {
        let mut connection = world.silent().await;
        connection.write_all(&hello).await.unwrap();
        let (kind, alert) = record(&mut connection).await;
        assert_eq!(kind, ALERT, "{hello:x?}");
        assert_eq!(
            AlertDescription::from(alert[1]),
            AlertDescription::ProtocolVersion
        );
        let mut rest = vec![];
        let end = timeout(DEADLINE, connection.read_to_end(&mut rest)).await;
        end.expect("the agent ends the connection").unwrap();
        assert!(rest.is_empty());
    }
    is_served(&world).await;
}

#[tokio::test]
async fn a_client_that_offers_an_older_tls_besides_gets_1_3() {
    let world = World::start().await;
    let older_first = versions(&[TLS_1_0, TLS_1_2, TLS_1_3]);
    let answer = answer_to(&world, &[older_first]).await;
    let chosen = answer.iter().find(|(kind, _)| *kind == SUPPORTED_VERSIONS);
    assert_eq!(chosen.unwrap().1, TLS_1_3.to_be_bytes());
}

/// As a ticket of an earlier session would be offered, together with data that is sent at once.
#[tokio::test]
async fn a_pre_shared_key_is_never_taken() {
    let world = World::start().await;
    let with_a_full_handshake = [1, 1];
    let identity = prefixed(2, &[prefixed(2, b"a ticket"), vec![0; 4]].concat());
    let binder = prefixed(2, &prefixed(1, &[7; 32]));
    let offers = [
        versions(&[TLS_1_3]),
        extension(45, &with_a_full_handshake),
        extension(42, &[]),
        extension(PRE_SHARED_KEY, &[identity, binder].concat()),
    ];
    let answer = answer_to(&world, &offers).await;
    assert!(answer.iter().any(|(kind, _)| *kind == SUPPORTED_VERSIONS));
    assert!(
        answer.iter().all(|(kind, _)| *kind != PRE_SHARED_KEY),
        "{answer:x?}"
    );
}

async fn is_served(world: &World) {
    let (status, _) = world.client().await.send("GET", "/v1/models", vec![]).await;
    assert_eq!(status, StatusCode::OK);
}

/// The extensions of the ServerHello that answers this.
async fn answer_to(world: &World, extensions: &[Vec<u8>]) -> Vec<(u16, Vec<u8>)> {
    let mut connection = world.silent().await;
    connection.write_all(&hello(TLS_1_2, extensions)).await.unwrap();
    let (kind, message) = record(&mut connection).await;
    assert_eq!(kind, HANDSHAKE, "{message:x?}");
    // Type, length, version and random; then the session's id, cipher suite and compression.
    let session_id = usize::from(message[38]);
    let mut rest = &message[39 + session_id + 3 + 2..];
    let mut found = vec![];
    while let [kind_high, kind_low, high, low, more @ ..] = rest {
        let (value, after) = more.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        found.push((u16::from_be_bytes([*kind_high, *kind_low]), value.to_vec()));
        rest = after;
    }
    found
}

/// The next record: its content type and its content.
async fn record(connection: &mut DuplexStream) -> (u8, Vec<u8>) {
    let read = async {
        let mut head = [0; 5];
        connection.read_exact(&mut head).await.unwrap();
        let mut content = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
        connection.read_exact(&mut content).await.unwrap();
        (head[0], content)
    };
    timeout(DEADLINE, read).await.expect("the agent answers")
}

/// A ClientHello (RFC 8446, section 4.1.2; RFC 5246, section 7.4.1.2) in a record, with suites of TLS 1.3 and before,
/// X25519 and ECDSA. The last of `more` is the last of all.
fn hello(version: u16, more: &[Vec<u8>]) -> Vec<u8> {
    const GROUP_X25519: [u8; 2] = [0, 29];
    const ECDSA_P256_SHA256: [u8; 2] = [4, 3];
    let share = [GROUP_X25519.to_vec(), prefixed(2, &[9; 32])].concat();
    let suites = [0x13, 0x01, 0x13, 0x02, 0xc0, 0x2b, 0xc0, 0x2c, 0xc0, 0x09];
    let extensions = [
        extension(10, &prefixed(2, &GROUP_X25519)),
        extension(13, &prefixed(2, &ECDSA_P256_SHA256)),
        extension(51, &prefixed(2, &share)),
        more.concat(),
    ];
    let body = [
        version.to_be_bytes().to_vec(),
        vec![5; 32],
        prefixed(1, &[6; 32]),
        prefixed(2, &suites),
        prefixed(1, &[0]),
        prefixed(2, &extensions.concat()),
    ];
    let message = [vec![1], prefixed(3, &body.concat())].concat();
    [vec![HANDSHAKE, 3, 1], prefixed(2, &message)].concat()
}

fn versions(offered: &[u16]) -> Vec<u8> {
    let list: Vec<u8> = offered.iter().flat_map(|version| version.to_be_bytes()).collect();
    extension(SUPPORTED_VERSIONS, &prefixed(1, &list))
}

fn extension(kind: u16, value: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().to_vec(), prefixed(2, value)].concat()
}

/// Preceded by its length, in so many bytes.
fn prefixed(length_bytes: usize, bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len().to_be_bytes();
    [&length[length.len() - length_bytes..], bytes].concat()
}
