//! What `cocoon proxy` adds between a program and a node, beside a session with the same node, in the same run.
//!
//! `cargo bench -p cocoon --bench proxy`. The node is the one of this crate's tests, at prices of next to nothing, and
//! it, the proxy and the programs share this machine's processors. First bytes: one request at a time on a connection
//! that is kept. Streams: 256 at once, a piece for each every 50 ms, as an agent's cells come; what counts is how long
//! all take. Rows are measured in turns; shown are the fastest and the median. Nothing is asserted: a busy machine is
//! not slow code.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

#[path = "../tests/node/mod.rs"]
mod node;

use std::{
    future::Future,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cocoon::{
    ChatMessage, ChatOptions, ChatRole, Deadlines, Fleet, PaidSession, Proxy, Purse, Verifier, Wallet,
};
use cocoon_protocol::Prices;
use cocoon_settlement::{GlobalConfig, LocalChain};
use cocoon_simulator::SimulatedPlatform;
use cocoon_verify::{Floors, Policy};
use ed25519_dalek::SigningKey;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use node::{ChatScript, Guest, Node, Script, now_s};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};

const FIRST_BYTE_TURNS: usize = 500;
const STREAM_TURNS: usize = 20;
const STREAMS: usize = 256;
/// As an agent's cells.
const TICK: Duration = Duration::from_millis(50);
const TON: u64 = 1_000_000_000;

#[tokio::main]
async fn main() {
    let dir = tempfile::tempdir().unwrap();
    let platform = SimulatedPlatform::open_or_create(&dir.path().join("platform"), now_s()).unwrap();
    let chain = LocalChain::open(dir.path().join("chain")).unwrap();
    let chain = chain.serve("127.0.0.1:0".parse().unwrap()).await.unwrap();
    std::fs::write(dir.path().join("ton.json"), chain.global_config().to_json()).unwrap();

    let open = Bench::start(&dir, &platform, None).await;
    let turns = open.first_bytes().await;
    println!("{:<42}{:>9}{:>9}", "first byte", "fastest", "median");
    show(&turns, 1e3, "ms");
    let added = median(turns.iter().map(|[direct, proxied]| (proxied - direct) * 1e3));
    println!("{:<51}{added:>9.3} ms", "  added by the proxy");

    let gate = Arc::new(Semaphore::new(0));
    let paced = Bench::start(&dir, &platform, Some(Arc::clone(&gate))).await;
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tick.tick().await;
            // None is saved up while nobody streams.
            gate.add_permits(STREAMS.saturating_sub(gate.available_permits()));
        }
    });
    let turns = paced.streams().await;
    println!(
        "{:<42}{:>9}{:>9}",
        format!("{STREAMS} streams at once"),
        "fastest",
        "median"
    );
    show(&turns, 1e3, "ms");
    let kept = median(turns.iter().map(|[direct, proxied]| direct / proxied * 100.0));
    println!("{:<51}{kept:>9.1} %", "  of the direct throughput");
}

