//! The JSON that guest and client exchange: OpenAI's chat format with Cocoon's additions.

use cocoon_protocol::{ContentKey, SessionProof, SignedGrant, SignedReceipt};
use serde::{Deserialize, Serialize};

use crate::plain;

/// A longer error answer is not read.
pub(crate) const ERROR_BYTES_MAX: usize = 16 * 1024;
const MESSAGE_CHARS_MAX: usize = 600;

/// Body of `POST /v1/chat/completions`.
#[derive(Debug, Serialize)]
pub(crate) struct ChatRequest<'a> {
    pub(crate) model: &'a str,
    pub(crate) messages: &'a [ChatMessage],
    pub(crate) stream: bool,
    pub(crate) max_tokens: u32,
    pub(crate) temperature: f32,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// Who says it.
    pub role: ChatRole,
    /// What is said.
    pub content: String,
}

/// Who says something in a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChatRole {
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// Body of `POST /v1/cocoon/grant`.
#[derive(Debug, Serialize)]
pub(crate) struct GrantOffer<'a> {
    pub(crate) grant: &'a SignedGrant,
    pub(crate) proof: SessionProof,
}

/// One event of a streamed answer.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Chunk {
    #[serde(default)]
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) choices: Vec<Choice>,
    pub(crate) usage: Option<serde::de::IgnoredAny>,
    pub(crate) cocoon: Option<Attachment>,
    pub(crate) error: Option<ApiError>,
}

/// An answer in one piece.
#[derive(Debug, Deserialize)]
pub(crate) struct Whole {
    #[serde(default)]
    pub(crate) id: String,
    pub(crate) choices: Vec<WholeChoice>,
    pub(crate) cocoon: Option<Attachment>,
}

/// The one choice of it.
#[derive(Debug, Deserialize)]
pub(crate) struct WholeChoice {
    pub(crate) message: Delta,
    pub(crate) finish_reason: Option<String>,
}

/// A piece of the answer.
#[derive(Debug, Deserialize)]
pub(crate) struct Choice {
    #[serde(default)]
    pub(crate) delta: Delta,
    pub(crate) finish_reason: Option<String>,
}

/// The piece's text.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Delta {
    pub(crate) content: Option<String>,
}

/// What Cocoon adds to an answer.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Attachment {
    pub(crate) receipt: SignedReceipt,
    pub(crate) content_key: ContentKey,
}

/// OpenAI's error object.
#[derive(Debug, Deserialize)]
pub(crate) struct ApiError {
    #[serde(default)]
    message: String,
}

impl ApiError {
    pub(crate) fn message(&self) -> String {
        plain(&self.message, MESSAGE_CHARS_MAX)
    }
}

/// The message of an error answer, made safe to print.
pub(crate) fn error_message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Envelope {
        error: ApiError,
    }
    match serde_json::from_slice::<Envelope>(body) {
        Ok(envelope) => envelope.error.message(),
        Err(_) if body.is_empty() => "no reason given".into(),
        Err(_) => plain(&String::from_utf8_lossy(body), MESSAGE_CHARS_MAX),
    }
}
