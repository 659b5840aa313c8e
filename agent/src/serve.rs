//! Attested HTTPS: TLS 1.3 over any transport, HTTP/1.1 inside, one grant for each connection.
//!
//! Whoever connects is a stranger until a grant with a session proof is bound; before that only evidence,
//! endorsements and the model's name are given out. Every read has a bound and a deadline. Memory for all of them is
//! bounded by the number of connections ([`CONNECTIONS_MAX`]) and by [`PROMPT_BYTES_MAX`].

use std::{
    convert::Infallible,
    future,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use cocoon_evidence::{
    CMW_MEDIA_TYPE, Digest32, Digest48, ENDORSEMENTS_MEDIA_TYPE, FreshBinding, NONCE_BYTES, Role,
};
use cocoon_protocol::{LaunchDocument, SessionProof, SignedGrant};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body as _, Incoming},
    header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    io::{copy, sink},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    answer::{self, Job},
    attest::AttestError,
    body::Body,
    certificate::{self, Identity},
    closing::{Closing, LastAnswer},
    engine::Engine,
    fresh::FreshQuotes,
    meter::{self, Meter, MeterError},
    openai::{self, Answer, ApiError, Chat},
    places::{Place, Places},
    prompts::{Memory, Prompts},
    shape,
    transport::{BoxStream, Listen},
    wire::{SharedTls, Wire},
};

/// Connections at the same time; the module `places` says who has to go when there are more. Each takes some 40 KiB
/// here and at most [`crate::transport::PEER_BYTES_MAX`] in the kernel, together 92 MiB: `main` leaves the engine that
/// much less.
pub const CONNECTIONS_MAX: usize = 1280;
/// Connections beyond those that are told to come again. Any further one is closed without a word.
const REFUSALS_MAX: usize = 32;
/// From a refused connection's beginning to its end.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(10);
/// All prompts that are in memory; the module `prompts` says which are given up when there are more.
pub const PROMPT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Of a request line and its headers.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// Of a conversation; frames to the engine are four times as long.
const CHAT_BYTES_MAX: usize = 1024 * 1024;
const GRANT_BYTES_MAX: usize = 8 * 1024;
/// After a listener's error, which can be one that comes again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long others may take, their word and our key count, and how many may be here; tests lower them.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// TLS handshake.
    pub handshake: Duration,
    /// From being idle to a complete head of a request, so also how long a connection may idle.
    pub head: Duration,
    /// A request's body.
    pub body: Duration,
    /// How long a peer may take nothing of what is written to it.
    pub write: Duration,
    /// How long what was written of an answer may be on its way to the client: at the end of a connection, so long is
    /// waited for its other side to end it, too.
    pub close: Duration,
    /// How long the host's word on a grant's credit is used before it is asked again. Less than the time before a
    /// grant's expiry at which the host gives no more credit, or what is served in between is never paid.
    pub credit: Duration,
    /// How long a TLS identity is given to new connections.
    pub rotate: Duration,
    /// How long endorsements are passed on before the host is asked for newer ones. NVIDIA's last a day, Intel's
    /// thirty.
    pub renew: Duration,
    /// Connections at the same time.
    pub connections: usize,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(20),
            head: Duration::from_secs(90),
            body: Duration::from_secs(30),
            write: Duration::from_secs(60),
            close: Duration::from_secs(5),
            credit: Duration::from_secs(15),
            rotate: certificate::ROTATE_AFTER,
            renew: Duration::from_secs(3600),
            connections: CONNECTIONS_MAX,
        }
    }
}

/// What is served.
pub struct Service {
    /// Model, prices, limits.
    pub launch: Arc<LaunchDocument>,
    /// Makes fresh evidence.
    pub fresh: FreshQuotes,
    /// [`cocoon_evidence::EventLog::replay`] of what was measured.
    pub log: Digest48,
    /// The newest TLS identity.
    pub identity: watch::Receiver<Arc<Identity>>,
    /// The newest from the host, passed on as they are.
    pub endorsements: watch::Receiver<Bytes>,
    /// Grants and their accounts.
    pub meter: Arc<Meter>,
    /// Answers.
    pub engine: Engine,
    /// For peers.
    pub deadlines: Deadlines,
    /// Of the guest.
    pub closing: Closing,
    /// [`PROMPT_BYTES_MAX`].
    pub(crate) prompts: Arc<Prompts>,
    /// When the model was loaded, seconds since 1970.
    pub created_s: u64,
}

