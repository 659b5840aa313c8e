//! A verified connection, and a verified connection that is paid for.

use std::sync::Arc;

use bytes::Bytes;
use cocoon_evidence::Digest32;
use cocoon_protocol::{
    ContentKey, LaunchDocument, Prices, SessionProof, SignedGrant, SignedReceipt, TokenCounts,
};
use cocoon_verify::TrustedGuest;
use ed25519_dalek::SigningKey;
use http_body_util::BodyExt as _;
use hyper::{Method, StatusCode, body::Incoming};
use serde::{Deserialize, Serialize};
use tokio::time::{Duration, Instant};

use crate::{
    AttestedStream, ConnectError, Deadlines, ExchangeError, Proof, ReceiptFault, Step, Verification, api,
    exchange::{Ask, status_error, within},
    receipt::{self, Expected},
    stream::{Event, Events},
    transport::Connection,
};

/// A longer prompt is not sent. A guest takes requests of 1 MiB, in which JSON escapes line feeds and quotes with
/// two bytes each.
pub const PROMPT_BYTES_MAX: usize = 512 * 1024;

/// A longer answer is cut off; a context of 2^20 tokens is about 4 MiB of text.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

const STANDING_BYTES_MAX: usize = 4 * 1024;

/// A connection whose other end is a guest that meets the policy. Made by [`crate::connect`] and
/// [`crate::Verifier::connect`] only.
#[derive(Debug)]
pub struct Session {
    connection: Connection<AttestedStream>,
    proof: Arc<Proof>,
    deadlines: Deadlines,
}

/// How a grant stands with the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The node serves up to this in all, nanoTON.
    pub credit_nano: u64,
    /// Served so far, nanoTON.
    pub served_nano: u64,
    /// Served so far.
    pub served: TokenCounts,
}

impl Standing {
    /// What can still be asked for, nanoTON.
    pub fn left_nano(&self) -> u64 {
        self.credit_nano.saturating_sub(self.served_nano)
    }
}

/// A grant that the guest took for this session. Made by [`Session::offer`] only.
#[derive(Debug)]
pub struct BoundGrant {
    id: Digest32,
    cap_nano: u64,
    standing: Standing,
}

impl BoundGrant {
    /// How it stands with the node.
    pub fn standing(&self) -> Standing {
        self.standing
    }
}

/// A session with a grant bound to it.
#[derive(Debug)]
pub struct PaidSession {
    session: Session,
    grant: BoundGrant,
}

/// How to answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChatOptions {
    /// Generated tokens at most.
    pub output_tokens_max: u32,
    /// 0 is greedy.
    pub temperature: f32,
}

/// A whole answer with a receipt that was checked.
#[derive(Debug, Clone)]
pub struct Answer {
    /// What the model said.
    pub text: String,
    /// Why it ended: `stop` or `length`.
    pub finish_reason: String,
    /// What it was and cost.
    pub receipt: SignedReceipt,
    /// Opens the receipt's commitments. Whoever gets it, the receipt and the texts can check them.
    pub content_key: ContentKey,
    /// What this request added to the grant, nanoTON.
    pub amount_nano: u64,
    /// From sending the request to the first text.
    pub first_text: Duration,
    /// From sending the request to the end.
    pub total: Duration,
}

/// Why a request has no answer that can be relied upon.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// Nothing was sent.
    #[error("the prompt has {bytes} bytes, at most {PROMPT_BYTES_MAX} are sent")]
    PromptTooLarge {
        /// Its length.
        bytes: usize,
    },
    /// The guest refused, or the connection broke.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// The guest failed in the middle of the answer.
    #[error("the guest ended the answer: {0}")]
    Guest(String),
    /// The answer just stopped.
    #[error("the answer ended before its receipt; it may be incomplete, and may yet be charged")]
    Cut,
    /// The receipt is not true.
    #[error("the answer was received, but its receipt is wrong")]
    Receipt(#[source] ReceiptFault),
}

impl Session {
    /// The caller has judged the evidence of this very connection, or knows its certificate's key as proven.
    pub(crate) async fn over(
        connection: Connection,
        proof: Arc<Proof>,
        deadlines: Deadlines,
    ) -> Result<Self, ConnectError> {
        let stream_proof = Arc::clone(&proof);
        Ok(Self {
            connection: connection
                .wrap(|tls| AttestedStream::new(tls, stream_proof))
                .await?,
            proof,
            deadlines,
        })
    }

