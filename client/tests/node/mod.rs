//! A node for tests: real TLS 1.3 and HTTP over loopback, evidence from the simulated platform, and an agent's
//! answers, honest or not. Everything that it receives inside TLS is kept, so that tests can say what left the
//! client.

#![allow(dead_code, reason = "each test binary uses another part")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's scaffolding fails the test"
)]

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use cocoon::Endpoint;
use cocoon_evidence::{
    Digest32, Digest48, EVIDENCE_EXTENSION_OID, Endorsements, EventKind, EventLog, EvidenceBundle,
    FreshBinding, FreshEvidence, FreshTree, Platform, ReportData, Role, TlsBinding, encode_extension,
};
use cocoon_protocol::{
    AccountAddress, ContentKey, Grant, LaunchDocument, Limits, ModelVolume, NetworkId, NumericProfile,
    Prices, Receipt, SessionProof, Settlement, SignedGrant, SignedReceipt, TokenCounts, VerityVolume,
    simulated::{FromPlatform, ToPlatform},
};
use cocoon_simulator::{
    InitialRegisters, SIMULATED_TCB_EVALUATION_NUMBER, SIMULATED_TD_ATTRIBUTES, SIMULATED_XFAM,
    SimulatedPlatform, SimulatedTd,
};
use cocoon_verify::{
    Bits64, DocumentTerms, EventTerms, Expect, GpuEvidenceRule, HardwareTerms, POLICY_VERSION, PlatformTerms,
    Policy, PolicyRole, PolicyTerms, ReadyRule, RegisterTerms, TcbStatusName, TcbTerms, TdTerms,
    TdxExpectations, UsageKeyRule,
};
use ed25519_dalek::SigningKey;
use http_body_util::BodyExt as _;
use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::{CertifiedKey, SingleCertAndKey},
};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

pub(crate) const ANSWER: [&str; 3] = ["Cocoon hides ", "your prompt: ", "größer 🦋."];
pub(crate) const TOKENS: TokenCounts = TokenCounts { input: 7, output: 9 };
pub(crate) const DAY_S: i64 = 24 * 3600;

pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

pub(crate) fn launch_document() -> LaunchDocument {
    LaunchDocument {
        version: 1,
        model: ModelVolume {
            name: "cocoon-demo".into(),
            verity: VerityVolume {
                data_blocks: 10,
                salt: Digest32::ZERO,
                root_hash: Digest32::of(b"model"),
            },
        },
        numeric_profile: NumericProfile::F32,
        prices: Prices {
            input_nano_per_kilotoken: 1_000_000_000,
            output_nano_per_kilotoken: 3_000_000_000,
        },
        limits: Limits {
            context_tokens_max: 64,
            output_tokens_max: 16,
            requests_max: 1,
        },
        settlement: Settlement {
            network: NetworkId::LOCAL,
            payout_address: AccountAddress(Digest32::of(b"provider")),
            contract_code: cocoon_settlement::deposit_code(),
        },
    }
}

/// A guest that has booted.
pub(crate) struct Guest {
    pub(crate) platform: SimulatedPlatform,
    pub(crate) launch: LaunchDocument,
    pub(crate) usage_key: SigningKey,
    td: SimulatedTd,
    log: EventLog,
    registers: InitialRegisters,
}

impl Guest {
    /// `boot` stands for the randomness of one boot.
    pub(crate) fn boot(platform: &SimulatedPlatform, boot: u8) -> Self {
        Self::boot_with(platform, boot, |_| ())
    }

