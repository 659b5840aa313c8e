//! A client, which takes any certificate: judging evidence is the real client's, tested there.

use bytes::Bytes;
use cocoon_evidence::{CertifiedEvidence, EVIDENCE_EXTENSION_OID, EventKind, FreshBinding, FreshEvidence};
use cocoon_protocol::{SessionProof, SignedGrant};
use ed25519_dalek::SigningKey;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::DuplexStream;
use tokio_rustls::client::TlsStream;

use super::MODEL;

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
    /// Speaks HTTP on this session.
    pub(crate) async fn on(tls: TlsStream<DuplexStream>) -> Self {
        let connection = tls.get_ref().1;
        let export = |label, context: Option<&[u8]>| {
            connection
                .export_keying_material([0; 32], label, context)
                .unwrap()
        };
        let session = export(SessionProof::EXPORTER_LABEL, None);
        let fresh = export(FreshBinding::EXPORTER_LABEL, Some(&NONCE));
        let certificate = connection.peer_certificates().unwrap()[0].to_vec();
        let (sender, driver) = http1::handshake(TokioIo::new(tls)).await.unwrap();
        tokio::spawn(driver);
        Self {
            sender,
            session,
            fresh,
            certificate,
        }
    }

    pub(crate) async fn send(&mut self, method: &str, path: &str, body: Vec<u8>) -> (StatusCode, Bytes) {
        let response = self.open(method, path, body).await;
        let status = response.status();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    }

    pub(crate) async fn open(&mut self, method: &str, path: &str, body: Vec<u8>) -> Response<Incoming> {
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
            .payload(EventKind::UsageKey)
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

    /// A streamed answer of which nothing but the head is read.
    pub(crate) async fn stream(&mut self, prompt: &str) -> Response<Incoming> {
        let body = chat_body(prompt, &json!({"stream": true}));
        self.open("POST", "/v1/chat/completions", body).await
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