    /// What this session rests upon.
    pub fn proof(&self) -> &Arc<Proof> {
        &self.proof
    }

    /// The guest.
    pub fn guest(&self) -> &TrustedGuest {
        self.proof.guest()
    }

    /// What it runs and costs, as it measured it.
    pub fn launch(&self) -> &LaunchDocument {
        self.proof.launch()
    }

    /// Everything that was judged.
    pub fn verification(&self) -> &Verification {
        self.proof.verification()
    }

    /// Shows the guest a grant, with proof that this session belongs to its owner.
    ///
    /// # Errors
    /// The guest refuses it, or the connection broke.
    pub async fn offer(
        &mut self,
        grant: &SignedGrant,
        owner: &SigningKey,
    ) -> Result<BoundGrant, ExchangeError> {
        let offer = api::GrantOffer {
            grant,
            proof: SessionProof::sign(owner, &self.connection.session_exporter, &grant.grant),
        };
        let ask = json_ask(Step::Grant, "/v1/cocoon/grant", &offer);
        let limit = self.deadlines.exchange;
        let body = self.connection.exchange(ask, STANDING_BYTES_MAX, limit).await?;
        let standing = serde_json::from_slice(&body).map_err(|error| ExchangeError::Malformed {
            step: Step::Grant,
            reason: format!("the answer is not understood: {error}"),
        })?;
        Ok(BoundGrant {
            id: grant.grant.id(),
            cap_nano: grant.grant.cap_nano,
            standing,
        })
    }

    /// Goes on with the grant that was offered last.
    pub fn open(self, grant: BoundGrant) -> PaidSession {
        PaidSession { session: self, grant }
    }
}

impl PaidSession {
    /// The verified session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// How the grant stands: as the node said at first, then as receipts say.
    pub fn standing(&self) -> Standing {
        self.grant.standing
    }

    /// Sends a prompt and hands each piece of the answer to `on_text` as it comes; checks the receipt.
    ///
    /// # Errors
    /// See [`ChatError`]. What `on_text` was given may then be incomplete.
    pub async fn chat(
        &mut self,
        prompt: &str,
        options: ChatOptions,
        mut on_text: impl FnMut(&str),
    ) -> Result<Answer, ChatError> {
        if prompt.len() > PROMPT_BYTES_MAX {
            return Err(ChatError::PromptTooLarge { bytes: prompt.len() });
        }
        let request = api::ChatRequest {
            model: &self.session.launch().model.name,
            messages: [api::ChatMessage {
                role: "user",
                content: prompt,
            }],
            stream: true,
            max_tokens: options.output_tokens_max,
            temperature: options.temperature,
        };
        let ask = json_ask(Step::Chat, "/v1/chat/completions", &request);
        let request_body = ask.body.clone();
        let deadlines = self.session.deadlines;
        let received = within(Step::Chat, deadlines.answer, async {
            let body = self.start(ask).await?;
            Received::read(body, &deadlines, &mut on_text).await
        })
        .await??;
        self.conclude(received, &request_body, options)
    }

    async fn start(&mut self, ask: Ask) -> Result<(Incoming, Instant), ExchangeError> {
        let started = Instant::now();
        let limit = self.session.deadlines.first_text;
        let response = within(Step::Chat, limit, self.session.connection.send(ask)).await??;
        match response.status() {
            StatusCode::OK => Ok((response.into_body(), started)),
            status => {
                let refusal = status_error(Step::Chat, status, response.into_body());
                Err(within(Step::Chat, self.session.deadlines.exchange, refusal).await?)
            }
        }
    }

