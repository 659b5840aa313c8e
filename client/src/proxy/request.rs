//! One chat request: which node, with which grant, and what to do when that fails.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::{Response, StatusCode, body::Incoming, header::RETRY_AFTER};

use super::{
    Proxy,
    choose::choose,
    node::{Lease, Node, NodeError},
    relay::{RelayedStream, Taken},
    reply::{Body, Reply, respond},
    wanted::Wanted,
};
use crate::{
    ExchangeError, PaidSession, PayError, Proof, api, need_nano,
    patience::Patience,
    transcript::{ANSWER_BYTES_MAX, Transcript},
};

/// Nodes that are tried for one request.
const ATTEMPTS_MAX: usize = 3;
/// JSON escapes what it must with up to six bytes, in a text that is mostly none of it.
const WHOLE_BYTES_MAX: usize = 2 * ANSWER_BYTES_MAX;

/// Why a node gave no answer. Nothing of one was delivered.
struct NoAnswer {
    reply: Reply,
    /// Another node may do better.
    elsewhere: bool,
}

impl NoAnswer {
    fn elsewhere(status: StatusCode, code: &str, message: &str) -> Self {
        Self {
            reply: Reply::error(status, code, message),
            elsewhere: true,
        }
    }
}

impl Proxy {
    /// Answers a chat request.
    pub(super) async fn chat(&self, body: Bytes) -> Response<Body> {
        let started = Instant::now();
        let wanted = match Wanted::parse(&body) {
            Ok(wanted) => wanted,
            Err(reason) => {
                self.shared.metrics.refused.add(1);
                return Reply::error(StatusCode::BAD_REQUEST, "invalid_request", &reason).into();
            }
        };
        let mut tried: Vec<Arc<Node>> = vec![];
        let mut refusal = None;
        while tried.len() < ATTEMPTS_MAX {
            let Some((node, proof)) = self.pick(&wanted.model, &tried) else {
                break;
            };
            if !tried.is_empty() {
                self.shared.metrics.retried.add(1);
            }
            tried.push(Arc::clone(&node));
            match self.attempt(&node, &proof, &wanted, &body).await {
                Ok(response) => {
                    self.shared.metrics.first_byte(started.elapsed());
                    return response;
                }
                Err(no_answer) => {
                    refusal = Some(no_answer.reply);
                    if !no_answer.elsewhere {
                        break;
                    }
                }
            }
        }
        self.shared.metrics.refused.add(1);
        refusal.unwrap_or_else(|| self.no_node(&wanted.model)).into()
    }

    /// A usable node for this model that was not tried yet.
    fn pick(&self, model: &str, tried: &[Arc<Node>]) -> Option<(Arc<Node>, Arc<Proof>)> {
        let untried = |node: &&Arc<Node>| !tried.iter().any(|other| Arc::ptr_eq(node, other));
        let usable = |node: &Arc<Node>| {
            let health = node.health();
            let proof = health.proof.clone().filter(|_| health.is_usable())?;
            (proof.launch().model.name == model).then(|| (Arc::clone(node), proof))
        };
        let mut candidates: Vec<_> = self
            .fleet
            .nodes
            .iter()
            .filter(untried)
            .filter_map(usable)
            .collect();
        let outstanding: Vec<_> = candidates.iter().map(|(node, _)| node.outstanding()).collect();
        let picked = choose(&outstanding, random())?;
        Some(candidates.swap_remove(picked))
    }

    fn no_node(&self, model: &str) -> Reply {
        let models = self.models();
        if models.is_empty() {
            let message = "no node is verified and reachable at the moment; GET /verification says why";
            return Reply::error(StatusCode::SERVICE_UNAVAILABLE, "no_node", message).retry_after(2);
        }
        let served: Vec<_> = models.iter().filter_map(|model| model["id"].as_str()).collect();
        let message = format!(
            "no verified node serves the model {model:?}; served: {}",
            served.join(", ")
        );
        Reply::error(StatusCode::NOT_FOUND, "model_not_found", &message)
    }

    async fn attempt(
        &self,
        node: &Arc<Node>,
        proof: &Proof,
        wanted: &Wanted,
        body: &Bytes,
    ) -> Result<Response<Body>, NoAnswer> {
        let full = || {
            let message = "as many requests run on the node as it takes connections";
            let mut no_answer = NoAnswer::elsewhere(StatusCode::TOO_MANY_REQUESTS, "node_full", message);
            no_answer.reply = no_answer.reply.retry_after(1);
            no_answer
        };
        let output_tokens_max = wanted.output_tokens_max(proof.launch().limits.output_tokens_max);
        let need_nano = need_nano(proof.launch(), output_tokens_max).map_err(|error| unpaid(&error))?;
        let lease = node.lease(need_nano).map_err(|error| unpaid(&error))?;
        let lease = lease.ok_or_else(full)?;
        let (session, response, patience) = self.ask(node, need_nano, wanted.stream, body).await?;
        if response.status() != StatusCode::OK {
            return Err(refused(node, session, response).await);
        }
        let taken = Taken {
            shared: Arc::clone(&self.shared),
            lease,
            session,
            request: body.clone(),
            output_tokens_max,
            patience,
        };
        if wanted.stream {
            stream(taken, response.into_body()).await
        } else {
            whole(taken, response.into_body()).await
        }
    }

