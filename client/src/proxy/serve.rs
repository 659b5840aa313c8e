//! The HTTP side: what is at which path, with bounds and deadlines.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    Proxy,
    guard::{self, Trespass},
    page::{self, Page},
    reply::{Body, Reply},
};

/// Connections of programs at the same time.
const CONNECTIONS_MAX: usize = 512;
/// As the agent takes them.
const CHAT_BYTES_MAX: usize = 1024 * 1024;
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// From being idle to a complete head.
const HEAD_DEADLINE: Duration = Duration::from_secs(90);
const BODY_DEADLINE: Duration = Duration::from_secs(30);
/// After a listener's error, which can be one that comes again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Proxy {
    /// Serves for ever; everything that it started ends when this future is dropped.
    pub async fn serve(self, listener: TcpListener) -> Infallible {
        let proxy = Arc::new(self);
        let mut keepers = JoinSet::new();
        for node in &proxy.fleet.nodes {
            keepers.spawn(Arc::clone(node).keep());
        }
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                sleep(ACCEPT_PAUSE).await;
                continue;
            };
            while connections.try_join_next().is_some() {}
            // Over the limit the newest is dropped: waiting in the kernel's queue would tell it nothing.
            if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                let proxy = Arc::clone(&proxy);
                connections.spawn(async move {
                    serve_connection(proxy, stream).await;
                    drop(place);
                });
            }
        }
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        let get = request.method() == Method::GET;
        if let Err(trespass) = guard::check(request.headers(), request.uri()) {
            return self.refuse(&trespass);
        }
        if let Some(page) = self
            .page
            .as_ref()
            .filter(|_| get && request.uri().path() == page::PATH)
        {
            return page.response();
        }
        let sent = |page: &Page| page.sent(request.headers());
        if guard::is_of_page(request.headers()) && !self.page.as_ref().is_some_and(sent) {
            return self.refuse(&Trespass::Token);
        }
        match request.uri().path() {
            "/v1/chat/completions" if request.method() == Method::POST => match read_body(request).await {
                Ok(body) => self.chat(body).await,
                Err(reply) => reply.into(),
            },
            "/v1/chat/completions" => wrong_method("POST"),
            path if get => self.show(path).into(),
            _ => wrong_method("GET"),
        }
    }

    fn refuse(&self, trespass: &Trespass) -> Response<Body> {
        self.shared.metrics.trespasses.add(1);
        Reply::error(StatusCode::FORBIDDEN, "trespass", &trespass.to_string()).into()
    }

    fn show(&self, path: &str) -> Reply {
        match path {
            "/v1/models" => Reply::json(&json!({"object": "list", "data": self.models()})),
            "/verification" => Reply::json(&self.verification()),
            "/receipts" => Reply::json(&json!({
                "answers": self.shared.metrics.answered.get(),
                "paid_nano": self.shared.metrics.spent_nano.get(),
                "receipts": self.shared.receipts.all(),
            })),
            "/metrics" => Reply::whole("text/plain; version=0.0.4", self.metrics()),
            _ => self.show_one(path).unwrap_or_else(|| {
                Reply::error(
                    StatusCode::NOT_FOUND,
                    "unknown_route",
                    "there is nothing at this path",
                )
            }),
        }
    }

    fn show_one(&self, path: &str) -> Option<Reply> {
        if let Some(id) = path.strip_prefix("/v1/models/") {
            let model = self.models().into_iter().find(|model| model["id"] == *id);
            return Some(model.map_or_else(
                || {
                    Reply::error(
                        StatusCode::NOT_FOUND,
                        "model_not_found",
                        "no verified node serves this model",
                    )
                },
                |model| Reply::json(&model),
            ));
        }
        let kept = self.shared.receipts.find(path.strip_prefix("/receipts/")?)?;
        Some(Reply::json(&json!(kept)))
    }
}

async fn serve_connection(proxy: Arc<Proxy>, stream: TcpStream) {
    // Nothing but latency is at stake.
    let _ = stream.set_nodelay(true);
    let handle = service_fn(move |request| {
        let proxy = Arc::clone(&proxy);
        async move { Ok::<_, Infallible>(proxy.respond(request).await) }
    });
    // What goes wrong with a connection is between that program and us.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), handle)
        .await;
}

async fn read_body(request: Request<Incoming>) -> Result<Bytes, Reply> {
    let collect = Limited::new(request.into_body(), CHAT_BYTES_MAX).collect();
    let error = |status, code, message: &str| Err(Reply::error(status, code, message));
    match timeout(BODY_DEADLINE, collect).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(cause)) if cause.is::<LengthLimitError>() => {
            let message = format!("the body may have at most {CHAT_BYTES_MAX} bytes");
            error(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", &message)
        }
        Ok(Err(_)) => error(StatusCode::BAD_REQUEST, "body_broken", "the body ended early"),
        Err(_) => error(
            StatusCode::REQUEST_TIMEOUT,
            "body_too_slow",
            "the body took too long",
        ),
    }
}

fn wrong_method(allowed: &str) -> Response<Body> {
    let message = format!("this path takes {allowed} only");
    Reply::error(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", &message).into()
}