    fn conclude(
        &mut self,
        received: Received,
        request_body: &[u8],
        options: ChatOptions,
    ) -> Result<Answer, ChatError> {
        let (Some(attachment), Some(finish_reason)) = (received.attachment, received.finish_reason) else {
            return Err(ChatError::Cut);
        };
        let expected = Expected {
            usage_key: self.session.guest().usage_key(),
            launch: self.session.launch(),
            grant: self.grant.id,
            cap_nano: self.grant.cap_nano,
            served_before: self.grant.standing.served,
            request_id: &received.id,
            request_body,
            answer: &received.text,
            finish_reason: &finish_reason,
            output_tokens_max: options.output_tokens_max,
        };
        let signed = attachment.receipt;
        receipt::check(&signed, &attachment.content_key, &expected).map_err(ChatError::Receipt)?;
        let amount_nano = amount_nano(&signed, &self.session.launch().prices);
        let standing = &mut self.grant.standing;
        standing.served = signed.receipt.served;
        standing.served_nano = signed.receipt.served_nano;
        Ok(Answer {
            text: received.text,
            finish_reason,
            receipt: signed,
            content_key: attachment.content_key,
            amount_nano,
            first_text: received.first_text,
            total: received.total,
        })
    }
}

/// What this request added to the sum. The receipt was checked: the sum contains the request. Other connections on
/// the same grant may have added to it meanwhile, so the sum before is not the one that this session knew.
fn amount_nano(signed: &SignedReceipt, prices: &Prices) -> u64 {
    let receipt = &signed.receipt;
    let before = TokenCounts {
        input: receipt.served.input.saturating_sub(receipt.tokens.input),
        output: receipt.served.output.saturating_sub(receipt.tokens.output),
    };
    let before_nano = prices.amount_nano(before).unwrap_or_default();
    receipt.served_nano.saturating_sub(before_nano)
}

/// A streamed answer, put together.
#[derive(Debug, Default)]
struct Received {
    id: String,
    text: String,
    finish_reason: Option<String>,
    attachment: Option<api::Attachment>,
    first_text: Duration,
    total: Duration,
}

impl Received {
    async fn read(
        (mut body, started): (Incoming, Instant),
        deadlines: &Deadlines,
        on_text: &mut impl FnMut(&str),
    ) -> Result<Self, ChatError> {
        let mut received = Self::default();
        let mut events = Events::default();
        loop {
            let limit = if received.text.is_empty() {
                deadlines.first_text
            } else {
                deadlines.next_text
            };
            let Some(frame) = within(Step::Chat, limit, body.frame()).await? else {
                return Err(ChatError::Cut);
            };
            let frame = frame.map_err(|source| ExchangeError::Broken {
                step: Step::Chat,
                source,
            })?;
            let Ok(data) = frame.into_data() else { continue };
            let new = events
                .push(&data)
                .map_err(|_| malformed("a line is too long".into()))?;
            for event in new {
                match event {
                    Event::Data(json) => received.take(&json, started, on_text)?,
                    Event::Done => {
                        received.total = started.elapsed();
                        return Ok(received);
                    }
                }
            }
        }
    }

    fn take(
        &mut self,
        json: &[u8],
        started: Instant,
        on_text: &mut impl FnMut(&str),
    ) -> Result<(), ChatError> {
        let chunk: api::Chunk = serde_json::from_slice(json)
            .map_err(|error| malformed(format!("an event is not understood: {error}")))?;
        if let Some(error) = chunk.error {
            return Err(ChatError::Guest(error.message()));
        }
        if !chunk.id.is_empty() {
            self.id = chunk.id;
        }
        for choice in chunk.choices {
            let text = choice.delta.content.unwrap_or_default();
            if self.text.len() + text.len() > ANSWER_BYTES_MAX {
                return Err(malformed(format!("the answer is over {ANSWER_BYTES_MAX} bytes")).into());
            }
            if self.text.is_empty() && !text.is_empty() {
                self.first_text = started.elapsed();
            }
            self.text.push_str(&text);
            on_text(&text);
            self.finish_reason = choice.finish_reason.or(self.finish_reason.take());
        }
        self.attachment = chunk.cocoon.or(self.attachment.take());
        Ok(())
    }
}

fn malformed(reason: String) -> ExchangeError {
    ExchangeError::Malformed {
        step: Step::Chat,
        reason,
    }
}

fn json_ask(step: Step, path: &'static str, body: &impl Serialize) -> Ask {
    let body = serde_json::to_vec(body).expect("requests hold nothing that JSON cannot");
    Ask {
        step,
        method: Method::POST,
        path,
        content_type: "application/json",
        body: Bytes::from(body),
    }
}
