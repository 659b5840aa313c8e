//! A node for tests: real TLS 1.3 and HTTP over loopback, evidence from the simulated platform, and an agent's
//! answers, honest or not. Everything that it receives inside TLS is kept, so that tests can say what left the
//! client.

#![allow(dead_code, unused_imports, reason = "each test binary uses another part")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's scaffolding fails the test"
)]

mod asking;
mod guest;
mod identity;
mod lie;
mod script;
mod session;

use std::{
    io,
    sync::{Arc, Mutex},
};

use cocoon::Endpoint;
use cocoon_protocol::{Grant, SessionProof, SignedGrant, TokenCounts};
use ed25519_dalek::SigningKey;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::HandshakeKind;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinHandle},
};
use tokio_rustls::TlsAcceptor;

pub(crate) use self::{
    asking::{OPTIONS, PROMPT, owner, paid, prompt},
    guest::{Guest, now_s, platform},
    identity::Identity,
    lie::TRICKLE_PAUSE,
    script::{ChatScript, Lie, Reply, Script, Then},
};
use self::{
    identity::Leaf,
    session::{Recorded, Session},
};

pub(crate) const ANSWER: [&str; 3] = ["Cocoon hides ", "your prompt: ", "größer 🦋."];
pub(crate) const TOKENS: TokenCounts = TokenCounts { input: 7, output: 9 };
pub(crate) const DAY_S: i64 = 24 * 3600;

struct State {
    guest: Mutex<Guest>,
    evidence_guest: Mutex<Option<Guest>>,
    script: Script,
    identity: Mutex<(TlsAcceptor, Leaf)>,
    received: Arc<Mutex<Vec<u8>>>,
    requests: Mutex<Vec<String>>,
    evidence: Mutex<Vec<Vec<u8>>>,
    served: Mutex<TokenCounts>,
    offered: Mutex<Vec<SignedGrant>>,
    handshakes: Mutex<Vec<HandshakeKind>>,
    connections: Mutex<Vec<AbortHandle>>,
}

/// A running node; ends when dropped.
pub(crate) struct Node {
    pub(crate) endpoint: Endpoint,
    state: Arc<State>,
    server: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Node {
    pub(crate) async fn serve(guest: Guest, identity: &Identity, mut script: Script) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let endpoint = format!("https://{}", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(identity.server_config()));
        let state = Arc::new(State {
            guest: Mutex::new(guest),
            evidence_guest: Mutex::new(script.evidence_guest.take()),
            script,
            identity: Mutex::new((acceptor, identity.leaf())),
            received: Arc::default(),
            requests: Mutex::default(),
            evidence: Mutex::default(),
            served: Mutex::default(),
            offered: Mutex::default(),
            handshakes: Mutex::default(),
            connections: Mutex::default(),
        });
        let shared = state.clone();
        let server = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                // As the launcher's relay does.
                tcp.set_nodelay(true).unwrap();
                let (acceptor, leaf) = shared.identity.lock().unwrap().clone();
                let connection = tokio::spawn(connection(tcp, acceptor, leaf, shared.clone()));
                shared.connections.lock().unwrap().push(connection.abort_handle());
            }
        });
        Self {
            endpoint,
            state,
            server,
        }
    }

    /// An honest node.
    pub(crate) async fn honest(guest: Guest) -> Self {
        Self::scripted(guest, Script::default()).await
    }

    /// A node with a certificate of now that does as `script` says.
    pub(crate) async fn scripted(mut guest: Guest, script: Script) -> Self {
        let identity = Identity::of(&mut guest, -60, DAY_S - 60);
        Self::serve(guest, &identity, script).await
    }

    /// Another TLS key and certificate for connections from now on.
    pub(crate) fn rotate(&self) {
        let identity = Identity::of(&mut self.state.guest.lock().unwrap(), -60, DAY_S - 60);
        let acceptor = TlsAcceptor::from(Arc::new(identity.server_config()));
        *self.state.identity.lock().unwrap() = (acceptor, identity.leaf());
    }

    /// Another guest at the same place: what was connected is cut, and nobody was served anything.
    pub(crate) fn restart(&self, guest: Guest) {
        *self.state.guest.lock().unwrap() = guest;
        *self.state.served.lock().unwrap() = TokenCounts::default();
        self.rotate();
        let connections = std::mem::take(&mut *self.state.connections.lock().unwrap());
        connections.iter().for_each(AbortHandle::abort);
    }

    /// Method and path of every request.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Every byte that came out of TLS.
    pub(crate) fn received(&self) -> Vec<u8> {
        self.state.received.lock().unwrap().clone()
    }

    /// How each TLS session was begun.
    pub(crate) fn handshakes(&self) -> Vec<HandshakeKind> {
        self.state.handshakes.lock().unwrap().clone()
    }

    /// Fresh evidence that was sent.
    pub(crate) fn sent_evidence(&self) -> Vec<Vec<u8>> {
        self.state.evidence.lock().unwrap().clone()
    }

    pub(crate) fn grant(&self, owner: &SigningKey) -> SignedGrant {
        self.grant_for(3600, owner)
    }

    /// One that expires after so many seconds.
    pub(crate) fn grant_for(&self, seconds: u32, owner: &SigningKey) -> SignedGrant {
        let guest = self.state.guest.lock().unwrap();
        let settlement = guest.launch.settlement;
        let public = owner.verifying_key().to_bytes();
        Grant {
            network: settlement.network,
            contract: settlement
                .contract_code
                .deposit_address(settlement.network, &public),
            agent_key: guest.usage_key.verifying_key().to_bytes(),
            payout_address: settlement.payout_address,
            prices: guest.launch.prices,
            cap_nano: 1_000_000_000,
            expires_s: u32::try_from(now_s()).unwrap() + seconds,
        }
        .sign(owner)
    }
}

async fn connection(tcp: TcpStream, acceptor: TlsAcceptor, leaf: Leaf, state: Arc<State>) {
    if state.script.stall_handshake {
        std::future::pending::<()>().await;
    }
    let Ok(tls) = acceptor.accept(tcp).await else {
        return;
    };
    let kind = tls.get_ref().1.handshake_kind().unwrap();
    state.handshakes.lock().unwrap().push(kind);
    let session = Session {
        proof_exporter: tls
            .get_ref()
            .1
            .export_keying_material([0; 32], SessionProof::EXPORTER_LABEL, None)
            .unwrap(),
        grant: Mutex::default(),
        tls: Arc::new(Mutex::new(tls)),
        leaf,
        state: state.clone(),
    };
    let session = Arc::new(session);
    let stream = Recorded {
        tls: session.tls.clone(),
        received: state.received.clone(),
    };
    if let Some(lie) = &state.script.lie {
        // The client goes when it has had enough.
        let _ = lie::serve(stream, &session, lie).await;
        return;
    }
    let service = service_fn(move |request| {
        let session = session.clone();
        async move { Ok::<_, io::Error>(session.serve(request).await) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
