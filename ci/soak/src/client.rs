//! One connection to the agent, and what is asked on it.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use cocoon_evidence::{EventKind, FreshEvidence};
use cocoon_protocol::{ContentKey, SessionProof, SignedGrant, SignedReceipt, TokenCounts};
use ed25519_dalek::SigningKey;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, client::conn::http1, header::RETRY_AFTER};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::{net::UnixStream, task::JoinHandle};
use tokio_rustls::TlsConnector;

use crate::node::{INPUT_TOKENS, MODEL, Prompt};

/// A TLS session with the agent; ends when dropped.
pub(crate) struct Client {
    http: http1::SendRequest<Full<Bytes>>,
    exporter: [u8; 32],
    driver: JoinHandle<()>,
    /// An answer was read on it.
    used: bool,
}

/// How an answer ended. Whatever else happens is an error.
pub(crate) enum Outcome {
    /// As it should, after so many bytes.
    Answered { bytes: u64 },
    /// In the middle, by us.
    Left,
    /// With a time to come again.
    Refused(Duration),
    /// Not at all: the connection, which had an answer before, was closed between the two.
    Closed,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Client {
    pub(crate) async fn connect(socket: &Path, tls: &TlsConnector) -> Result<Self> {
        let stream = UnixStream::connect(socket).await.context("connecting")?;
        let name = ServerName::try_from("cocoon.invalid").context("a constant name")?;
        let stream = tls.connect(name, stream).await.context("the TLS handshake")?;
        let label = SessionProof::EXPORTER_LABEL;
        let exporter = stream.get_ref().1.export_keying_material([0; 32], label, None)?;
        let (http, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Its errors surface at the request that they break.
        let driver = tokio::spawn(async { drop(connection.await) });
        Ok(Self {
            http,
            exporter,
            driver,
            used: false,
        })
    }

    async fn send(&mut self, path: &str, body: impl Into<Bytes>) -> Result<Response<Incoming>> {
        let request = Request::post(path).header("host", "cocoon.invalid");
        let request = request.body(Full::new(body.into()))?;
        self.http
            .ready()
            .await
            .with_context(|| format!("before {path}"))?;
        let response = self.http.send_request(request).await;
        response.with_context(|| format!("asking for {path}"))
    }

    /// From fresh evidence, which nobody judges here.
    pub(crate) async fn agent_key(&mut self) -> Result<[u8; 32]> {
        let response = self.send("/.well-known/cocoon/evidence", vec![0; 32]).await?;
        ensure!(
            response.status() == StatusCode::OK,
            "evidence: {}",
            response.status()
        );
        let body = response.into_body().collect().await?.to_bytes();
        let evidence = FreshEvidence::decode(&body)?;
        let key = evidence.bundle.events.payload(EventKind::UsageKey);
        key.context("no usage key is measured")?
            .try_into()
            .context("no key")
    }

    /// Binds a grant. When the agent says so, it is to be tried again after a time.
    pub(crate) async fn bind(&mut self, owner: &SigningKey, grant: &SignedGrant) -> Result<Option<Duration>> {
        let proof = SessionProof::sign(owner, &self.exporter, &grant.grant);
        let body = json!({"grant": grant, "proof": proof}).to_string();
        let response = self.send("/v1/cocoon/grant", body).await?;
        let again = match response.status() {
            StatusCode::OK => None,
            _ => Some(retry_after(&response).context("binding a grant")?),
        };
        response.into_body().collect().await?;
        Ok(again)
    }

    /// Streams an answer, or the first `leave_after` cells of it.
    pub(crate) async fn ask(
        &mut self,
        prompt: &Prompt,
        agent_key: &[u8; 32],
        leave_after: Option<u64>,
    ) -> Result<Outcome> {
        let response = match self.send("/v1/chat/completions", completion(prompt)).await {
            // An agent whose places are all taken may do that; other clients ask again on a new connection, too.
            Err(_) if self.used && self.http.is_closed() => return Ok(Outcome::Closed),
            response => response?,
        };
        if response.status() != StatusCode::OK {
            return retry_after(&response).map(Outcome::Refused);
        }
        let mut cells = response.into_body();
        let mut stream = vec![];
        let mut taken = 0;
        while leave_after.is_none_or(|leave| taken <= leave) {
            let Some(cell) = cells.frame().await else {
                check(&stream, prompt, agent_key)?;
                self.used = true;
                let bytes = stream.len() as u64;
                return Ok(Outcome::Answered { bytes });
            };
            let cell = cell.context("reading the answer")?;
            stream.extend_from_slice(&cell.into_data().unwrap_or_default());
            taken += 1;
        }
        Ok(Outcome::Left)
    }

    /// Streams an answer: what came, and when.
    pub(crate) async fn follow(&mut self, prompt: &Prompt) -> Result<Vec<(SystemTime, Bytes)>> {
        let response = self.send("/v1/chat/completions", completion(prompt)).await?;
        let status = response.status();
        ensure!(status == StatusCode::OK, "answered {status}");
        let mut cells = response.into_body();
        let mut came = vec![];
        while let Some(cell) = cells.frame().await {
            let cell = cell.context("reading the answer")?;
            came.push((SystemTime::now(), cell.into_data().unwrap_or_default()));
        }
        Ok(came)
    }
}

fn completion(prompt: &Prompt) -> String {
    let messages = json!([{"role": "user", "content": prompt.text()}]);
    json!({"model": MODEL, "messages": messages, "stream": true}).to_string()
}

/// Of a clean refusal: one that says when to come again.
fn retry_after(response: &Response<Incoming>) -> Result<Duration> {
    let status = response.status();
    let clean = matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    );
    ensure!(clean, "answered {status}");
    let seconds = response
        .headers()
        .get(RETRY_AFTER)
        .context("refused without a time")?;
    Ok(Duration::from_secs(
        seconds.to_str()?.parse().context("reading Retry-After")?,
    ))
}

/// The text is that of the prompt, and the receipt is the agent's, for this text.
fn check(stream: &[u8], prompt: &Prompt, agent_key: &[u8; 32]) -> Result<()> {
    let stream = std::str::from_utf8(stream)?;
    let mut events = stream.lines().filter_map(|line| line.strip_prefix("data: "));
    ensure!(events.next_back() == Some("[DONE]"), "the answer has no end");
    let last: Value = serde_json::from_str(events.next_back().context("the answer is empty")?)?;
    let mut text = String::new();
    for event in events {
        let event: Value = serde_json::from_str(event)?;
        text += event["choices"][0]["delta"]["content"]
            .as_str()
            .unwrap_or_default();
    }
    ensure!(
        text == prompt.answer(),
        "the answer is {text:?} and not that to {:?}",
        prompt.text()
    );
    let receipt: SignedReceipt = serde_json::from_value(last["cocoon"]["receipt"].clone())?;
    let key: ContentKey = serde_json::from_value(last["cocoon"]["content_key"].clone())?;
    ensure!(receipt.is_genuine(agent_key), "the receipt is not the agent's");
    let counted = TokenCounts {
        input: INPUT_TOKENS,
        output: prompt.pieces,
    };
    ensure!(
        receipt.receipt.tokens == counted,
        "the receipt counts other tokens"
    );
    let commitment = key.commit("answer", text.as_bytes());
    ensure!(
        receipt.receipt.answer_commitment == commitment,
        "the receipt is for another answer"
    );
    Ok(())
}
