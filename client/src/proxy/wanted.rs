//! What the proxy has to know of a request; the node judges the rest. Pure.

use serde::Deserialize;

/// A chat request, as far as it is read here. The bytes go to the node as they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) model: String,
    pub(crate) stream: bool,
    output_tokens: Option<u64>,
}

impl Wanted {
    /// Reads a request's body; the error is for its author.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Body {
            model: String,
            stream: Option<bool>,
            max_tokens: Option<u64>,
            max_completion_tokens: Option<u64>,
        }
        let body: Body = serde_json::from_slice(body)
            .map_err(|error| format!("the body is not a chat completion request: {error}"))?;
        Ok(Self {
            model: body.model,
            stream: body.stream.unwrap_or(false),
            // As the agent reads it.
            output_tokens: body.max_completion_tokens.or(body.max_tokens),
        })
    }

    /// Generated tokens at most, on a node with this limit.
    pub(crate) fn output_tokens_max(&self, limit: u32) -> u32 {
        self.output_tokens
            .and_then(|tokens| u32::try_from(tokens).ok())
            .map_or(limit, |tokens| tokens.min(limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_read() {
        let body = br#"{"model":"m","stream":true,"max_tokens":7,"max_completion_tokens":9,"messages":[1]}"#;
        let wanted = Wanted::parse(body).unwrap();
        assert_eq!((wanted.model.as_str(), wanted.stream), ("m", true));
        assert_eq!(
            (wanted.output_tokens_max(64), wanted.output_tokens_max(8)),
            (9, 8)
        );
        let plain = Wanted::parse(br#"{"model":"m","stream":null}"#).unwrap();
        assert_eq!((plain.stream, plain.output_tokens_max(64)), (false, 64));
    }

    #[test]
    fn what_is_no_request_is_said() {
        for body in [
            "",
            "[]",
            "{}",
            r#"{"model":1}"#,
            r#"{"model":"m","stream":"yes"}"#,
        ] {
            assert!(Wanted::parse(body.as_bytes()).is_err(), "{body}");
        }
    }
}