/// Serves every connection of `listener`, for ever.
pub async fn serve(service: Arc<Service>, listener: &mut dyn Listen) {
    let places = Places::new(service.deadlines.connections);
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    loop {
        let Ok(stream) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let service = Arc::clone(&service);
        if let Some((place, told_to_leave)) = places.enter() {
            tokio::spawn(async move {
                tokio::select! {
                    () = told_to_leave => {}
                    () = serve_connection(service, stream, Some(place)) => {}
                }
            });
        } else if let Ok(refusal) = Arc::clone(&refusals).try_acquire_owned() {
            tokio::spawn(async move {
                let _ = timeout(REFUSAL_DEADLINE, serve_connection(service, stream, None)).await;
                drop(refusal);
            });
        }
    }
}

/// One TLS session and what is bound to it.
struct Session {
    service: Arc<Service>,
    tls: SharedTls,
    identity: Arc<Identity>,
    /// Without one, every request is refused.
    place: Option<Arc<Place>>,
    grant: Mutex<Option<Digest32>>,
    last_answer: Arc<LastAnswer>,
}

async fn serve_connection(service: Arc<Service>, stream: BoxStream, place: Option<Arc<Place>>) {
    let identity = Arc::clone(&service.identity.borrow());
    let Deadlines {
        handshake,
        head,
        write,
        close,
        ..
    } = service.deadlines;
    let accept = TlsAcceptor::from(Arc::clone(&identity.config)).accept(stream);
    let Ok(Ok(tls)) = timeout(handshake, accept).await else {
        return;
    };
    if let Some(place) = &place {
        place.spoke();
    }
    let tls = SharedTls::new(tls);
    let last_answer = Arc::<LastAnswer>::default();
    let wire = |tls| Wire::new(tls, write, Arc::clone(&last_answer));
    let io = TokioIo::new(wire(tls.clone()));
    let keep_alive = place.is_some();
    let session = Arc::new(Session {
        service,
        tls,
        identity,
        place,
        grant: Mutex::new(None),
        last_answer: Arc::clone(&last_answer),
    });
    let handle = {
        let session = Arc::clone(&session);
        service_fn(move |request| {
            let session = Arc::clone(&session);
            async move { Ok::<_, Infallible>(session.respond(request).await) }
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .keep_alive(keep_alive)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(io, handle);
    let mut connection = pin!(connection);
    // What goes wrong with a connection is between the client and us; there is nothing to log.
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = session.ends_with_its_answer() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if ended.is_ok() && session.last_answer.is_on_its_way(close) {
        // The guest's buffers end with it. The launcher closes when it has read to the end, or the client does.
        let _ = timeout(close, copy(&mut wire(session.tls.clone()), &mut sink())).await;
    }
}

impl Session {
    /// Once the guest is about to end, if there is an answer to wait for. Else whoever asks is told why it is refused.
    async fn ends_with_its_answer(&self) {
        self.service.closing.begun().await;
        if !self.last_answer.is_on_its_way(self.service.deadlines.close) {
            future::pending::<()>().await;
        }
    }

    async fn respond(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        self.last_answer.taken();
        self.route(request).await.unwrap_or_else(|error| refuse(&error))
    }

    async fn route(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
        let service = &self.service;
        let place = self.place.as_ref().ok_or_else(node_full)?;
        let get = request.method() == Method::GET;
        let post = request.method() == Method::POST;
        match request.uri().path() {
            "/.well-known/cocoon/endorsements" if get => {
                let body = Body::shared([service.endorsements.borrow().clone()]);
                Ok(respond(ENDORSEMENTS_MEDIA_TYPE, body))
            }
            "/.well-known/cocoon/certificate-evidence" if get => {
                let body = Body::shared([self.identity.evidence.clone()]);
                Ok(respond(CMW_MEDIA_TYPE, body))
            }
            "/.well-known/cocoon/evidence" if post => self.evidence(request).await,
            "/v1/cocoon/grant" if post => self.bind_grant(request, place).await,
            "/v1/models" if get => Ok(json(&openai::models(&service.launch, service.created_s))),
            "/v1/chat/completions" if post => self.chat(request, place).await,
            "/.well-known/cocoon/endorsements"
            | "/.well-known/cocoon/certificate-evidence"
            | "/v1/models" => Err(wrong_method("GET")),
            "/.well-known/cocoon/evidence" | "/v1/cocoon/grant" | "/v1/chat/completions" => {
                Err(wrong_method("POST"))
            }
            _ => Err(ApiError::new(
                404,
                "unknown_route",
                "there is nothing at this path",
            )),
        }
    }

    /// Fresh evidence, bound to this session and the verifier's nonce.
    async fn evidence(&self, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
        let body = self.read_body(request, NONCE_BYTES).await?;
        let nonce: [u8; NONCE_BYTES] = body.as_ref().try_into().map_err(|_| {
            let message = format!(
                "the body has to be a nonce of {NONCE_BYTES} bytes, it has {}",
                body.len()
            );
            ApiError::new(400, "invalid_nonce", message)
        })?;
        let binding = FreshBinding {
            nonce: &nonce,
            exporter: &self.export(FreshBinding::EXPORTER_LABEL, Some(&nonce))?,
            certificate: self.identity.certificate,
            role: Role::Inference,
            log: self.service.log,
        };
        let fresh = self.service.fresh.answer(binding.leaf()).await;
        let fresh = fresh.map_err(|error| match error {
            AttestError::Busy => ApiError::new(429, "quotes_busy", error.to_string()).retry_after(1),
            AttestError::Late | AttestError::Platform(_) => {
                ApiError::new(503, "no_quote", "the platform does not give a quote").retry_after(5)
            }
        })?;
        Ok(respond(
            "application/vnd.cocoon.fresh-evidence+cbor",
            Body::shared(fresh),
        ))
    }

    async fn bind_grant(
        &self,
        request: Request<Incoming>,
        place: &Place,
    ) -> Result<Response<Body>, ApiError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Offer {
            grant: SignedGrant,
            proof: SessionProof,
        }
        let body = self.read_body(request, GRANT_BYTES_MAX).await?;
        let Offer { grant, proof } = serde_json::from_slice(&body).map_err(|_| {
            ApiError::new(
                400,
                "invalid_grant",
                "the body is not a grant and its session proof",
            )
        })?;
        let exporter = self.export(SessionProof::EXPORTER_LABEL, None)?;
        let (id, balance) = self
            .service
            .meter
            .bind(grant, &proof, &exporter)
            .await
            .map_err(|error| meter_error(&error))?;
        *self.grant.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
        place.paid();
        Ok(json(
            &serde_json::to_value(balance).expect("a balance is plain numbers"),
        ))
    }

    async fn chat(&self, request: Request<Incoming>, place: &Arc<Place>) -> Result<Response<Body>, ApiError> {
        let service = &self.service;
        let bound = *self.grant.lock().unwrap_or_else(PoisonError::into_inner);
        let grant = bound.ok_or_else(|| {
            let message = "no grant is bound to this connection; send one to /v1/cocoon/grant first";
            ApiError::new(402, "no_grant", message)
        })?;
        let (body, memory) = self.read_prompt(request).await?;
        let chat = Chat::parse(&body, &service.launch, u64::from_le_bytes(meter::random()))?;
        let reservation = service
            .meter
            .admit(grant, chat.worst)
            .await
            .map_err(|error| meter_error(&error))?;
        // Asked once it counts as running, which is waited for.
        let under_way = service
            .closing
            .answer(&self.last_answer)
            .ok_or_else(|| ApiError::new(503, "shutting_down", "this node is shutting down"))?;
        let serving = place.serve().ok_or_else(node_full)?;
        let running = service
            .engine
            .generate(chat.messages, chat.sampling)
            .map_err(|error| ApiError::new(503, "engine_restarting", error.to_string()).retry_after(2))?;
        let answer = Answer {
            id: format!("chatcmpl-{}", hex::encode(meter::random::<12>())),
            created_s: meter::now_s(),
            model: service.launch.model.name.clone(),
        };
        let job = Job {
            running,
            reservation,
            request_id: answer.id.clone(),
            request: body,
        };
        let pieces = answer::start(job, (memory, serving));
        let mut response = if chat.stream {
            let stream = answer::stream(answer, pieces, chat.include_usage).await?;
            respond("text/event-stream", stream)
        } else {
            json(&answer::collect(&answer, pieces).await?)
        };
        response.body_mut().is_answer(under_way);
        Ok(response)
    }

    /// Reads a prompt into memory that is set aside for it, as much as it says that it has.
    async fn read_prompt(&self, request: Request<Incoming>) -> Result<(Bytes, Memory), ApiError> {
        let announced = request.body().size_hint().upper().unwrap_or(u64::MAX);
        // One that is longer is refused when it is read.
        let bytes = announced.min(CHAT_BYTES_MAX as u64) as usize;
        let (arriving, given_up) = self.service.prompts.begin(bytes).ok_or_else(prompts_full)?;
        let body = tokio::select! {
            body = self.read_body(request, CHAT_BYTES_MAX) => body?,
            () = given_up => return Err(prompts_full()),
        };
        let memory = arriving.arrived(body.len()).ok_or_else(prompts_full)?;
        Ok((body, memory))
    }

    fn export(&self, label: &[u8], context: Option<&[u8]>) -> Result<[u8; 32], ApiError> {
        self.tls
            .export(label, context)
            .map_err(|_| ApiError::new(500, "no_exporter", "this TLS session exports no keying material"))
    }

    async fn read_body(&self, request: Request<Incoming>, bytes_max: usize) -> Result<Bytes, ApiError> {
        let collect = Limited::new(request.into_body(), bytes_max).collect();
        match timeout(self.service.deadlines.body, collect).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                let message = format!("the body may have at most {bytes_max} bytes");
                Err(ApiError::new(413, "body_too_large", message))
            }
            Ok(Err(_)) => Err(ApiError::new(400, "body_broken", "the body ended early")),
            Err(_) => Err(ApiError::new(408, "body_too_slow", "the body took too long")),
        }
    }
}