    /// With another launch document.
    pub(crate) fn boot_with(
        platform: &SimulatedPlatform,
        boot: u8,
        change: impl FnOnce(&mut LaunchDocument),
    ) -> Self {
        let mut launch = launch_document();
        change(&mut launch);
        let registers = InitialRegisters {
            mrtd: Digest48::of(b"firmware"),
            rtmr0: Digest48::of(b"machine"),
            rtmr1: Digest48::of(b"kernel"),
            rtmr2: Digest48::of(b"command line"),
        };
        let mut guest = Self {
            platform: platform.clone(),
            launch,
            usage_key: SigningKey::from_bytes(&[boot; 32]),
            td: platform.start_td(registers),
            log: EventLog::default(),
            registers,
        };
        let payloads = [
            (
                EventKind::LaunchDocument,
                serde_json::to_vec(&guest.launch).unwrap(),
            ),
            (
                EventKind::Model,
                guest.launch.model.verity.table("/dev/vdb").into_bytes(),
            ),
            (
                EventKind::UsageKey,
                guest.usage_key.verifying_key().to_bytes().to_vec(),
            ),
            (EventKind::GpuEvidence, vec![]),
            (EventKind::Ready, vec![]),
        ];
        for (kind, payload) in payloads {
            let digest = guest.log.push(kind, payload).unwrap();
            let register = cocoon_evidence::Rtmr::Rtmr3;
            let done = guest.td.handle(ToPlatform::Extend { register, digest });
            assert_eq!(done, FromPlatform::Extended);
        }
        guest
    }

    pub(crate) fn bundle(&mut self, report_data: ReportData) -> EvidenceBundle {
        let request = ToPlatform::Quote {
            report_data: report_data.0,
        };
        let FromPlatform::Quote { quote } = self.td.handle(request) else {
            panic!("no quote");
        };
        EvidenceBundle {
            platform: Platform::Tdx { quote },
            events: self.log.clone(),
            gpu: vec![],
        }
    }

    fn fresh(&mut self, nonce: &[u8; 32], exporter: &[u8; 32], certificate: Digest32) -> FreshEvidence {
        let binding = FreshBinding {
            nonce,
            exporter,
            certificate,
            role: Role::Inference,
            log: self.log.replay(),
        };
        // Somebody else asks at the same time.
        let beside = FreshBinding {
            nonce: &[0; 32],
            ..binding.clone()
        };
        let tree = FreshTree::new(&[beside.leaf(), binding.leaf()]).unwrap();
        tree.answer(1, self.bundle(tree.report_data()))
    }

    pub(crate) fn policy_terms(&self) -> PolicyTerms {
        let digest = |kind| Digest48::of(self.log.payload(kind).unwrap());
        PolicyTerms {
            version: POLICY_VERSION,
            number: 1,
            expires_s: now_s() + 3600,
            role: PolicyRole::Inference,
            platform: PlatformTerms {
                simulated: true,
                root_pem: self.platform.root_pem().to_owned(),
            },
            hardware: HardwareTerms::Tdx(TdxExpectations {
                registers: RegisterTerms {
                    mrtd: Expect::exact(self.registers.mrtd),
                    rtmr0: Expect::exact(self.registers.rtmr0),
                    rtmr1: Expect::exact(self.registers.rtmr1),
                    rtmr2: Expect::exact(self.registers.rtmr2),
                    mr_config_id: Expect::exact(Digest48::ZERO),
                    mr_owner: Expect::exact(Digest48::ZERO),
                    mr_owner_config: Expect::exact(Digest48::ZERO),
                },
                td: TdTerms {
                    attributes: Expect::exact(Bits64(SIMULATED_TD_ATTRIBUTES)),
                    xfam: Expect::exact(Bits64(SIMULATED_XFAM)),
                },
                tcb: TcbTerms {
                    accepted: vec![TcbStatusName::UP_TO_DATE],
                    evaluation_number_min: SIMULATED_TCB_EVALUATION_NUMBER,
                    platform_grace_s: 0,
                    qe_grace_s: 0,
                },
            }),
            events: EventTerms {
                launch_document: DocumentTerms::exact(digest(EventKind::LaunchDocument)),
                model: Expect::exact(digest(EventKind::Model)),
                usage_key: UsageKeyRule::Bound,
                gpu_evidence: GpuEvidenceRule::None,
                ready: ReadyRule::Empty,
            },
            nvidia: None,
        }
    }

