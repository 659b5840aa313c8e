//! A proxy in front of nodes, over loopback and with a real local chain.

#![allow(dead_code, reason = "each test binary uses another part")]
#![allow(clippy::unwrap_used, reason = "a test's scaffolding fails the test")]

use std::{convert::Infallible, net::SocketAddr};

use bytes::Bytes;
use cocoon::{Deadlines, Fleet, Proxy, Purse, Wallet};
use cocoon_protocol::NetworkId;
use cocoon_settlement::{ChainClient, DepositState, GlobalConfig, LocalChain, LocalChainHandle};
use cocoon_simulator::SimulatedPlatform;
use cocoon_verify::Floors;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Incoming};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::node::{ChatScript, Guest, Node, Script, now_s};

pub(crate) const PROMPT: &str = "the-secret-prompt";
pub(crate) const TON: u64 = 1_000_000_000;

/// A platform and a chain.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) platform: SimulatedPlatform,
    _chain: LocalChainHandle,
}

/// A proxy that serves; ends when dropped.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    /// The page's URL.
    pub(crate) page: Option<String>,
    server: JoinHandle<Infallible>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let platform = SimulatedPlatform::open_or_create(&dir.path().join("platform"), now_s()).unwrap();
        let chain = LocalChain::open(dir.path().join("chain")).unwrap();
        let chain = chain.serve("127.0.0.1:0".parse().unwrap()).await.unwrap();
        std::fs::write(dir.path().join("ton.json"), chain.global_config().to_json()).unwrap();
        Self {
            platform,
            dir,
            _chain: chain,
        }
    }

    pub(crate) async fn node(&self, chat: ChatScript) -> Node {
        let script = Script {
            chat,
            ..Script::default()
        };
        Node::scripted(Guest::boot(&self.platform, 1), script).await
    }

    /// The deposit, as it is on the chain.
    pub(crate) async fn deposit(&self) -> DepositState {
        let wallet = Wallet::load(&self.dir.path().join("wallet")).unwrap();
        let config = GlobalConfig::load(self.dir.path().join("ton.json")).unwrap();
        let purse = Purse::open(wallet, &config, NetworkId::LOCAL).await.unwrap();
        purse.state().await.unwrap().0.expect("a grant was locked")
    }

    /// Locks a grant of 1 TON for a node, which ends after so many seconds.
    pub(crate) async fn lock(&self, node: &Node, seconds: u32) {
        let wallet = Wallet::load(&self.dir.path().join("wallet")).unwrap();
        let config = GlobalConfig::load(self.dir.path().join("ton.json")).unwrap();
        let chain = ChainClient::connect(&config, NetworkId::LOCAL).await.unwrap();
        let deposit = wallet.deposit(NetworkId::LOCAL);
        chain.request_faucet(&deposit, 2 * TON).await.unwrap();
        let grant = node.grant_for(seconds, wallet.key());
        chain.lock_grant(&grant).await.unwrap();
    }

    pub(crate) async fn proxy(&self, nodes: &[&Node]) -> Served {
        self.proxy_with(nodes, 10 * TON, false).await
    }

    pub(crate) async fn proxy_with_page(&self, nodes: &[&Node]) -> Served {
        self.proxy_with(nodes, 10 * TON, true).await
    }

    pub(crate) async fn proxy_with(&self, nodes: &[&Node], max_nano: u64, with_page: bool) -> Served {
        self.serve(nodes, max_nano, with_page, Deadlines::default()).await
    }

    pub(crate) async fn proxy_within(&self, nodes: &[&Node], deadlines: Deadlines) -> Served {
        self.serve(nodes, 10 * TON, false, deadlines).await
    }

    async fn serve(&self, nodes: &[&Node], max_nano: u64, with_page: bool, deadlines: Deadlines) -> Served {
        let policy = Guest::boot(&self.platform, 1).policy();
        let endpoints = nodes.iter().map(|node| node.endpoint.clone());
        let fleet = Fleet::new(endpoints, &policy, Floors::default(), deadlines).unwrap();
        fleet.verify().await;
        let wallet = Wallet::create(&self.dir.path().join("wallet")).unwrap();
        let config = GlobalConfig::load(self.dir.path().join("ton.json")).unwrap();
        let purse = Purse::open(wallet, &config, fleet.network().unwrap())
            .await
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut proxy = Proxy::new(fleet, purse, max_nano);
        let address = listener.local_addr().unwrap();
        let page = with_page.then(|| format!("http://{address}{}", proxy.offer_page().unwrap()));
        Served {
            address,
            page,
            server: tokio::spawn(proxy.serve(listener)),
        }
    }
}

impl Served {
    pub(crate) async fn send(
        &self,
        request: hyper::http::request::Builder,
        body: &Value,
    ) -> Response<Incoming> {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let body = Full::new(Bytes::from(body.to_string()));
        client.request(request.body(body).unwrap()).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> String {
        let url = format!("http://{}{path}", self.address);
        let response = self.send(Request::get(url), &Value::Null).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        text(response).await
    }

    pub(crate) async fn get_json(&self, path: &str) -> Value {
        serde_json::from_str(&self.get(path).await).unwrap()
    }

    pub(crate) fn post(&self) -> hyper::http::request::Builder {
        Request::post(format!("http://{}/v1/chat/completions", self.address))
    }

    pub(crate) async fn chat(&self, stream: bool) -> Response<Incoming> {
        self.send(self.post(), &chat(stream)).await
    }
}

pub(crate) fn chat(stream: bool) -> Value {
    json!({"model": "cocoon-demo", "stream": stream, "max_tokens": 16,
           "messages": [{"role": "user", "content": PROMPT}]})
}

pub(crate) async fn text(response: Response<Incoming>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}
