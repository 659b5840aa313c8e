//! The local chain's liteserver: `lite_api.tl` over ADNL, on loopback.

use std::{
    fs,
    net::{IpAddr, SocketAddr, SocketAddrV4},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use adnl::{
    AdnlPeer,
    crypto::{KeyPair, SecretKey},
};
use cocoon_evidence::Digest32;
use cocoon_protocol::AccountAddress;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use ton_liteapi::tl::{
    adnl::Message,
    common::{BlockIdExt, Int256, ZeroStateIdExt},
    request::Request,
    response::{self, Response},
};

use super::{LocalChainError, chain::Chain};
use crate::{GlobalConfig, Liteserver};

/// More clients wait to be accepted. Each may make the server hold one ADNL packet, 16 MiB.
const CONNECTIONS_MAX: usize = 16;

/// A client that shakes hands more slowly, or takes an answer more slowly, is dropped.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);

/// A client that asks nothing for so long is dropped; it reconnects.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// One connection's requests are spaced so that they are not more than this in a second.
const REQUESTS_PER_SECOND_MAX: u32 = 500;

/// A chain of its own, in one directory. Its coins are worth nothing.
#[derive(Debug)]
pub struct LocalChain {
    chain: Chain,
    key: [u8; 32],
}

/// A served local chain; it stops when this is dropped.
#[derive(Debug)]
pub struct LocalChainHandle {
    address: SocketAddr,
    config: GlobalConfig,
    /// Owns the accepting task, which owns the connections.
    tasks: JoinSet<()>,
    chain: SharedChain,
}

/// Empty once serving has ended: requests that are still on their way must not keep the log open.
type SharedChain = Arc<Mutex<Option<Chain>>>;

impl LocalChain {
    /// Opens the chain in `dir`, or makes a new one there. Everything that was acknowledged before is there.
    ///
    /// # Errors
    /// See [`LocalChainError`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, LocalChainError> {
        let dir = dir.as_ref();
        fs::create_dir_all(dir).map_err(LocalChainError::io(dir))?;
        Ok(Self {
            chain: Chain::open(dir)?,
            key: server_key(dir)?,
        })
    }

    /// Serves it as a liteserver; port 0 takes a free one. Runs in tasks of the current tokio runtime.
    ///
    /// # Errors
    /// See [`LocalChainError`].
    pub async fn serve(self, listen: SocketAddr) -> Result<LocalChainHandle, LocalChainError> {
        let IpAddr::V4(ip) = listen.ip() else {
            return Err(LocalChainError::NotLoopback(listen));
        };
        if !ip.is_loopback() {
            return Err(LocalChainError::NotLoopback(listen));
        }
        let bound = |source| LocalChainError::Listen {
            address: listen,
            source,
        };
        let listener = TcpListener::bind(listen).await.map_err(bound)?;
        let address = listener.local_addr().map_err(bound)?;
        let keys = KeyPair::from(&SecretKey::from_bytes(self.key));
        let config = GlobalConfig::single(Liteserver {
            address: SocketAddrV4::new(ip, address.port()),
            key: keys.public_key.to_bytes(),
        });
        let chain = Arc::new(Mutex::new(Some(self.chain)));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, keys, chain.clone()));
        Ok(LocalChainHandle {
            address,
            config,
            tasks,
            chain,
        })
    }
}

impl LocalChainHandle {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What clients need to reach it.
    pub fn global_config(&self) -> &GlobalConfig {
        &self.config
    }

    /// Stops serving and closes the log, so that the directory can be opened again.
    pub async fn shutdown(mut self) {
        self.tasks.shutdown().await;
    }
}

