//! The world around a guest, played in one process: host, platform, disk, engine and a client.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use cocoon_agent::{
    boot::{self, BootError, Parts, VolumeError, Volumes},
    engine::{Engine, EngineProcess, Spawn},
    gpu::{GpuProcess, Gpus},
    guest::{self, RunError},
    host::HostClient,
    platform::{Platform, PlatformError},
    resident::{Resident, ResidentError},
    serve::Deadlines,
    transport::{BoxFuture, BoxStream, Dial, Listen},
};
use cocoon_evidence::{
    CertifiedEvidence, Digest32, Digest48, EVIDENCE_EXTENSION_OID, FreshEvidence, Platform as Evidence,
    ReportData,
};
use cocoon_protocol::{
    AccountAddress, ContractCode, Grant, LaunchDocument, NetworkId, SessionProof, SignedGrant, TokenCounts,
    engine::{Fault, FinishReason, FromEngine, ToEngine},
    host::{FromGuest, FromHost, Stage, ToGuest, ToHost, UsageRecord},
    read_frame_async, write_frame_async,
};
use ed25519_dalek::SigningKey;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde_json::{Value, json};
use tokio::{
    io::duplex,
    net::UnixStream,
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::sleep,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

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

/// A platform that keeps what it was told, and whose quote is the report data.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) extended: Mutex<Vec<Digest48>>,
}

impl Platform for Fake {
    fn extend(&self, digest: Digest48) -> BoxFuture<'_, Result<(), PlatformError>> {
        self.extended.lock().unwrap().push(digest);
        Box::pin(async { Ok(()) })
    }

    fn quote(&self, data: ReportData) -> BoxFuture<'_, Result<Evidence, PlatformError>> {
        Box::pin(async move {
            Ok(Evidence::Tdx {
                quote: data.0.to_vec(),
            })
        })
    }
}

/// The host's side of the service port.
#[derive(Default)]
pub(crate) struct Host {
    pub(crate) document: Vec<u8>,
    pub(crate) credit_nano: AtomicU64,
    pub(crate) credit_stalls: AtomicBool,
    pub(crate) refuses_records: AtomicBool,
    pub(crate) records: Mutex<Vec<UsageRecord>>,
    pub(crate) refused_records: AtomicU64,
    pub(crate) stages: Mutex<Vec<Stage>>,
}

impl Host {
    fn answer(&self, request: ToHost) -> FromHost {
        match request {
            ToHost::Launch => FromHost::Launch {
                document: self.document.clone(),
                endorsements: b"{\"endorsed\":true}".to_vec(),
            },
            ToHost::Stage { stage, .. } => {
                self.stages.lock().unwrap().push(stage);
                FromHost::Ok
            }
            ToHost::BootFailed { .. } => FromHost::Ok,
            ToHost::Credit { .. } => FromHost::Credit {
                nano: self.credit_nano.load(Ordering::SeqCst),
                reason: "not on chain".into(),
            },
            ToHost::Record { .. } if self.refuses_records.load(Ordering::SeqCst) => {
                self.refused_records.fetch_add(1, Ordering::SeqCst);
                FromHost::Failed {
                    reason: "disk full".into(),
                }
            }
            ToHost::Record { record } => {
                let number = record.number;
                self.records.lock().unwrap().push(record);
                FromHost::Stored { number }
            }
        }
    }
}

pub(crate) struct HostDial(pub(crate) Arc<Host>);

impl Dial for HostDial {
    fn dial(&self, _: u32) -> BoxFuture<'_, io::Result<BoxStream>> {
        let (ours, mut theirs) = duplex(64 * 1024);
        let host = Arc::clone(&self.0);
        tokio::spawn(async move {
            while let Ok(request) = read_frame_async(&mut theirs).await {
                let credit = matches!(request, ToHost::Credit { .. });
                while credit && host.credit_stalls.load(Ordering::SeqCst) {
                    sleep(Duration::from_millis(5)).await;
                }
                let answer = host.answer(request);
                if write_frame_async(&mut theirs, &answer).await.is_err() {
                    return;
                }
            }
        });
        Box::pin(async move { Ok(Box::new(ours) as BoxStream) })
    }
}

/// Connections that tests open.
pub(crate) struct Queue(mpsc::Receiver<BoxStream>);

impl Listen for Queue {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<BoxStream>> {
        Box::pin(async move {
            self.0
                .recv()
                .await
                .ok_or_else(|| io::ErrorKind::NotConnected.into())
        })
    }
}

struct Disk;

impl Volumes for Disk {
    fn find(&self) -> Result<String, VolumeError> {
        Ok("/dev/vdb".into())
    }

    fn mount(&self, _: &str, _: u64) -> Result<(), VolumeError> {
        Ok(())
    }