fn show(turns: &[[f64; 2]], scale: f64, unit: &str) {
    for (row, name) in ["a session", "through the proxy"].into_iter().enumerate() {
        let fastest = turns.iter().map(|turn| turn[row]).fold(f64::MAX, f64::min);
        let median = median(turns.iter().map(|turn| turn[row]));
        println!("{name:<42}{:>9.3}{:>9.3} {unit}", fastest * scale, median * scale);
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A node, and a proxy before it.
struct Bench {
    node: Node,
    policy: Policy,
    proxy: SocketAddr,
}

impl Bench {
    async fn start(
        dir: &tempfile::TempDir,
        platform: &SimulatedPlatform,
        gate: Option<Arc<Semaphore>>,
    ) -> Self {
        let guest = Guest::boot_with(platform, 1, |launch| {
            launch.prices = Prices {
                input_nano_per_kilotoken: 1,
                output_nano_per_kilotoken: 1,
            };
        });
        let policy = guest.policy();
        let script = Script {
            chat: ChatScript {
                gate,
                ..ChatScript::default()
            },
            ..Script::default()
        };
        let node = Node::scripted(guest, script).await;
        let endpoints = [node.endpoint.clone()];
        let fleet = Fleet::new(endpoints, &policy, Floors::default(), Deadlines::default()).unwrap();
        fleet.verify().await;
        let wallet = dir.path().join(node.endpoint.port().to_string());
        let wallet = Wallet::create(&wallet).unwrap();
        let config = GlobalConfig::load(dir.path().join("ton.json")).unwrap();
        let purse = Purse::open(wallet, &config, fleet.network().unwrap())
            .await
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = listener.local_addr().unwrap();
        tokio::spawn(Proxy::new(fleet, purse, 10 * TON).serve(listener));
        Self { node, policy, proxy }
    }

    /// Seconds to the first byte of answers: of a session, through the proxy.
    async fn first_bytes(&self) -> Vec<[f64; 2]> {
        let mut direct = self.sessions(1).await.remove(0);
        let mut proxied = self.program().await;
        let mut turns = vec![];
        ask(&mut proxied).await;
        for _ in 0..FIRST_BYTE_TURNS {
            let direct_s = chat(&mut direct).await;
            turns.push([direct_s, ask(&mut proxied).await]);
        }
        turns
    }

    /// Seconds until all streams are over: of sessions, through the proxy.
    async fn streams(&self) -> Vec<[f64; 2]> {
        let mut direct = self.sessions(STREAMS).await;
        let mut proxied = vec![];
        for _ in 0..STREAMS {
            proxied.push(self.program().await);
        }
        let mut turns = vec![];
        for turn in 0..=STREAM_TURNS {
            let start = Instant::now();
            let chats = direct.into_iter().map(|mut session| async move {
                chat(&mut session).await;
                session
            });
            direct = all(chats).await;
            let direct_s = start.elapsed().as_secs_f64();
            let start = Instant::now();
            let asks = proxied.into_iter().map(|mut program| async move {
                ask(&mut program).await;
                program
            });
            proxied = all(asks).await;
            // The proxy's connections to the node are made in the first turn.
            if turn > 0 {
                turns.push([direct_s, start.elapsed().as_secs_f64()]);
            }
        }
        turns
    }

    async fn sessions(&self, count: usize) -> Vec<PaidSession> {
        let verifier = Verifier::new(self.policy.clone(), Floors::default(), Deadlines::default()).unwrap();
        let owner = SigningKey::from_bytes(&[5; 32]);
        let grant = self.node.grant(&owner);
        let mut sessions = vec![];
        for _ in 0..count {
            let mut session = verifier.connect(&self.node.endpoint).await.unwrap();
            let bound = session.offer(&grant, &owner).await.unwrap();
            sessions.push(session.open(bound));
        }
        sessions
    }

    /// A program's connection to the proxy.
    async fn program(&self) -> http1::SendRequest<Full<Bytes>> {
        let tcp = TcpStream::connect(self.proxy).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let (http, connection) = http1::handshake(TokioIo::new(tcp)).await.unwrap();
        tokio::spawn(connection);
        http
    }
}

/// Waits for all, which run at the same time.
async fn all<T: Send + 'static>(
    each: impl Iterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    each.collect::<JoinSet<T>>().join_all().await
}

/// Seconds to the first text of a session's answer, which is read to its receipt.
async fn chat(session: &mut PaidSession) -> f64 {
    let prompt = [ChatMessage {
        role: ChatRole::User,
        content: "a question".into(),
    }];
    let options = ChatOptions {
        output_tokens_max: 16,
        temperature: 0.0,
    };
    let answer = session.chat(&prompt, options, |_| ()).await.unwrap();
    answer.first_text.as_secs_f64()
}

/// Seconds to the first byte of the proxy's answer, which is read to its end.
async fn ask(program: &mut http1::SendRequest<Full<Bytes>>) -> f64 {
    let body = json!({"model": "cocoon-demo", "stream": true, "max_tokens": 16, "temperature": 0.0,
                      "messages": [{"role": "user", "content": "a question"}]});
    let request = Request::post("/v1/chat/completions").header("host", "127.0.0.1");
    let request = request.body(Full::from(body.to_string())).unwrap();
    program.ready().await.unwrap();
    let start = Instant::now();
    let response = program.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    let first_s = start.elapsed().as_secs_f64();
    let rest = body.collect().await.unwrap().to_bytes();
    assert!(rest.ends_with(b"data: [DONE]\n\n"));
    first_s
}
