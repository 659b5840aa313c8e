//! A node's answers, on one connection.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use cocoon_evidence::{Endorsements, FreshBinding, Role};
use cocoon_protocol::{ContentKey, Grant, Receipt, SessionProof, SignedGrant, SignedReceipt};
use http_body_util::BodyExt as _;
use hyper::{Request, Response, StatusCode, body::Incoming};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

use super::{
    ANSWER, State, TOKENS,
    identity::Leaf,
    now_s,
    script::{Piped, Reply},
};

pub(super) struct Session {
    pub(super) proof_exporter: [u8; 32],
    pub(super) grant: Mutex<Option<SignedGrant>>,
    pub(super) tls: Arc<Mutex<TlsStream<TcpStream>>>,
    pub(super) leaf: Leaf,
    pub(super) state: Arc<State>,
}

pub(super) type Answer = Response<Piped>;

impl Session {
    pub(super) async fn serve(&self, request: Request<Incoming>) -> Answer {
        let line = format!("{} {}", request.method(), request.uri().path());
        match request.into_body().collect().await {
            Ok(body) => self.answer(line, &body.to_bytes()).await,
            Err(_) => status(StatusCode::BAD_REQUEST, "the body broke off"),
        }
    }

    pub(super) async fn answer(&self, line: String, body: &[u8]) -> Answer {
        self.state.requests.lock().unwrap().push(line.clone());
        let script = &self.state.script;
        match line.as_str() {
            "GET /.well-known/cocoon/certificate-evidence" => {
                reply(&script.named_evidence, || self.leaf.evidence.to_vec()).await
            }
            "GET /.well-known/cocoon/endorsements" => {
                let honest = || {
                    let platform = &self.state.guest.lock().unwrap().platform;
                    Endorsements::of_tdx(platform.collateral(now_s()).unwrap()).encode()
                };
                reply(&script.endorsements, honest).await
            }
            "POST /.well-known/cocoon/evidence" => reply(&script.evidence, || self.evidence(body)).await,
            "GET /v1/models" => ok(
                "application/json",
                json!({"object": "list", "data": [{"id": "cocoon-demo"}]}).to_string(),
            ),
            "POST /v1/cocoon/grant" => self.bind(body),
            "POST /v1/chat/completions" => self.chat(body),
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
        let asked = FreshBinding {
            nonce: &nonce,
            exporter: &exporter,
            certificate: self.leaf.digest,
            role: Role::Inference,
            log: guest.log.replay(),
        };
        let fresh = match &self.state.script.fresh {
            Some(fresh) => fresh(guest, asked),
            None => guest.fresh(&asked),
        };
        let bytes = fresh.encode();
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
        if self.state.script.refuses_grants {
            return status(StatusCode::FORBIDDEN, "refused by script");
        }
        let served = *self.state.served.lock().unwrap();
        let mut offered = self.state.offered.lock().unwrap();
        let served_nano = match offered.contains(&grant) && self.state.script.uses_grants_up {
            true => Some(grant.grant.cap_nano),
            false => guest.launch.prices.amount_nano(served),
        };
        offered.push(grant.clone());
        let standing = json!({
            "credit_nano": grant.grant.cap_nano,
            "served_nano": served_nano,
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
            let code = script.refusal_code.unwrap_or("context_length_exceeded");
            return refusal(StatusCode::BAD_REQUEST, "refused by script", Some(code));
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
        Reply::Changed(change) => ok("application/octet-stream", change(honest())),
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
    refusal(status, message, None)
}

fn refusal(status: StatusCode, message: &str, code: Option<&str>) -> Answer {
    let body = json!({"error": {"message": message, "type": "invalid_request_error", "code": code}});
    Response::builder()
        .status(status)
        .body(Piped::whole(Bytes::from(body.to_string())))
        .unwrap()
}

/// A TLS stream that keeps what it read, and whose exporter stays reachable.
pub(super) struct Recorded {
    pub(super) tls: Arc<Mutex<TlsStream<TcpStream>>>,
    pub(super) received: Arc<Mutex<Vec<u8>>>,
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