    pub(crate) fn policy(&self) -> Policy {
        Policy::new(self.policy_terms()).unwrap()
    }
}

/// A TLS key and its certificate.
pub(crate) struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// As an agent makes it: valid from `from_s` to `to_s`, relative to now.
    pub(crate) fn of(guest: &mut Guest, from_s: i64, to_s: i64) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let now = i64::try_from(now_s()).unwrap();
        let usage_key = guest.usage_key.verifying_key().to_bytes();
        let binding = TlsBinding {
            spki: &rcgen::PublicKeyData::subject_public_key_info(&key),
            usage_key: &usage_key,
            not_before_s: now + from_s,
            not_after_s: now + to_s,
            role: Role::Inference,
            log: guest.log.replay(),
        };
        let bundle = guest.bundle(binding.report_data());
        Self::new(&key, Some(encode_extension(&bundle)), now + from_s, now + to_s)
    }

    /// A key of one's own with somebody else's evidence.
    pub(crate) fn with_evidence_of(other: &Self) -> Self {
        let der = &other.certificate;
        let leaf = cocoon::Leaf::parse(der, i64::try_from(now_s()).unwrap()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        Self::new(
            &key,
            Some(encode_extension(&leaf.bundle)),
            leaf.not_before_s,
            leaf.not_after_s,
        )
    }

    /// Somebody else's certificate, without its private key.
    pub(crate) fn stolen(other: &Self) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        Self {
            certificate: other.certificate.clone(),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        }
    }

    /// A certificate whose extension is just long.
    pub(crate) fn oversized(extension_bytes: usize) -> Self {
        let now = i64::try_from(now_s()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        Self::new(&key, Some(vec![0; extension_bytes]), now - 60, now + DAY_S)
    }

    /// An ordinary certificate.
    pub(crate) fn without_evidence() -> Self {
        let now = i64::try_from(now_s()).unwrap();
        Self::new(&rcgen::KeyPair::generate().unwrap(), None, now - 60, now + DAY_S)
    }

    fn new(key: &rcgen::KeyPair, extension: Option<Vec<u8>>, from_s: i64, to_s: i64) -> Self {
        let date = |seconds: i64| {
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(seconds).unwrap())
        };
        let mut params = rcgen::CertificateParams::new(vec!["cocoon".to_owned()]).unwrap();
        params.not_before = date(from_s);
        params.not_after = date(to_s);
        let evidence = |bytes| rcgen::CustomExtension::from_oid_content(&EVIDENCE_EXTENSION_OID, bytes);
        params.custom_extensions = extension.map(evidence).into_iter().collect();
        let certificate = params.self_signed(key).unwrap();
        Self {
            certificate: certificate.der().clone(),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        }
    }

    fn server_config(&self) -> ServerConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = provider
            .key_provider
            .load_private_key(self.key.clone_key())
            .unwrap();
        // Whether the key is the certificate's is for the client to find out.
        let pair = CertifiedKey::new(vec![self.certificate.clone()], key);
        ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)))
    }
}

/// How the node answers one of the requests for evidence.
#[derive(Default)]
pub(crate) enum Reply {
    /// As an agent does.
    #[default]
    Honest,
    /// These bytes.
    Bytes(Vec<u8>),
    /// Never.
    Stall,
    /// With HTTP 500.
    Error,
}

/// What the node does with an answer and its receipt.
#[derive(Default)]
pub(crate) struct ChatScript {
    /// Changes the receipt before it is signed.
    pub(crate) change: Option<fn(&mut Receipt)>,
    /// Signs in the guest's stead.
    pub(crate) forger: Option<SigningKey>,
    /// Says this instead of [`ANSWER`].
    pub(crate) answer: Option<[&'static str; 3]>,
    /// The text that the client gets is not the one in the receipt.
    pub(crate) other_text: bool,
    /// Ends the stream before the receipt.
    pub(crate) cut: bool,
    /// Breaks the connection after so many pieces.
    pub(crate) break_after: Option<usize>,
    /// Sends a piece only when this gives a permit for it.
    pub(crate) gate: Option<Arc<Semaphore>>,
    /// Refuses with this status.
    pub(crate) refuse: Option<StatusCode>,
    /// Refuses longer conversations, as a guest does whose model's context is full.
    pub(crate) messages_max: Option<usize>,
}

/// What the node does.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) endorsements: Reply,
    pub(crate) evidence: Reply,
    /// Answers for fresh evidence in the guest's stead.
    pub(crate) evidence_guest: Option<Guest>,
    pub(crate) chat: ChatScript,
    /// Never answers the handshake.
    pub(crate) stall_handshake: bool,
}