    /// Sends the request on a paid connection. A connection that was idle may turn out to be closed, and a grant
    /// to be used up by requests that ran beside: each is mended once.
    async fn ask(
        &self,
        node: &Node,
        need_nano: u64,
        streamed: bool,
        body: &Bytes,
    ) -> Result<(PaidSession, Response<Incoming>, Patience), NoAnswer> {
        let (mut reuse, mut renewed) = (true, false);
        loop {
            let (mut session, reused) = node
                .session(&self.purse, need_nano, reuse)
                .await
                .map_err(|error| not_ready(node, &error))?;
            let mut patience = if streamed {
                Patience::for_stream(node.deadlines())
            } else {
                Patience::for_whole(node.deadlines())
            };
            match session.ask(body.clone(), &mut patience).await {
                Err(ExchangeError::Broken { .. }) if reused => reuse = false,
                Err(error) => {
                    node.failed(error.to_string());
                    let message = format!("the node did not answer: {error}");
                    return Err(NoAnswer::elsewhere(
                        StatusCode::BAD_GATEWAY,
                        "node_failed",
                        &message,
                    ));
                }
                Ok(response) if response.status() == StatusCode::PAYMENT_REQUIRED && !renewed => {
                    (reuse, renewed) = (false, true);
                }
                Ok(response) => return Ok((session, response, patience)),
            }
        }
    }
}

async fn stream(mut taken: Taken, mut incoming: Incoming) -> Result<Response<Body>, NoAnswer> {
    let first = taken.patience.wait(incoming.frame()).await;
    let first = first
        .ok()
        .flatten()
        .and_then(Result::ok)
        .and_then(|frame| frame.into_data().ok());
    let Some(first) = first else {
        return Err(cut(&taken.lease));
    };
    let stream = RelayedStream::new(taken, incoming, first);
    Ok(respond("text/event-stream", Body::Stream(Box::new(stream))))
}

async fn whole(mut taken: Taken, incoming: Incoming) -> Result<Response<Body>, NoAnswer> {
    let collect = Limited::new(incoming, WHOLE_BYTES_MAX).collect();
    let collected = taken.patience.wait(collect).await;
    let Ok(Ok(collected)) = collected else {
        return Err(cut(&taken.lease));
    };
    let body = collected.to_bytes();
    let mut transcript = Transcript::default();
    let read = transcript.take_whole(&body).map_err(|error| error.to_string());
    match read.and_then(|()| taken.conclude(&transcript)) {
        Ok(()) => {
            taken.lease.node().give_back(taken.session);
            Ok(Reply::whole("application/json", body).into())
        }
        Err(reason) => {
            taken.shared.metrics.failed.add(1);
            taken.lease.node().failed(reason.clone());
            Err(NoAnswer::elsewhere(
                StatusCode::BAD_GATEWAY,
                "answer_broken",
                &reason,
            ))
        }
    }
}

fn cut(lease: &Lease) -> NoAnswer {
    let message = "the node's answer broke off before its first byte";
    lease.node().failed(message.to_owned());
    NoAnswer::elsewhere(StatusCode::BAD_GATEWAY, "node_failed", message)
}

/// The node's own words, which are in OpenAI's form.
async fn refused(node: &Node, session: PaidSession, response: Response<Incoming>) -> NoAnswer {
    let status = response.status();
    let retry_after = response.headers().get(RETRY_AFTER).cloned();
    let body = Limited::new(response.into_body(), api::ERROR_BYTES_MAX).collect();
    let body = tokio::time::timeout(node.deadlines().exchange, body).await;
    let body = match body {
        Ok(Ok(body)) => {
            node.give_back(session);
            body.to_bytes()
        }
        _ => Bytes::new(),
    };
    let message = api::refusal(&body).message;
    if status.is_server_error() {
        node.failed(format!("the node answered {status}: {message}"));
    }
    let mut reply = Reply::error(status, "node_refused", &message);
    if serde_json::from_slice::<serde_json::Value>(&body).is_ok_and(|value| value["error"].is_object()) {
        reply.body = body;
    }
    reply.retry_after = retry_after;
    NoAnswer {
        reply,
        // What is wrong with the request itself is wrong everywhere.
        elsewhere: status.is_server_error()
            || matches!(
                status,
                StatusCode::TOO_MANY_REQUESTS | StatusCode::PAYMENT_REQUIRED
            ),
    }
}

fn not_ready(node: &Node, error: &NodeError) -> NoAnswer {
    match error {
        // It is in the node's health already.
        NodeError::Connect(error) => {
            let message = format!("the node {} is not verified: {error}", node.endpoint());
            let message = crate::plain(&message, 600);
            NoAnswer::elsewhere(StatusCode::BAD_GATEWAY, "node_not_verified", &message)
        }
        NodeError::Pay(error) => unpaid(error),
    }
}

fn unpaid(error: &PayError) -> NoAnswer {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        message += &format!(": {error}");
        cause = error.source();
    }
    let status = match error {
        PayError::Chain(_) => StatusCode::SERVICE_UNAVAILABLE,
        PayError::Offer(_) | PayError::Open { refusal: Some(_), .. } => StatusCode::BAD_GATEWAY,
        _ => StatusCode::PAYMENT_REQUIRED,
    };
    NoAnswer::elsewhere(status, "not_paid", &crate::plain(&message, 600))
}

/// Only spreads load: without random numbers the first two candidates are compared.
fn random() -> [u32; 2] {
    [
        getrandom::u32().unwrap_or_default(),
        getrandom::u32().unwrap_or_default(),
    ]
}
