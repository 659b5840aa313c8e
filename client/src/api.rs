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
    code: Option<serde_json::Value>,
}

impl ApiError {
    pub(crate) fn message(&self) -> String {
        plain(&self.message, MESSAGE_CHARS_MAX)
    }
}

/// What an error answer says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Made safe to print.
    pub(crate) message: String,
    /// `None` where it is no text: some servers write HTTP's status there.
    pub(crate) code: Option<String>,
}

/// Reads an error answer.
pub(crate) fn refusal(body: &[u8]) -> Refusal {
    #[derive(Deserialize)]
    struct Envelope {
        error: ApiError,
    }
    let without_code = |message| Refusal { message, code: None };
    match serde_json::from_slice::<Envelope>(body) {
        Ok(Envelope { error }) => Refusal {
            message: error.message(),
            code: error
                .code
                .as_ref()
                .and_then(|code| code.as_str())
                .map(ToOwned::to_owned),
        },
        Err(_) if body.is_empty() => without_code("no reason given".into()),
        Err(_) => without_code(plain(&String::from_utf8_lossy(body), MESSAGE_CHARS_MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_of_another_type_does_not_hide_the_message() {
        for (body, message, code) in [
            (r#"{"error":{"message":"m","code":"c"}}"#, "m", Some("c")),
            (r#"{"error":{"message":"m","code":400}}"#, "m", None),
            (r#"{"error":{"message":"m","code":null}}"#, "m", None),
            (r#"{"error":{}}"#, "", None),
            ("<html>\u{1b}", "<html>\u{fffd}", None),
            ("", "no reason given", None),
        ] {
            let refusal = refusal(body.as_bytes());
            assert_eq!(
                (refusal.message.as_str(), refusal.code.as_deref()),
                (message, code),
                "{body}"
            );
        }
    }
}