    fn make_resident(&self) -> Result<Resident, ResidentError> {
        Ok(Resident::default())
    }
}

/// A disk that does not answer while the other end of this is there.
pub(crate) struct StuckDisk(pub(crate) Mutex<std::sync::mpsc::Receiver<()>>);

impl Volumes for StuckDisk {
    fn find(&self) -> Result<String, VolumeError> {
        Disk.find()
    }

    fn mount(&self, table: &str, sectors: u64) -> Result<(), VolumeError> {
        Disk.mount(table, sectors)
    }

    fn make_resident(&self) -> Result<Resident, ResidentError> {
        let _ = self.0.lock().unwrap().recv();
        Ok(Resident::default())
    }
}

/// A disk that holds something else.
pub(crate) struct OtherDisk;

impl Volumes for OtherDisk {
    fn find(&self) -> Result<String, VolumeError> {
        Disk.find()
    }

    fn mount(&self, _: &str, _: u64) -> Result<(), VolumeError> {
        Err(VolumeError::Mount(io::ErrorKind::InvalidData.into()))
    }

    fn make_resident(&self) -> Result<Resident, ResidentError> {
        // What is not mounted is not read.
        Err(ResidentError::TooMany { path: "/".into() })
    }
}

/// An engine that does what the last message says: `count N`, `die`, `hang`, `refuse`, and `wait`, which ends once
/// `go` is told.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) starts: AtomicU64,
    /// The model is loaded only once `go` is told.
    pub(crate) loads_slowly: AtomicBool,
    pub(crate) go: Arc<Notify>,
}

pub(crate) const INPUT_TOKENS: u64 = 7;

impl Spawn for Script {
    fn spawn(&self) -> io::Result<EngineProcess> {
        self.starts.fetch_add(1, Ordering::SeqCst);
        let (socket, theirs) = UnixStream::pair()?;
        Ok(EngineProcess {
            socket,
            guard: Box::new(Abort(tokio::spawn(play(
                theirs,
                Arc::clone(&self.go),
                self.loads_slowly.load(Ordering::SeqCst),
            )))),
        })
    }
}

