//! What an answer says, put together from its pieces, until its receipt can be held against it.

use crate::api::{Attachment, Chunk, Whole};

/// A longer answer is not taken; a context of 2^20 tokens is about 4 MiB of text.
pub(crate) const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Why an answer cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TranscriptError {
    /// The guest failed in the middle of it, and says so.
    #[error("the guest ended the answer: {0}")]
    Guest(String),
    /// Not what an answer looks like.
    #[error("{0}")]
    Malformed(String),
}

/// An answer so far.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    pub(crate) id: String,
    pub(crate) text: String,
    pub(crate) finish_reason: Option<String>,
    pub(crate) attachment: Option<Attachment>,
}

/// What one event of a stream brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// New text; may be empty.
    pub(crate) text: String,
    /// It holds the receipt and nothing that OpenAI's format knows.
    pub(crate) only_receipt: bool,
}

impl Transcript {
    /// Takes one event of a streamed answer, as JSON.
    pub(crate) fn take_chunk(&mut self, json: &[u8]) -> Result<Piece, TranscriptError> {
        let chunk: Chunk = serde_json::from_slice(json)
            .map_err(|error| TranscriptError::Malformed(format!("an event is not understood: {error}")))?;
        if let Some(error) = chunk.error {
            return Err(TranscriptError::Guest(error.message()));
        }
        let only_receipt = chunk.cocoon.is_some() && chunk.choices.is_empty() && chunk.usage.is_none();
        self.take_names(chunk.id, chunk.cocoon);
        let before = self.text.len();
        for choice in chunk.choices {
            self.take_text(&choice.delta.content.unwrap_or_default(), choice.finish_reason)?;
        }
        Ok(Piece {
            text: self.text[before..].to_owned(),
            only_receipt,
        })
    }

    /// Takes an answer that came in one piece, as JSON.
    pub(crate) fn take_whole(&mut self, json: &[u8]) -> Result<(), TranscriptError> {
        let whole: Whole = serde_json::from_slice(json)
            .map_err(|error| TranscriptError::Malformed(format!("the answer is not understood: {error}")))?;
        self.take_names(whole.id, whole.cocoon);
        for choice in whole.choices {
            self.take_text(&choice.message.content.unwrap_or_default(), choice.finish_reason)?;
        }
        Ok(())
    }

    fn take_names(&mut self, id: String, attachment: Option<Attachment>) {
        if !id.is_empty() {
            self.id = id;
        }
        self.attachment = attachment.or(self.attachment.take());
    }

    fn take_text(&mut self, text: &str, finish_reason: Option<String>) -> Result<(), TranscriptError> {
        if self.text.len() + text.len() > ANSWER_BYTES_MAX {
            let reason = format!("the answer is over {ANSWER_BYTES_MAX} bytes");
            return Err(TranscriptError::Malformed(reason));
        }
        self.text.push_str(text);
        self.finish_reason = finish_reason.or(self.finish_reason.take());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_put_together_in_order() {
        let mut transcript = Transcript::default();
        for json in [
            r#"{"id":"a","choices":[{"delta":{"role":"assistant","content":""}}]}"#,
            r#"{"id":"a","choices":[{"delta":{"content":"one "}}]}"#,
            r#"{"id":"a","choices":[{"delta":{"content":"two"},"finish_reason":null}]}"#,
            r#"{"id":"a","choices":[{"delta":{},"finish_reason":"stop"}]}"#,
        ] {
            assert!(!transcript.take_chunk(json.as_bytes()).unwrap().only_receipt);
        }
        assert_eq!(
            (transcript.id.as_str(), transcript.text.as_str()),
            ("a", "one two")
        );
        assert_eq!(transcript.finish_reason.as_deref(), Some("stop"));
    }

    #[test]
    fn an_answer_in_one_piece_is_read() {
        let mut transcript = Transcript::default();
        transcript
            .take_whole(br#"{"id":"b","choices":[{"message":{"content":"x"},"finish_reason":"length"}]}"#)
            .unwrap();
        assert_eq!((transcript.id.as_str(), transcript.text.as_str()), ("b", "x"));
    }

    #[test]
    fn errors_garbage_and_endless_answers_are_refused() {
        let mut transcript = Transcript::default();
        let guest = transcript.take_chunk(br#"{"error":{"message":"engine \u001b[2J"}}"#);
        assert_eq!(guest, Err(TranscriptError::Guest("engine \u{fffd}[2J".into())));
        assert!(transcript.take_chunk(b"{").is_err());
        assert!(transcript.take_whole(b"[]").is_err());
        let long = format!(
            r#"{{"choices":[{{"delta":{{"content":"{}"}}}}]}}"#,
            "x".repeat(ANSWER_BYTES_MAX / 2)
        );
        assert!(transcript.take_chunk(long.as_bytes()).is_ok());
        assert!(transcript.take_chunk(long.as_bytes()).is_ok());
        assert!(transcript.take_chunk(long.as_bytes()).is_err());
    }
}