fn meter_error(error: &MeterError) -> ApiError {
    let message = error.to_string();
    match error {
        MeterError::Grant(_) | MeterError::Closed => ApiError::new(403, "grant_refused", message),
        MeterError::Session => ApiError::new(403, "session_proof_refused", message),
        MeterError::NoCredit { .. } => ApiError::new(402, "no_credit", message),
        MeterError::Credit { .. } => ApiError::new(402, "credit_exceeded", message),
        MeterError::Busy => ApiError::new(429, "too_many_requests", message).retry_after(1),
        MeterError::Unstored => ApiError::new(503, "records_not_stored", message).retry_after(10),
        MeterError::Host { .. } => ApiError::new(503, "host_unavailable", message).retry_after(5),
        MeterError::Full => ApiError::new(503, "too_many_grants", message),
    }
}

fn prompts_full() -> ApiError {
    let message = "other prompts take all the memory for prompts, try again";
    ApiError::new(503, "prompts_full", message).retry_after(1)
}

fn node_full() -> ApiError {
    let message = "every connection that this node has room for is being served, try again";
    ApiError::new(503, "node_full", message).retry_after(1)
}

fn wrong_method(allowed: &'static str) -> ApiError {
    ApiError::new(405, "wrong_method", format!("this path takes {allowed} only"))
}

fn respond(content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type.parse().expect("a constant media type"));
    headers.insert(CACHE_CONTROL, "no-store".parse().expect("a constant"));
    response
}

fn json(value: &Value) -> Response<Body> {
    respond(
        "application/json",
        Body::shared([shape::whole(value.to_string())]),
    )
}

fn refuse(error: &ApiError) -> Response<Body> {
    let mut response = json(&error.body());
    *response.status_mut() = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if let Some(seconds) = error.retry_after_s {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    response
}