struct Abort(JoinHandle<()>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn play(mut socket: UnixStream, go: Arc<Notify>, loads_slowly: bool) {
    while let Ok(message) = read_frame_async(&mut socket).await {
        let replies = match message {
            ToEngine::Load { .. } => {
                if loads_slowly {
                    go.notified().await;
                }
                vec![FromEngine::Loaded { elapsed_ms: 5 }]
            }
            ToEngine::Cancel { id } => vec![finished(id, FinishReason::Cancelled, 1)],
            ToEngine::Generate { id, messages, .. } => {
                let line = &messages.last().unwrap().content;
                let text = |n: u64| FromEngine::Text {
                    id,
                    text: format!("t{n} "),
                    output_tokens: n,
                };
                let started = FromEngine::Started {
                    id,
                    input_tokens: INPUT_TOKENS,
                };
                match line.split_once(' ').unwrap_or((line, "")) {
                    ("count", n) => {
                        let n = n.parse().unwrap();
                        let texts = (1..=n).map(text);
                        let all = std::iter::once(started).chain(texts);
                        all.chain([finished(id, FinishReason::Stop, n)]).collect()
                    }
                    ("refuse", _) => vec![FromEngine::Failed {
                        id,
                        fault: Fault::Context,
                        reason: "too long".into(),
                    }],
                    ("hang", _) => vec![started, text(1)],
                    ("wait", _) => {
                        write_frame_async(&mut socket, &started).await.unwrap();
                        write_frame_async(&mut socket, &text(1)).await.unwrap();
                        go.notified().await;
                        vec![text(2), finished(id, FinishReason::Stop, 2)]
                    }
                    _ => {
                        write_frame_async(&mut socket, &started).await.unwrap();
                        write_frame_async(&mut socket, &text(1)).await.unwrap();
                        sleep(Duration::from_millis(100)).await;
                        return;
                    }
                }
            }
        };
        for reply in replies {
            write_frame_async(&mut socket, &reply).await.unwrap();
        }
    }
}

fn finished(id: u64, reason: FinishReason, output: u64) -> FromEngine {
    FromEngine::Finished {
        id,
        reason,
        tokens: TokenCounts {
            input: INPUT_TOKENS,
            output,
        },
    }
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

/// A machine without GPUs.
pub(crate) struct NoGpus;

impl Gpus for NoGpus {
    fn start(&self) -> io::Result<Option<GpuProcess>> {
        Ok(None)
    }
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
    pub(crate) async fn silent(&self) -> tokio::io::DuplexStream {
        let (ours, theirs) = duplex(64 * 1024);
        self.https.send(Box::new(theirs)).await.unwrap();
        ours
    }

    pub(crate) async fn raw(&self) -> TlsStream<tokio::io::DuplexStream> {
        let ours = self.silent().await;
        let name = ServerName::try_from("cocoon.invalid").unwrap();
        TlsConnector::from(Arc::new(client_config()))
            .connect(name, ours)
            .await
            .unwrap()
    }

    pub(crate) async fn client(&self) -> Client {
        let tls = self.raw().await;
        let connection = tls.get_ref().1;
        let export = |label, context: Option<&[u8]>| {
            connection
                .export_keying_material([0; 32], label, context)
                .unwrap()
        };
        let session = export(SessionProof::EXPORTER_LABEL, None);
        let fresh = export(cocoon_evidence::FreshBinding::EXPORTER_LABEL, Some(&NONCE));
        let certificate = connection.peer_certificates().unwrap()[0].to_vec();
        let (sender, driver) = http1::handshake(TokioIo::new(tls)).await.unwrap();
        tokio::spawn(driver);
        Client {
            sender,
            session,
            fresh,
            certificate,
        }
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

    pub(crate) async fn shut_down(&self) {
        let (mut ours, theirs) = duplex(1024);
        self.control.send(Box::new(theirs)).await.unwrap();
        write_frame_async(&mut ours, &ToGuest::Shutdown { grace_ms: 5_000 })
            .await
            .unwrap();
        assert_eq!(
            read_frame_async::<FromGuest>(&mut ours).await.unwrap(),
            FromGuest::Ok
        );
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

pub(crate) fn owner() -> SigningKey {
    SigningKey::from_bytes(&[42; 32])
}

pub(crate) const NONCE: [u8; 32] = [9; 32];

pub(crate) struct Client {
    sender: http1::SendRequest<Full<Bytes>>,
    pub(crate) session: [u8; 32],
    pub(crate) fresh: [u8; 32],
    pub(crate) certificate: Vec<u8>,
}

impl Client {
    pub(crate) async fn send(&mut self, method: &str, path: &str, body: Vec<u8>) -> (StatusCode, Bytes) {
        let response = self.open(method, path, body).await;
        let status = response.status();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    }

    pub(crate) async fn open(
        &mut self,
        method: &str,
        path: &str,
        body: Vec<u8>,
    ) -> hyper::Response<hyper::body::Incoming> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "cocoon.invalid");
        self.sender.ready().await.unwrap();
        self.sender
            .send_request(request.body(Full::from(body)).unwrap())
            .await
            .unwrap()
    }

    pub(crate) async fn evidence(&mut self) -> FreshEvidence {
        let (status, body) = self
            .send("POST", "/.well-known/cocoon/evidence", NONCE.to_vec())
            .await;
        assert_eq!(status, StatusCode::OK);
        FreshEvidence::decode(&body).unwrap()
    }

    /// As the certificate's extension says it.
    pub(crate) fn certified_evidence(&self) -> CertifiedEvidence {
        let (_, certificate) = x509_parser::parse_x509_certificate(&self.certificate).unwrap();
        let oid = EVIDENCE_EXTENSION_OID.map(|arc| arc.to_string()).join(".");
        let extension = certificate
            .extensions()
            .iter()
            .find(|found| found.oid.to_id_string() == oid);
        CertifiedEvidence::decode(extension.unwrap().value).unwrap()
    }

    pub(crate) async fn usage_key(&mut self) -> [u8; 32] {
        let bundle = self.evidence().await.bundle;
        bundle
            .events
            .payload(cocoon_evidence::EventKind::UsageKey)
            .unwrap()
            .try_into()
            .unwrap()
    }

    pub(crate) async fn bind(&mut self, grant: &SignedGrant, owner: &SigningKey) -> (StatusCode, Value) {
        let proof = SessionProof::sign(owner, &self.session, &grant.grant);
        let body = json!({"grant": grant, "proof": proof}).to_string();
        let (status, body) = self.send("POST", "/v1/cocoon/grant", body.into()).await;
        (status, serde_json::from_slice(&body).unwrap())
    }

    pub(crate) async fn chat(&mut self, prompt: &str, more: Value) -> (StatusCode, Bytes) {
        self.send("POST", "/v1/chat/completions", chat_body(prompt, &more))
            .await
    }
}

pub(crate) fn chat_body(prompt: &str, more: &Value) -> Vec<u8> {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": prompt}]});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().cloned().unwrap_or_default());
    body.to_string().into_bytes()
}

/// The data of each server-sent event; comments are dropped, as clients do.
pub(crate) fn events(body: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(body).unwrap();
    text.split_terminator("\n\n")
        .filter(|event| !event.starts_with(':'))
        .map(|event| event.strip_prefix("data: ").unwrap().to_owned())
        .collect()
}

pub(crate) fn client_config() -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth()
}

/// These tests look at what the agent sends; judging it is the client's, tested there.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 was negotiated".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
