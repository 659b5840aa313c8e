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
use hyper::{Method, Response, StatusCode, body::Incoming};
use serde::{Deserialize, Serialize};
use tokio::time::Duration;

use crate::{
    AttestedStream, ChatMessage, ConnectError, Deadlines, ExchangeError, Proof, ReceiptFault, Step,
    Verification, api, clock,
    exchange::{Ask, status_error, within},
    patience::Patience,
    proof::Moment,
    receipt::{self, Expected},
    stream::{Event, Events},
    transcript::{Transcript, TranscriptError},
    transport::{Connection, Dialled},
};

/// A longer conversation is not sent. A guest takes requests of 1 MiB, in which JSON escapes line feeds and quotes with
/// two bytes each.
pub const PROMPT_BYTES_MAX: usize = 512 * 1024;

const CHAT_PATH: &str = "/v1/chat/completions";

const STANDING_BYTES_MAX: usize = 4 * 1024;

/// A connection whose other end is a guest that meets the policy. Made by [`crate::connect`] and
/// [`crate::Verifier::connect`] only.
#[derive(Debug)]
pub struct Session {
    connection: Connection<AttestedStream>,
    /// Goes into [`SessionProof`].
    exporter: [u8; 32],
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

    pub(crate) fn id(&self) -> &Digest32 {
        &self.id
    }