struct State {
    guest: Mutex<Guest>,
    evidence_guest: Mutex<Option<Guest>>,
    script: Script,
    identity: Mutex<(TlsAcceptor, Digest32)>,
    received: Arc<Mutex<Vec<u8>>>,
    requests: Mutex<Vec<String>>,
    evidence: Mutex<Vec<Vec<u8>>>,
    served: Mutex<TokenCounts>,
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
            identity: Mutex::new((acceptor, Digest32::of(&identity.certificate))),
            received: Arc::default(),
            requests: Mutex::default(),
            evidence: Mutex::default(),
            served: Mutex::default(),
        });
        let shared = state.clone();
        let server = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, leaf) = shared.identity.lock().unwrap().clone();
                tokio::spawn(connection(tcp, acceptor, leaf, shared.clone()));
            }
        });
        Self {
            endpoint,
            state,
            server,
        }
    }

    /// An honest node.
    pub(crate) async fn honest(mut guest: Guest) -> Self {
        let identity = Identity::of(&mut guest, -60, DAY_S);
        Self::serve(guest, &identity, Script::default()).await
    }

    /// Another TLS key and certificate for connections from now on.
    pub(crate) fn rotate(&self) {
        let identity = Identity::of(&mut self.state.guest.lock().unwrap(), -60, DAY_S);
        let acceptor = TlsAcceptor::from(Arc::new(identity.server_config()));
        *self.state.identity.lock().unwrap() = (acceptor, Digest32::of(&identity.certificate));
    }

    /// Method and path of every request.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Every byte that came out of TLS.
    pub(crate) fn received(&self) -> Vec<u8> {
        self.state.received.lock().unwrap().clone()
    }

    /// Fresh evidence that was sent.
    pub(crate) fn sent_evidence(&self) -> Vec<Vec<u8>> {
        self.state.evidence.lock().unwrap().clone()
    }

    pub(crate) fn grant(&self, owner: &SigningKey) -> SignedGrant {
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
            expires_s: u32::try_from(now_s()).unwrap() + 3600,
        }
        .sign(owner)
    }
}

