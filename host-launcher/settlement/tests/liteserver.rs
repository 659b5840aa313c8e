//! The whole way through the liteserver protocol: local chain, client, contract.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    future::ready,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use adnl::{
    AdnlPeer,
    crypto::{KeyPair, SecretKey},
};
use cocoon_evidence::Digest32;
use cocoon_protocol::{AccountAddress, Grant, NetworkId, Prices, SignedVoucher, TokenCounts, Voucher};
use cocoon_settlement::{
    ChainClient, ChainError, GlobalConfig, Liteserver, LocalChain, LocalChainError, LocalChainHandle,
    WITHDRAW_ALL, Withdrawal, deposit_code, settle_minimum_nano,
};
use ed25519_dalek::SigningKey;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::timeout,
};
use ton_liteapi::tl::{
    adnl::Message,
    common::Int256,
    request::{LiteQuery, Request, WrappedRequest},
    response::{self, Response},
};
use tycho_types::{boc::Boc, merkle::MerkleProof, prelude::*};

const TON: u64 = 1_000_000_000;

fn now_s() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as u32
}

fn owner() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

fn agent() -> SigningKey {
    SigningKey::from_bytes(&[1; 32])
}

fn provider() -> AccountAddress {
    AccountAddress(Digest32::of(b"provider"))
}

fn deposit() -> AccountAddress {
    deposit_code().deposit_address(NetworkId::LOCAL, &owner().verifying_key().to_bytes())
}

fn grant() -> Grant {
    Grant {
        network: NetworkId::LOCAL,
        contract: deposit(),
        agent_key: agent().verifying_key().to_bytes(),
        payout_address: provider(),
        prices: Prices {
            input_nano_per_kilotoken: 1_000_000_000,
            output_nano_per_kilotoken: 3_000_000_000,
        },
        cap_nano: 2 * TON,
        expires_s: now_s() + 3600,
    }
}

fn voucher(grant: &Grant, input: u64, output: u64) -> SignedVoucher {
    Voucher {
        network: NetworkId::LOCAL,
        contract: deposit(),
        agent_key: grant.agent_key,
        grant: grant.id(),
        served: TokenCounts { input, output },
    }
    .sign(&agent())
}

async fn serve(dir: &Path) -> LocalChainHandle {
    let chain = LocalChain::open(dir).unwrap();
    chain.serve("127.0.0.1:0".parse().unwrap()).await.unwrap()
}

async fn connect(server: &LocalChainHandle) -> ChainClient {
    // As everybody else: through the text of the configuration.
    let config = GlobalConfig::parse(server.global_config().to_json().as_bytes()).unwrap();
    ChainClient::connect(&config, NetworkId::LOCAL).await.unwrap()
}

fn config_of(servers: &[Liteserver]) -> GlobalConfig {
    let entry = |server: &Liteserver| {
        let config = GlobalConfig::single(*server).to_json();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        config["liteservers"][0].clone()
    };
    let servers: Vec<_> = servers.iter().map(entry).collect();
    GlobalConfig::parse(serde_json::json!({"liteservers": servers}).to_string().as_bytes()).unwrap()
}

fn error(message: &str) -> Response {
    Response::Error(response::Error {
        code: 0,
        message: message.into(),
    })
}

/// A liteserver that answers one client after the other, as it is told.
async fn serve_fake<F>(answer: impl Fn(Request) -> F + Send + 'static) -> Liteserver
where
    F: Future<Output = Response> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else {
        unreachable!("bound to IPv4")
    };
    let keys = KeyPair::from(&SecretKey::from_bytes([9; 32]));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut peer = AdnlPeer::handle_handshake(stream, |_| Some(keys)).await.unwrap();
            while let Some(Ok(packet)) = peer.next().await {
                let Ok(Message::Query { query_id, query }) = tl_proto::deserialize::<Message>(&packet) else {
                    break;
                };
                let answer = answer(query.wrapped_request.request).await;
                let answer = Message::Answer { query_id, answer };
                peer.send(tl_proto::serialize(answer).into()).await.unwrap();
            }
        }
    });
    Liteserver {
        address,
        key: keys.public_key.to_bytes(),
    }
}