    /// What the guest says that it served, which more than all of it cannot be.
    pub(crate) fn served_nano(&self) -> u64 {
        self.standing.served_nano.min(self.cap_nano)
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
    #[error("the conversation has {bytes} bytes, at most {PROMPT_BYTES_MAX} are sent")]
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

impl ChatError {
    /// Whether the conversation was refused for its length, before anything was generated, here or by the guest: a
    /// shorter one may be answered.
    pub fn is_too_long(&self) -> bool {
        match self {
            Self::PromptTooLarge { .. } => true,
            // OpenAI's name for it.
            Self::Exchange(ExchangeError::Status { code, .. }) => {
                code.as_deref() == Some("context_length_exceeded")
            }
            _ => false,
        }
    }
}

impl Session {
    /// The caller has judged the evidence of this very connection, or knows its certificate's key as proven.
    pub(crate) async fn over(
        dialled: Dialled,
        proof: Arc<Proof>,
        deadlines: Deadlines,
    ) -> Result<Self, ConnectError> {
        let exporter = dialled.session_exporter()?;
        let stream_proof = Arc::clone(&proof);
        let attested = |tls| AttestedStream::new(tls, stream_proof);
        Ok(Self {
            connection: dialled.speak(attested).await?,
            exporter,
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
            proof: SessionProof::sign(owner, &self.exporter, &grant.grant),
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

    /// Sends a conversation and hands each piece of the answer to `on_text` as it comes; checks the receipt.
    ///
    /// # Errors
    /// See [`ChatError`]. What `on_text` was given may then be incomplete.
    pub async fn chat(
        &mut self,
        messages: &[ChatMessage],
        options: ChatOptions,
        mut on_text: impl FnMut(&str),
    ) -> Result<Answer, ChatError> {
        let bytes = messages.iter().map(|message| message.content.len()).sum();
        if bytes > PROMPT_BYTES_MAX {
            return Err(ChatError::PromptTooLarge { bytes });
        }
        let request = api::ChatRequest {
            model: &self.session.launch().model.name,
            messages,
            stream: true,
            max_tokens: options.output_tokens_max,
            temperature: options.temperature,
        };
        let ask = json_ask(Step::Chat, CHAT_PATH, &request);
        let request_body = ask.body.clone();
        let mut patience = Patience::for_stream(&self.session.deadlines);
        let body = self.start(ask, &mut patience).await?;
        let received = Received::read(body, patience, &mut on_text).await?;
        let paid = self.conclude(&received.transcript, &request_body, options.output_tokens_max)?;
        Ok(Answer {
            text: received.transcript.text,
            finish_reason: paid.receipt.receipt.finish_reason.clone(),
            receipt: paid.receipt,
            content_key: paid.content_key,
            amount_nano: paid.amount_nano,
            first_text: received.first_text,
            total: received.total,
        })
    }

    /// Sends a request as somebody else wrote it. The answer, whatever its status, is still to be read; then
    /// [`Self::conclude`] tells whether it was paid for as agreed.
    pub(crate) async fn ask(
        &mut self,
        body: Bytes,
        patience: &mut Patience,
    ) -> Result<Response<Incoming>, ExchangeError> {
        let ask = Ask {
            step: Step::Chat,
            method: Method::POST,
            path: CHAT_PATH,
            content_type: "application/json",
            body,
        };
        patience.wait(self.session.connection.send(ask)).await?
    }

    /// Of the grant that pays for it.
    pub(crate) fn grant_id(&self) -> &Digest32 {
        &self.grant.id
    }

    /// Whether another request may be sent: the proof is fresh and the connection stands.
    pub fn is_usable(&self) -> bool {
        self.session.proof.is_fresh(Moment::at(clock::now_s())) && !self.session.connection.http.is_closed()
    }

    async fn start(&mut self, ask: Ask, patience: &mut Patience) -> Result<Incoming, ExchangeError> {
        let response = patience.wait(self.session.connection.send(ask)).await??;
        match response.status() {
            StatusCode::OK => Ok(response.into_body()),
            status => {
                let refusal = status_error(Step::Chat, status, response.into_body());
                Err(within(Step::Chat, self.session.deadlines.exchange, refusal).await?)
            }
        }
    }

    /// Checks the receipt of a whole answer.
    pub(crate) fn conclude(
        &mut self,
        transcript: &Transcript,
        request_body: &[u8],
        output_tokens_max: u32,
    ) -> Result<Paid, ChatError> {
        let (Some(attachment), Some(finish_reason)) = (&transcript.attachment, &transcript.finish_reason)
        else {
            return Err(ChatError::Cut);
        };
        let expected = Expected {
            usage_key: self.session.guest().usage_key(),
            launch: self.session.launch(),
            grant: self.grant.id,
            cap_nano: self.grant.cap_nano,
            served_before: self.grant.standing.served,
            request_id: &transcript.id,
            request_body,
            answer: &transcript.text,
            finish_reason,
            output_tokens_max,
        };
        let signed = &attachment.receipt;
        receipt::check(signed, &attachment.content_key, &expected).map_err(ChatError::Receipt)?;
        let amount_nano = amount_nano(signed, &self.session.launch().prices);
        let standing = &mut self.grant.standing;
        standing.served = signed.receipt.served;
        standing.served_nano = signed.receipt.served_nano;
        Ok(Paid {
            receipt: signed.clone(),
            content_key: attachment.content_key.clone(),
            amount_nano,
        })
    }
}

/// A receipt that is true.
#[derive(Debug, Clone)]
pub(crate) struct Paid {
    pub(crate) receipt: SignedReceipt,
    pub(crate) content_key: ContentKey,
    pub(crate) amount_nano: u64,
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

/// A streamed answer and how long it took.
#[derive(Debug, Default)]
struct Received {
    transcript: Transcript,
    first_text: Duration,
    total: Duration,
}

impl Received {
    async fn read(
        mut body: Incoming,
        mut patience: Patience,
        on_text: &mut impl FnMut(&str),
    ) -> Result<Self, ChatError> {
        let mut received = Self::default();
        let mut events = Events::default();
        loop {
            let Some(frame) = patience.wait(body.frame()).await? else {
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
                    Event::Data(json) => received.take(&json, &mut patience, on_text)?,
                    Event::Done => {
                        received.total = patience.started().elapsed();
                        return Ok(received);
                    }
                }
            }
        }
    }

    fn take(
        &mut self,
        json: &[u8],
        patience: &mut Patience,
        on_text: &mut impl FnMut(&str),
    ) -> Result<(), ChatError> {
        let is_first = self.transcript.text.is_empty();
        let text = self.transcript.take_chunk(json)?.text;
        if is_first && !text.is_empty() {
            self.first_text = patience.started().elapsed();
        }
        on_text(&text);
        if !text.is_empty() {
            patience.text_came();
        }
        Ok(())
    }
}

impl From<TranscriptError> for ChatError {
    fn from(error: TranscriptError) -> Self {
        match error {
            TranscriptError::Guest(message) => Self::Guest(message),
            TranscriptError::Malformed(reason) => malformed(reason).into(),
        }
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