async fn connection(tcp: TcpStream, acceptor: TlsAcceptor, leaf: Digest32, state: Arc<State>) {
    if state.script.stall_handshake {
        std::future::pending::<()>().await;
    }
    let Ok(tls) = acceptor.accept(tcp).await else {
        return;
    };
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
    let service = service_fn(move |request| {
        let session = session.clone();
        async move { Ok::<_, io::Error>(session.answer(request).await) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

struct Session {
    proof_exporter: [u8; 32],
    grant: Mutex<Option<SignedGrant>>,
    tls: Arc<Mutex<TlsStream<TcpStream>>>,
    leaf: Digest32,
    state: Arc<State>,
}

type Answer = Response<Piped>;

/// A body whose pieces come from elsewhere.
pub(crate) struct Piped(mpsc::UnboundedReceiver<io::Result<Bytes>>);

impl Piped {
    fn whole(bytes: Bytes) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let _ = sender.send(Ok(bytes));
        Self(receiver)
    }

    /// Sends the pieces as the script says.
    fn script(pieces: Vec<String>, script: &ChatScript) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let (gate, break_after) = (script.gate.clone(), script.break_after);
        tokio::spawn(async move {
            for (index, piece) in pieces.into_iter().enumerate() {
                if let Some(gate) = &gate {
                    gate.acquire().await.unwrap().forget();
                }
                if break_after == Some(index) {
                    let _ = sender.send(Err(io::ErrorKind::BrokenPipe.into()));
                    return;
                }
                let _ = sender.send(Ok(piece.into()));
            }
        });
        Self(receiver)
    }
}

impl hyper::body::Body for Piped {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<hyper::body::Frame<Bytes>>>> {
        let piece = self.0.poll_recv(cx);
        piece.map(|piece| piece.map(|piece| piece.map(hyper::body::Frame::data)))
    }
}

impl Session {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let line = format!("{} {}", request.method(), request.uri().path());
        self.state.requests.lock().unwrap().push(line.clone());
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let script = &self.state.script;
        match line.as_str() {
            "GET /.well-known/cocoon/endorsements" => {
                let honest = || {
                    let platform = &self.state.guest.lock().unwrap().platform;
                    Endorsements::of_tdx(platform.collateral(now_s()).unwrap()).encode()
                };
                reply(&script.endorsements, honest).await
            }
            "POST /.well-known/cocoon/evidence" => reply(&script.evidence, || self.evidence(&body)).await,
            "GET /v1/models" => ok(
                "application/json",
                json!({"object": "list", "data": [{"id": "cocoon-demo"}]}).to_string(),
            ),
            "POST /v1/cocoon/grant" => self.bind(&body),
            "POST /v1/chat/completions" => self.chat(&body),
            _ => status(StatusCode::NOT_FOUND, "no such path"),
        }
    }

    fn evidence(&self, nonce: &[u8]) -> Vec<u8> {
        let nonce: [u8; 32] = nonce.try_into().expect("the nonce has 32 bytes");
        let exporter = {
            let tls = self.tls.lock().unwrap();
            let label = FreshBinding::EXPORTER_LABEL;
            tls.get_ref()
                .1
                .export_keying_material([0; 32], label, Some(&nonce))
                .unwrap()
        };
        let mut other = self.state.evidence_guest.lock().unwrap();
        let mut own = self.state.guest.lock().unwrap();
        let guest = other.as_mut().unwrap_or(&mut own);
        let bytes = guest.fresh(&nonce, &exporter, self.leaf).encode();
        self.state.evidence.lock().unwrap().push(bytes.clone());
        bytes
    }

    fn bind(&self, body: &[u8]) -> Answer {
        let offer: serde_json::Value = serde_json::from_slice(body).unwrap();
        let grant: SignedGrant = serde_json::from_value(offer["grant"].clone()).unwrap();
        let proof: SessionProof = serde_json::from_value(offer["proof"].clone()).unwrap();
        let guest = self.state.guest.lock().unwrap();
        let usage_key = guest.usage_key.verifying_key().to_bytes();
        if let Err(error) = grant.check(&usage_key, &guest.launch, now_s()) {
            return status(StatusCode::FORBIDDEN, &error.to_string());
        }
        if !proof.is_genuine(&self.proof_exporter, &grant) {
            return status(StatusCode::FORBIDDEN, "the proof is for another session");
        }
        let served = *self.state.served.lock().unwrap();
        let standing = json!({
            "credit_nano": grant.grant.cap_nano,
            "served_nano": guest.launch.prices.amount_nano(served),
            "served": served,
        });
        *self.grant.lock().unwrap() = Some(grant);
        ok("application/json", standing.to_string())
    }

    fn chat(&self, body: &[u8]) -> Answer {
        let Some(grant) = self.grant.lock().unwrap().clone() else {
            return status(StatusCode::PAYMENT_REQUIRED, "offer a grant first");
        };
        let script = &self.state.script.chat;
        if let Some(refused) = script.refuse {
            return status(refused, "refused by script");
        }
        let request: serde_json::Value = serde_json::from_slice(body).unwrap();
        let messages = request["messages"].as_array().map_or(0, Vec::len);
        if script.messages_max.is_some_and(|max| messages > max) {
            return status(StatusCode::BAD_REQUEST, "the conversation is too long");
        }
        let id = format!("chatcmpl-{}", self.state.requests.lock().unwrap().len());
        let content_key = ContentKey([3; 32]);
        let receipt = || self.receipt(&id, &grant.grant, body, &content_key);
        if request["stream"] != true {
            let message = json!({"role": "assistant", "content": ANSWER.concat()});
            let answer = json!({"id": id, "object": "chat.completion", "created": 1, "model": "cocoon-demo",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "cocoon": {"receipt": receipt(), "content_key": content_key}});
            return ok("application/json", answer.to_string());
        }
        let chunk = |value: serde_json::Value| format!("data: {value}\n\n");
        let mut pieces = vec![];
        for text in script.answer.unwrap_or(ANSWER) {
            let text = if script.other_text {
                text.to_uppercase()
            } else {
                text.to_owned()
            };
            pieces.push(chunk(json!({"id": id, "object": "chat.completion.chunk",
                "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]})));
        }
        if !script.cut {
            let finish = json!({"id": id, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
            let proof = json!({"id": id, "choices": [],
                "cocoon": {"receipt": receipt(), "content_key": content_key}});
            pieces.push(format!("{}{}data: [DONE]\n\n", chunk(finish), chunk(proof)));
        }
        Response::builder()
            .header("content-type", "text/event-stream")
            .body(Piped::script(pieces, script))
            .unwrap()
    }

    fn receipt(&self, id: &str, grant: &Grant, body: &[u8], key: &ContentKey) -> SignedReceipt {
        let guest = self.state.guest.lock().unwrap();
        let mut total = self.state.served.lock().unwrap();
        *total = total.checked_add(TOKENS).unwrap();
        let said = self.state.script.chat.answer.unwrap_or(ANSWER);
        let mut receipt = Receipt {
            request_id: id.into(),
            model_root_hash: guest.launch.model.verity.root_hash,
            network: guest.launch.settlement.network,
            grant: grant.id(),
            tokens: TOKENS,
            served: *total,
            served_nano: guest.launch.prices.amount_nano(*total).unwrap(),
            request_commitment: key.commit("request", body),
            answer_commitment: key.commit("answer", said.concat().as_bytes()),
            finish_reason: "stop".into(),
        };
        let script = &self.state.script.chat;
        if let Some(change) = script.change {
            change(&mut receipt);
        }
        receipt.sign(script.forger.as_ref().unwrap_or(&guest.usage_key))
    }
}

async fn reply(reply: &Reply, honest: impl FnOnce() -> Vec<u8>) -> Answer {
    match reply {
        Reply::Honest => ok("application/octet-stream", honest()),
        Reply::Bytes(bytes) => ok("application/octet-stream", bytes.clone()),
        Reply::Stall => std::future::pending().await,
        Reply::Error => status(StatusCode::INTERNAL_SERVER_ERROR, "out of quotes \u{1b}[2J"),
    }
}

fn ok(content_type: &str, body: impl Into<Bytes>) -> Answer {
    Response::builder()
        .header("content-type", content_type)
        .body(Piped::whole(body.into()))
        .unwrap()
}

fn status(status: StatusCode, message: &str) -> Answer {
    let body = json!({"error": {"message": message, "type": "invalid_request_error", "code": null}});
    Response::builder()
        .status(status)
        .body(Piped::whole(Bytes::from(body.to_string())))
        .unwrap()
}

/// A TLS stream that keeps what it read, and whose exporter stays reachable.
struct Recorded {
    tls: Arc<Mutex<TlsStream<TcpStream>>>,
    received: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Recorded {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let poll = Pin::new(&mut *self.tls.lock().unwrap()).poll_read(cx, buffer);
        self.received
            .lock()
            .unwrap()
            .extend_from_slice(&buffer.filled()[before..]);
        poll
    }
}

impl AsyncWrite for Recorded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.tls.lock().unwrap()).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.tls.lock().unwrap()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.tls.lock().unwrap()).poll_shutdown(cx)
    }
}