/// What a true liteserver answers.
async fn forward(to: Liteserver, request: Request) -> Response {
    let mut peer = AdnlPeer::connect(to.key, to.address).await.unwrap();
    let query = Message::Query {
        query_id: Int256([0; 32]),
        query: LiteQuery {
            wrapped_request: WrappedRequest {
                wait_masterchain_seqno: None,
                request,
            },
        },
    };
    peer.send(tl_proto::serialize(query).into()).await.unwrap();
    let packet = peer.next().await.unwrap().unwrap();
    match tl_proto::deserialize::<Message>(&packet) {
        Ok(Message::Answer { answer, .. }) => answer,
        other => unreachable!("{other:?}"),
    }
}

/// The same account on testnet: the block's root cell names the network.
fn on_testnet(answer: Response) -> Response {
    let Response::AccountState(mut state) = answer else {
        return answer;
    };
    let (block_proof, state_proof) = Boc::decode_pair(&state.proof).unwrap();
    let block = block_proof.parse_exotic::<MerkleProof>().unwrap().cell;
    // tag:uint32 global_id:int32
    let mut rest = block.as_slice().unwrap();
    let tag = rest.load_u32().unwrap();
    rest.load_u32().unwrap();
    let cell = CellBuilder::build_from((tag, NetworkId::TESTNET.0.cast_unsigned(), rest)).unwrap();
    state.shardblk.root_hash = Int256(cell.hash(0).0);
    let block_proof = MerkleProof {
        hash: *cell.hash(0),
        depth: cell.depth(0),
        cell,
    };
    state.proof = Boc::encode_pair((CellBuilder::build_from(block_proof).unwrap(), state_proof));
    Response::AccountState(state)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_funds_locks_is_charged_and_withdraws_and_a_restart_forgets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let chain = connect(&server).await;
    assert_eq!(chain.balance(&deposit()).await.unwrap(), 0);
    assert_eq!(chain.deposit(&deposit()).await.unwrap(), None);

    assert_eq!(chain.request_faucet(&deposit(), 3 * TON).await.unwrap(), 3 * TON);
    let grant = grant();
    let locked = chain.lock_grant(&grant.clone().sign(&owner())).await.unwrap();
    assert_eq!((locked.cap_nano, locked.paid_nano), (2 * TON, 0));
    assert_eq!(locked.payout_address, provider());

    let state = chain.settle(&voucher(&grant, 50, 100)).await.unwrap();
    assert_eq!(state.paid_nano, TON * 35 / 100);
    let received = chain.balance(&provider()).await.unwrap();
    assert!(received > TON * 34 / 100 && received < TON * 35 / 100);

    // Stopped between two settlements; the port changes, the key does not.
    server.shutdown().await;
    let server = serve(dir.path()).await;
    let chain = connect(&server).await;
    assert_eq!(chain.balance(&provider()).await.unwrap(), received);
    assert_eq!(chain.grant(&deposit(), &grant.id()).await.unwrap(), Some(state));

    // Again the same, and an older one: success, and nothing is paid.
    assert_eq!(chain.settle(&voucher(&grant, 50, 100)).await.unwrap(), state);
    assert_eq!(chain.settle(&voucher(&grant, 1, 1)).await.unwrap(), state);
    assert_eq!(
        chain.lock_grant(&grant.clone().sign(&owner())).await.unwrap(),
        state
    );
    assert_eq!(chain.balance(&provider()).await.unwrap(), received);
    chain.settle(&voucher(&grant, 50, 300)).await.unwrap();

    // A deployed deposit pays for receiving, so less than the amount arrives.
    let before = chain.balance(&deposit()).await.unwrap();
    let funded = chain.request_faucet(&deposit(), TON).await.unwrap();
    assert!(
        funded < before + TON && funded > before + TON - 20_000_000,
        "{before} {funded}"
    );

    let order = Withdrawal {
        network: NetworkId::LOCAL,
        contract: deposit(),
        seqno: 0,
        valid_until_s: now_s() + 60,
        destination: AccountAddress(Digest32::of(b"wallet")),
        amount_nano: WITHDRAW_ALL,
        release: None,
    };
    let after = chain.withdraw(&order.clone().sign(&owner())).await.unwrap();
    assert_eq!(after.seqno, 1);
    assert!(after.balance_nano >= after.reserved_nano);
    assert!(chain.balance(&order.destination).await.unwrap() > TON / 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let chain = connect(&server).await;
    let grant = grant();
    let signed = grant.clone().sign(&owner());

    let error = chain.lock_grant(&signed).await.unwrap_err();
    assert!(
        matches!(
            error,
            ChainError::InsufficientFunds {
                available_nano: 0,
                ..
            }
        ),
        "{error}"
    );
    let error = chain.settle(&voucher(&grant, 50, 100)).await.unwrap_err();
    assert!(
        matches!(
            error,
            ChainError::Refused {
                exit_code: Some(210),
                ..
            }
        ),
        "{error}"
    );

    chain.request_faucet(&deposit(), 3 * TON).await.unwrap();
    chain.lock_grant(&signed).await.unwrap();
    let code = |error: ChainError| match error {
        ChainError::Refused { exit_code, .. } => exit_code,
        other => unreachable!("{other}"),
    };
    let mut forged = voucher(&grant, 50, 100);
    forged.voucher.served.output += 1;
    assert_eq!(code(chain.settle(&forged).await.unwrap_err()), Some(204));
    assert_eq!(
        code(chain.settle(&voucher(&grant, 1, 1)).await.unwrap_err()),
        Some(214)
    );
    assert_eq!(
        code(chain.settle(&voucher(&grant, 0, 1_000_000)).await.unwrap_err()),
        Some(213)
    );

    for change in [
        |grant: &mut Grant| grant.network = NetworkId::MAINNET,
        |grant: &mut Grant| grant.contract = provider(),
        |grant: &mut Grant| grant.cap_nano = settle_minimum_nano() - 1,
    ] {
        let mut changed = grant.clone();
        change(&mut changed);
        let error = chain.lock_grant(&changed.sign(&owner())).await.unwrap_err();
        assert!(matches!(error, ChainError::Invalid { .. }), "{error}");
    }
    assert_eq!(chain.balance(&provider()).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_config_of_another_network_is_noticed_and_has_no_faucet() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let error = ChainClient::connect(server.global_config(), NetworkId::TESTNET)
        .await
        .unwrap_err();
    let expected = NetworkId::TESTNET.0;
    assert!(
        matches!(error, ChainError::WrongNetwork { found: -417, expected: e } if e == expected),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_server_and_a_wrong_key_are_unreachable_and_the_next_one_is_tried() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let good = server.global_config().liteservers()[0];
    let mut wrong_key = good;
    wrong_key.key = SigningKey::from_bytes(&[8; 32]).verifying_key().to_bytes();
    let error = ChainClient::connect(&GlobalConfig::single(wrong_key), NetworkId::LOCAL)
        .await
        .unwrap_err();
    assert!(
        matches!(error, ChainError::Unreachable { tried: 1, .. }),
        "{error}"
    );

    let unused = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut dead = good;
    dead.address.set_port(unused.port());
    let chain = ChainClient::connect(&config_of(&[dead, good]), NetworkId::LOCAL)
        .await
        .unwrap();
    assert_eq!(chain.request_faucet(&deposit(), TON).await.unwrap(), TON);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_call_leaves_a_server_that_was_given_up_and_one_whose_answer_is_of_no_use() {
    /// Less than the client itself gives a server to connect.
    const PATIENCE: Duration = Duration::from_secs(3);
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let first = serve(dirs[0].path()).await;
    let last = serve(dirs[1].path()).await;
    // Takes connections, as far as the kernel does that for it, and says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut silent = first.global_config().liteservers()[0];
    silent.address.set_port(listener.local_addr().unwrap().port());
    let config = config_of(&[
        first.global_config().liteservers()[0],
        silent,
        serve_fake(|_| ready(error("out of sync"))).await,
        last.global_config().liteservers()[0],
    ]);
    let chain = ChainClient::connect(&config, NetworkId::LOCAL).await.unwrap();
    first.shutdown().await;

    let given_up = timeout(PATIENCE, chain.balance(&deposit())).await;
    assert!(given_up.is_err(), "{given_up:?}");
    let balance = timeout(PATIENCE, chain.balance(&deposit())).await;
    assert!(matches!(balance, Ok(Ok(0))), "{balance:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_takes_no_message_is_left_for_the_next_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let chain = connect(&server).await;
    chain.request_faucet(&deposit(), 3 * TON).await.unwrap();
    let grant = grant();
    chain.lock_grant(&grant.clone().sign(&owner())).await.unwrap();

    let good = server.global_config().liteservers()[0];
    for attempt in 1..=3 {
        let reader = serve_fake(move |request| async move {
            match (request, attempt) {
                (Request::SendMessage(_), 1) => error("not ready"),
                (Request::SendMessage(_), 2) => error("exitcode=214, as the contract would say"),
                (Request::SendMessage(_), _) => forward(good, Request::GetMasterchainInfo).await,
                (request, _) => forward(good, request).await,
            }
        });
        let config = config_of(&[reader.await, good]);
        let chain = ChainClient::connect(&config, NetworkId::LOCAL).await.unwrap();
        let voucher = voucher(&grant, 30 * attempt, 60 * attempt);
        let refused = chain.settle(&voucher).await.unwrap_err();
        assert!(matches!(refused, ChainError::Refused { .. }), "{refused}");
        let settled = chain.settle(&voucher).await.unwrap();
        assert_eq!(settled.paid_nano, attempt * TON * 21 / 100);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_is_left_for_the_next_one() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    // Its only block is the genesis, of 2026-01-01.
    let still = serve(dirs[0].path()).await;
    let moving = serve(dirs[1].path()).await;
    connect(&moving)
        .await
        .request_faucet(&deposit(), TON)
        .await
        .unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let fake = |server: &LocalChainHandle, asked: Arc<AtomicUsize>| {
        let server = server.global_config().liteservers()[0];
        serve_fake(move |request| {
            asked.fetch_add(1, Ordering::Relaxed);
            async move { on_testnet(forward(server, request).await) }
        })
    };
    let moving = fake(&moving, Arc::default()).await;
    let still = fake(&still, asked.clone()).await;

    let config = config_of(&[still, moving]);
    let chain = ChainClient::connect(&config, NetworkId::TESTNET).await.unwrap();
    assert_eq!(chain.balance(&deposit()).await.unwrap(), TON);
    assert_eq!(asked.load(Ordering::Relaxed), 2, "two requests make a look");

    let error = ChainClient::connect(&config_of(&[still, still]), NetworkId::TESTNET)
        .await
        .unwrap_err();
    assert!(matches!(error, ChainError::BadAnswer { .. }), "{error}");
    assert!(error.to_string().contains("clock"), "{error}");
    assert_eq!(asked.load(Ordering::Relaxed), 2 + 4, "each server once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_directory_serves_once_and_only_on_loopback() {
    let dir = tempfile::tempdir().unwrap();
    let _server = serve(dir.path()).await;
    let error = LocalChain::open(dir.path()).unwrap_err();
    assert!(matches!(error, LocalChainError::InUse { .. }), "{error}");
    let other = tempfile::tempdir().unwrap();
    let everywhere = "0.0.0.0:0".parse().unwrap();
    let error = LocalChain::open(other.path())
        .unwrap()
        .serve(everywhere)
        .await
        .unwrap_err();
    assert!(matches!(error, LocalChainError::NotLoopback(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_who_do_not_speak_the_protocol_do_not_stop_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    for _ in 0..40 {
        let mut stranger = tokio::net::TcpStream::connect(server.address()).await.unwrap();
        stranger.write_all(&[0x5a; 600]).await.unwrap();
        let mut rest = vec![];
        // Closed by the server, with or without a reset.
        let _ = stranger.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
    }
    let chain = connect(&server).await;
    assert_eq!(chain.request_faucet(&deposit(), TON).await.unwrap(), TON);
}
