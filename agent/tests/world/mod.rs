//! The world around a guest, played in one process: host, machine, engine and a client.

mod client;
mod engine;
mod host;
mod machine;
#[path = "../../../ci/soak/src/tls.rs"]
pub(crate) mod tls;

use std::{
    io,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use cocoon_agent::{
    boot::{self, BootError, Parts, Volumes},
    engine::{Engine, Spawn},
    gpu::Gpus,
    guest::{self, RunError},
    host::HostClient,
    platform::Platform,
    serve::Deadlines,
    transport::BoxStream,
};
use cocoon_evidence::Digest32;
use cocoon_protocol::{
    AccountAddress, ContractCode, Grant, LaunchDocument, NetworkId, SignedGrant,
    host::{FromGuest, ToGuest, UsageRecord},
    read_frame_async, write_frame_async,
};
use ed25519_dalek::SigningKey;
use hyper::StatusCode;
use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::json;
use tokio::{
    io::{DuplexStream, duplex},
    sync::mpsc,
    task::JoinHandle,
    time::sleep,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub(crate) use self::{
    client::{Client, NONCE, chat_body, events, owner},
    engine::{INPUT_TOKENS, Script},
    host::{ENDORSEMENTS, Host, HostDial, Queue},
    machine::{Disk, Fake, NoGpus, OtherDisk, StuckDisk},
};

pub(crate) const MODEL: &str = "demo";

pub(crate) fn launch_document(requests_max: u32) -> Vec<u8> {
    let digest = |text: &str| Digest32::of(text.as_bytes()).to_string();
    json!({
        "version": 1,
        "model": {"name": MODEL,
                  "verity": {"data_blocks": 9, "salt": digest("salt"), "root_hash": digest("root")}},
        "numeric_profile": "f32",
        "prices": {"input_nano_per_kilotoken": 1_000, "output_nano_per_kilotoken": 2_000},
        "limits": {"context_tokens_max": 512, "output_tokens_max": 64, "requests_max": requests_max},
        "settlement": {"network": NetworkId::LOCAL,
                       "payout_address": AccountAddress(Digest32::of(b"provider")),
                       "contract_code": ContractCode { hash: Digest32::of(b"code"), depth: 2 }},
    })
    .to_string()
    .into_bytes()
}

/// A guest with everything around it.
pub(crate) struct World {
    pub(crate) platform: Arc<Fake>,
    pub(crate) host: Arc<Host>,
    pub(crate) script: Arc<Script>,
    https: mpsc::Sender<BoxStream>,
    control: mpsc::Sender<BoxStream>,
    pub(crate) guest: JoinHandle<Result<(), RunError>>,
}

pub(crate) async fn boot_with(
    host: &Arc<Host>,
    platform: &Arc<Fake>,
    script: &Arc<Script>,
    gpus: Arc<dyn Gpus>,
) -> Result<boot::Guest, BootError> {
    boot_from(Arc::new(Disk), host, platform, script, gpus).await
}

pub(crate) async fn boot_from(
    volumes: Arc<dyn Volumes>,
    host: &Arc<Host>,
    platform: &Arc<Fake>,
    script: &Arc<Script>,
    gpus: Arc<dyn Gpus>,
) -> Result<boot::Guest, BootError> {
    let dial = Arc::new(HostDial(Arc::clone(host)));
    boot::boot(Parts {
        host: Arc::new(HostClient::new(dial)),
        platform: Arc::clone(platform) as Arc<dyn Platform>,
        volumes,
        gpus,
        engine: Engine::start(Arc::clone(script) as Arc<dyn Spawn>),
    })
    .await
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(4, Deadlines::default()).await
    }

    pub(crate) async fn start_with(requests_max: u32, deadlines: Deadlines) -> Self {
        Self::start_on(
            Arc::new(Fake::default()),
            Arc::new(NoGpus),
            requests_max,
            deadlines,
        )
        .await
    }

    pub(crate) async fn start_on(
        platform: Arc<Fake>,
        gpus: Arc<dyn Gpus>,
        requests_max: u32,
        deadlines: Deadlines,
    ) -> Self {
        let host = Arc::new(Host {
            document: launch_document(requests_max),
            credit_nano: AtomicU64::new(1_000_000),
            ..Host::default()
        });
        let script = Arc::new(Script::default());
        let booted = boot_with(&host, &platform, &script, gpus).await.unwrap();
        let (https, queue) = mpsc::channel(8);
        let (control, mut commands) = {
            let (sender, receiver) = mpsc::channel(1);
            (sender, Queue(receiver))
        };
        let dial = Arc::new(HostDial(Arc::clone(&host)));
        let guest = tokio::spawn(async move {
            guest::run(booted, dial, Box::new(Queue(queue)), &mut commands, deadlines).await
        });
        Self {
            platform,
            host,
            script,
            https,
            control,
            guest,
        }
    }

    pub(crate) fn launch(&self) -> LaunchDocument {
        LaunchDocument::parse(&self.host.document).unwrap()
    }

    /// A connection on which nothing is said.
    pub(crate) async fn silent(&self) -> DuplexStream {
        let (ours, theirs) = duplex(64 * 1024);
        self.https.send(Box::new(theirs)).await.unwrap();
        ours
    }

    pub(crate) async fn raw(&self) -> TlsStream<DuplexStream> {
        self.raw_with(tls::config().unwrap()).await.unwrap()
    }

    pub(crate) async fn raw_with(&self, config: Arc<ClientConfig>) -> io::Result<TlsStream<DuplexStream>> {
        let ours = self.silent().await;
        let name = ServerName::try_from("cocoon.invalid").unwrap();
        TlsConnector::from(config).connect(name, ours).await
    }

    pub(crate) async fn client(&self) -> Client {
        Client::on(self.raw().await).await
    }

    /// A client with a bound grant.
    pub(crate) async fn paying_client(&self) -> (Client, SignedGrant) {
        let mut client = self.client().await;
        let grant = self.grant(&mut client, &owner(), 1_000_000).await;
        let (status, _) = client.bind(&grant, &owner()).await;
        assert_eq!(status, StatusCode::OK);
        (client, grant)
    }

    pub(crate) async fn grant(&self, client: &mut Client, owner: &SigningKey, cap_nano: u64) -> SignedGrant {
        let launch = self.launch();
        let settlement = launch.settlement;
        Grant {
            network: settlement.network,
            contract: settlement
                .contract_code
                .deposit_address(settlement.network, owner.verifying_key().as_bytes()),
            agent_key: client.usage_key().await,
            payout_address: settlement.payout_address,
            prices: launch.prices,
            cap_nano,
            expires_s: u32::MAX,
        }
        .sign(owner)
    }

    /// Waits until the host has this many records.
    pub(crate) async fn records(&self, count: usize) -> Vec<UsageRecord> {
        wait_for(|| self.host.records.lock().unwrap().len() >= count).await;
        self.host.records.lock().unwrap().clone()
    }

    pub(crate) async fn shut_down(&self, grace: Duration) {
        let grace_ms = grace.as_millis() as u64;
        let (mut ours, theirs) = duplex(1024);
        self.control.send(Box::new(theirs)).await.unwrap();
        write_frame_async(&mut ours, &ToGuest::Shutdown { grace_ms })
            .await
            .unwrap();
        assert_eq!(
            read_frame_async::<FromGuest>(&mut ours).await.unwrap(),
            FromGuest::Ok
        );
    }

    /// Waits until the guest would power off.
    pub(crate) async fn ended(&mut self) {
        let ended = tokio::time::timeout(Duration::from_secs(60), &mut self.guest).await;
        ended.expect("the guest goes on").unwrap().unwrap();
    }
}

pub(crate) async fn wait_for(mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait)
        .await
        .expect("the condition never came true");
}
