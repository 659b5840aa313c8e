//! A host that tampers with the bytes between a client and the guest's agent: each record of a whole conversation, at
//! its boundary and inside. The agent gives no wrong answer, shows nothing in clear, and serves the next client.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail like tests")]

#[path = "../../client/tests/hostile_host/mod.rs"]
mod hostile_host;
#[allow(dead_code, unused_imports, reason = "other tests use the rest")]
mod world;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cocoon_agent::serve::Deadlines;
use cocoon_protocol::{SessionProof, SignedGrant};
use hostile_host::{Fault, HostileHost, PLACES, Plan, WAYS, Way};
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsConnector;
use world::{NONCE, World, owner};

const PROMPT: &str = "canary: the secret of a patient";
const ANSWER: &str = "t1 t2 t3 ";

/// For bytes that may never come; a conversation takes some milliseconds. Who is slower has no answer either.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(1);
/// A conversation that nobody disturbs ends, however busy the machine is.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

const FAULTS: [Fault; 7] = [
    Fault::Drop,
    Fault::Duplicate,
    Fault::Reorder,
    Fault::Corrupt,
    Fault::LieAboutLength,
    Fault::HalfOpen,
    Fault::End,
];

/// What the agent gets from a host.
async fn bridge(world: &Arc<World>) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let world = Arc::clone(world);
    tokio::spawn(async move {
        let (mut host, _) = listener.accept().await.unwrap();
        let mut guest = world.silent().await;
        // However it ends.
        let _ = copy_bidirectional(&mut host, &mut guest).await;
    });
    port
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Fresh evidence, the grant, a chat: what was answered.
async fn converse(address: std::net::SocketAddr, grant: &SignedGrant) -> Result<String, Failure> {
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from("cocoon.invalid")?;
    let tls = TlsConnector::from(world::tls::config().unwrap())
        .connect(name, tcp)
        .await?;
    let label = SessionProof::EXPORTER_LABEL;
    let exporter = tls.get_ref().1.export_keying_material([0; 32], label, None)?;
    let (mut sender, driver) = http1::handshake::<_, Full<Bytes>>(TokioIo::new(tls)).await?;
    let _driver = tokio::spawn(driver);
    let proof = SessionProof::sign(&owner(), &exporter, &grant.grant);
    let messages = [("system", PROMPT), ("user", "count 3")]
        .map(|(role, content)| json!({"role": role, "content": content}));
    let requests = [
        ("/.well-known/cocoon/evidence", NONCE.to_vec()),
        (
            "/v1/cocoon/grant",
            json!({"grant": grant, "proof": proof}).to_string().into(),
        ),
        (
            "/v1/chat/completions",
            json!({"model": world::MODEL, "messages": messages})
                .to_string()
                .into(),
        ),
    ];
    let mut answer = Bytes::new();
    for (path, body) in requests {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("host", "cocoon.invalid")
            .body(Full::from(body))?;
        sender.ready().await?;
        let response = sender.send_request(request).await?;
        if !response.status().is_success() {
            return Err(format!("{path}: {}", response.status()).into());
        }
        answer = response.into_body().collect().await?.to_bytes();
    }
    let answer: Value = serde_json::from_slice(&answer)?;
    let text = answer["choices"][0]["message"]["content"].as_str();
    Ok(text.ok_or("no text")?.to_owned())
}

/// One conversation with this plan, and the records that went each way.
async fn attempt(
    world: Arc<World>,
    grant: SignedGrant,
    plan: Option<Plan>,
) -> (Result<String, Failure>, (usize, usize)) {
    let host = HostileHost::before(bridge(&world).await, plan).await;
    let limit = plan.map_or(ENDS_WITHIN, |_| GIVEN_UP_AFTER);
    let ended = tokio::time::timeout(limit, converse(host.address, &grant)).await;
    host.assert_saw_nothing_of(PROMPT);
    let ended = ended.unwrap_or_else(|late| Err(late.into()));
    if let Ok(answer) = &ended {
        assert_eq!(answer, ANSWER, "{plan:?}");
    }
    (ended, host.records())
}

fn plans(fault: Fault, (to_node, to_client): (usize, usize)) -> Vec<Plan> {
    let mut plans = vec![];
    for (way, place) in WAYS.into_iter().flat_map(|way| PLACES.map(|place| (way, place))) {
        let records = match way {
            Way::ToNode => to_node,
            Way::ToClient => to_client,
        };
        plans.extend((0..records).map(|record| Plan {
            way,
            record,
            fault,
            place,
            seed: record as u64,
        }));
    }
    plans
}

#[tokio::test]
async fn whatever_the_host_does_to_bytes_the_agent_serves_the_next_client() {
    let world = Arc::new(World::start_with(64, Deadlines::default()).await);
    let (_, grant) = world.paying_client().await;
    let (answered, records) = attempt(world.clone(), grant.clone(), None).await;
    assert_eq!(answered.unwrap(), ANSWER);
    for fault in FAULTS {
        let mut attempts = JoinSet::new();
        for plan in plans(fault, records) {
            attempts.spawn(attempt(world.clone(), grant.clone(), Some(plan)));
        }
        let ended = attempts.join_all().await;
        let failed = ended.iter().filter(|(ended, _)| ended.is_err()).count();
        assert!(failed > ended.len() / 2, "{fault:?}: {failed} of {}", ended.len());
        let (answered, _) = attempt(world.clone(), grant.clone(), None).await;
        assert_eq!(answered.unwrap(), ANSWER, "after {fault:?}");
    }
    assert!(!world.guest.is_finished());
}