impl Drop for LocalChainHandle {
    fn drop(&mut self) {
        self.tasks.abort_all();
        // Waits for the message that is being executed, a millisecond or two.
        self.chain.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// The server's key stays the same, so that a `global.config.json` given away stays valid but for the port.
fn server_key(dir: &Path) -> Result<[u8; 32], LocalChainError> {
    let path: PathBuf = dir.join("liteserver.key");
    if let Ok(bytes) = fs::read(&path) {
        return bytes
            .try_into()
            .map_err(|_| LocalChainError::Corrupt { path, offset: 32 });
    }
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|error| LocalChainError::execution("make a key", error))?;
    let unfinished = dir.join("liteserver.key.new");
    fs::write(&unfinished, key)
        .and_then(|()| fs::rename(&unfinished, &path))
        .map_err(LocalChainError::io(&path))?;
    Ok(key)
}

async fn accept(listener: TcpListener, keys: KeyPair, chain: SharedChain) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, peer)) => {
                let chain = chain.clone();
                connections.spawn(async move {
                    if let Err(reason) = converse(stream, keys, chain).await {
                        tracing::debug!(%peer, reason, "the local chain drops a client");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the local chain cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Answers one client's requests, one after the other, until it leaves; the reason if it is made to.
async fn converse(stream: TcpStream, keys: KeyPair, chain: SharedChain) -> Result<(), &'static str> {
    let mut peer = timeout(PEER_TIMEOUT, AdnlPeer::handle_handshake(stream, |_| Some(keys)))
        .await
        .map_err(|_| "no handshake in time")?
        .map_err(|_| "handshake failed")?;
    loop {
        let Some(packet) = timeout(IDLE_TIMEOUT, peer.next()).await.map_err(|_| "idle")? else {
            return Ok(());
        };
        let packet = packet.map_err(|_| "connection failed")?;
        let started = Instant::now();
        let answer = match tl_proto::deserialize::<Message>(&packet) {
            Ok(Message::Query { query_id, query }) => {
                let chain = chain.clone();
                let request = query.wrapped_request.request;
                let answer = tokio::task::spawn_blocking(move || {
                    match chain.lock().as_deref_mut() {
                        Ok(Some(chain)) => answer(chain, request),
                        Ok(None) => refusal("the local chain has stopped"),
                        // Memory may be ahead of the disk, or half changed: only a restart mends that.
                        Err(_) => refusal("the local chain has failed; start it again"),
                    }
                });
                let answer = answer.await.map_err(|_| "a request failed")?;
                Message::Answer { query_id, answer }
            }
            Ok(Message::Ping { random_id }) => Message::Pong { random_id },
            _ => return Err("not a query"),
        };
        timeout(PEER_TIMEOUT, peer.send(tl_proto::serialize(answer).into()))
            .await
            .map_err(|_| "takes no answer")?
            .map_err(|_| "connection failed")?;
        let pause = Duration::from_secs(1) / REQUESTS_PER_SECOND_MAX;
        tokio::time::sleep(pause.saturating_sub(started.elapsed())).await;
    }
}

fn answer(chain: &mut Chain, request: Request) -> Response {
    match request {
        Request::GetTime => Response::CurrentTime(response::CurrentTime { now: clock_s() }),
        Request::GetVersion => Response::Version(response::Version {
            mode: 0,
            version: 0x101,
            capabilities: 7,
            now: clock_s(),
        }),
        Request::GetMasterchainInfo => Response::MasterchainInfo(response::MasterchainInfo {
            last: block_id(chain, -1),
            state_root_hash: Int256(chain.state_hash().0),
            init: ZeroStateIdExt {
                workchain: -1,
                root_hash: Int256([0; 32]),
                file_hash: Int256([0; 32]),
            },
        }),
        // Always as of the last block, whichever is asked for: older ones are not kept.
        Request::GetAccountState(query) if query.account.workchain == 0 => {
            let address = AccountAddress(Digest32(query.account.id.0));
            match chain.account(&address) {
                Ok((state, proof)) => Response::AccountState(response::AccountState {
                    id: block_id(chain, -1),
                    shardblk: block_id(chain, 0),
                    shard_proof: vec![],
                    proof,
                    state,
                }),
                Err(error) => refusal(&format!("the account cannot be read: {error}")),
            }
        }
        Request::SendMessage(query) => match chain.execute(&query.body, clock_s()) {
            Ok(executed) => {
                tracing::debug!(gas = executed.gas, seqno = chain.block_id().0, "message executed");
                Response::SendMsgStatus(response::SendMsgStatus { status: 1 })
            }
            Err(error) => {
                tracing::debug!(%error, "message refused");
                refusal(&error.to_string())
            }
        },
        _ => refusal("the local chain does not know this request"),
    }
}

fn refusal(message: &str) -> Response {
    Response::Error(response::Error {
        code: 0,
        message: message.into(),
    })
}

fn block_id(chain: &Chain, workchain: i32) -> BlockIdExt {
    let (seqno, root_hash, file_hash) = chain.block_id();
    BlockIdExt {
        workchain,
        shard: 1 << 63,
        seqno,
        root_hash: Int256(root_hash.0),
        file_hash: Int256(file_hash.0),
    }
}

fn clock_s() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(now.as_secs()).unwrap_or(u32::MAX)
}
