//! OpenAI's chat format: what is read from a request and written into an answer.
//!
//! Fields that change what the client gets and that are not implemented are refused; other unknown fields are
//! ignored, because client libraries send many. Pure: no I/O.

use cocoon_protocol::{
    ContentKey, LaunchDocument, SignedReceipt, TokenCounts,
    engine::{FinishReason, Message, Sampling},
};
use serde::Deserialize;
use serde_json::{Value, json};

/// Messages in one conversation.
const MESSAGES_MAX: usize = 1024;
/// OpenAI's own limit.
const STOPS_MAX: usize = 4;
const STOP_BYTES_MAX: usize = 256;

/// What a chat template may add, in tokens: for each message, and once. Models whose template adds more are
/// served all the same; the excess is not charged.
const TEMPLATE_TOKENS_PER_MESSAGE: u64 = 16;
const TEMPLATE_TOKENS: u64 = 256;

/// An error as an HTTP status and OpenAI's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// OpenAI's class of errors.
    pub kind: &'static str,
    /// For programs.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// Seconds after which trying again makes sense.
    pub retry_after_s: Option<u32>,
}

impl ApiError {
    /// An error that is the client's to mend.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        let kind = match status {
            402 | 403 => "payment_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        Self {
            status,
            kind,
            code,
            message: message.into(),
            retry_after_s: None,
        }
    }

    /// Adds `Retry-After`.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// OpenAI's JSON.
    pub fn body(&self) -> Value {
        let Self {
            kind, code, message, ..
        } = self;
        json!({"error": {"message": message, "type": kind, "param": null, "code": code}})
    }
}

/// A request as the engine and the meter need it.
#[derive(Debug, Clone, PartialEq)]
pub struct Chat {
    /// The conversation.
    pub messages: Vec<Message>,
    /// How to sample; without a seed in the request, one from `seed_default`.
    pub sampling: Sampling,
    /// Answer in pieces.
    pub stream: bool,
    /// With a chunk that holds the token counts.
    pub include_usage: bool,
    /// The most that can be charged.
    pub worst: TokenCounts,
}

#[derive(Deserialize)]
struct Body {
    model: String,
    messages: Vec<BodyMessage>,
    #[serde(default)]
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    seed: Option<i64>,
    stop: Option<Stop>,
    n: Option<u64>,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Deserialize)]
struct BodyMessage {
    role: String,
    content: Option<Content>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Many(Vec<String>),
}

/// Fields that would change the answer, with the values that ask for nothing.
const UNSUPPORTED: [(&str, &[&str]); 10] = [
    ("tools", &["[]"]),
    ("tool_choice", &["\"none\"", "\"auto\""]),
    ("functions", &["[]"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("response_format", &["{\"type\":\"text\"}"]),
    ("logprobs", &["false"]),
    ("logit_bias", &["{}"]),
    ("frequency_penalty", &["0", "0.0"]),
    ("presence_penalty", &["0", "0.0"]),
    ("modalities", &["[\"text\"]"]),
];

impl Chat {
    /// Reads a request's body.
    ///
    /// # Errors
    /// 400, or 404 for another model, with what to change.
    pub fn parse(body: &[u8], launch: &LaunchDocument, seed_default: u64) -> Result<Self, ApiError> {
        let body: Body = serde_json::from_slice(body)
            .map_err(|error| bad(format!("the body is not a chat completion request: {error}")))?;
        if body.model != launch.model.name {
            let message = format!("this node serves the model {:?} only", launch.model.name);
            return Err(ApiError::new(404, "model_not_found", message));
        }
        refuse_unsupported(&body.rest)?;
        if body.n.is_some_and(|n| n != 1) {
            return Err(bad("n has to be 1"));
        }
        if !(1..=MESSAGES_MAX).contains(&body.messages.len()) {
            return Err(bad(format!("messages has to hold 1 to {MESSAGES_MAX} messages")));
        }
        let messages = body
            .messages
            .into_iter()
            .map(message)
            .collect::<Result<Vec<_>, _>>()?;
        let limits = launch.limits;
        let asked = body.max_completion_tokens.or(body.max_tokens);
        // As other servers do, more than the node's limit means the limit; the answer then ends with "length".
        let output = asked.unwrap_or(u64::MAX).min(u64::from(limits.output_tokens_max));
        let temperature = body.temperature.unwrap_or(1.0);
        let top_p = body.top_p.unwrap_or(1.0);
        if output == 0 {
            return Err(bad("max_completion_tokens has to be at least 1"));
        }
        if !(0.0..=2.0).contains(&temperature) {
            return Err(bad("temperature has to be from 0 to 2"));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(bad("top_p has to be above 0 and at most 1"));
        }
        let worst = TokenCounts {
            input: input_tokens_max(&messages).min(u64::from(limits.context_tokens_max)),
            output,
        };
        let sampling = Sampling {
            output_tokens_max: output as u32,
            temperature,
            top_p,
            seed: body.seed.map_or(seed_default, i64::cast_unsigned),
            stop: stops(body.stop)?,
        };
        Ok(Self {
            messages,
            sampling,
            stream: body.stream.unwrap_or(false),
            include_usage: body.stream_options.is_some_and(|options| options.include_usage),
            worst,
        })
    }
}

fn bad(message: impl Into<String>) -> ApiError {
    ApiError::new(400, "invalid_request", message)
}

fn refuse_unsupported(rest: &serde_json::Map<String, Value>) -> Result<(), ApiError> {
    for (name, harmless) in UNSUPPORTED {
        let asks = |value: &Value| !value.is_null() && !harmless.contains(&value.to_string().as_str());
        if rest.get(name).is_some_and(asks) {
            let message = format!("{name} is not supported by this node; leave it out");
            return Err(ApiError::new(400, "unsupported_parameter", message));
        }
    }
    Ok(())
}

fn message(message: BodyMessage) -> Result<Message, ApiError> {
    let role = match message.role.as_str() {
        "developer" | "system" => "system",
        "user" => "user",
        "assistant" => "assistant",
        _ => {
            return Err(bad(
                "a message's role has to be system, developer, user or assistant",
            ));
        }
    };
    let content = match message.content {
        None => String::new(),
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => {
            if parts.iter().any(|part| part.kind != "text") {
                return Err(bad("only content parts of type text are supported"));
            }
            parts.into_iter().map(|part| part.text).collect()
        }
    };
    Ok(Message {
        role: role.into(),
        content,
    })
}

fn stops(stop: Option<Stop>) -> Result<Vec<String>, ApiError> {
    let stops = match stop {
        None => vec![],
        Some(Stop::One(text)) => vec![text],
        Some(Stop::Many(texts)) => texts,
    };
    let fits = |text: &String| (1..=STOP_BYTES_MAX).contains(&text.len());
    if stops.len() > STOPS_MAX || !stops.iter().all(fits) {
        return Err(bad(format!(
            "stop has to be at most {STOPS_MAX} strings of 1 to {STOP_BYTES_MAX} bytes"
        )));
    }
    Ok(stops)
}

/// A token stands for at least one byte, so bytes bound tokens.
fn input_tokens_max(messages: &[Message]) -> u64 {
    let bytes = messages
        .iter()
        .map(|message| message.content.len() as u64)
        .sum::<u64>();
    bytes + TEMPLATE_TOKENS_PER_MESSAGE * messages.len() as u64 + TEMPLATE_TOKENS
}

/// What is the same in all of one answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// `chatcmpl-` and random hex.
    pub id: String,
    /// Seconds since 1970.
    pub created_s: u64,
    /// The model's name.
    pub model: String,
}

/// OpenAI's word for it.
pub fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        // Of an answer that was ended early, whoever is still there has not got all either.
        FinishReason::Length | FinishReason::Cancelled => "length",
    }
}

impl Answer {
    /// The whole answer as one object.
    pub fn whole(
        &self,
        text: &str,
        reason: &str,
        tokens: TokenCounts,
        receipt: &(SignedReceipt, ContentKey),
    ) -> Value {
        let message = json!({"role": "assistant", "content": text, "refusal": null});
        let mut whole = self.object(
            "chat.completion",
            &json!([
                {"index": 0, "message": message, "logprobs": null, "finish_reason": reason}
            ]),
        );
        whole["usage"] = usage(tokens);
        whole["cocoon"] = proof(receipt);
        whole
    }

    /// The first chunk: the role.
    pub fn first(&self) -> Value {
        self.delta(&json!({"role": "assistant", "content": ""}), None)
    }

    /// A chunk of text.
    pub fn text(&self, text: &str) -> Value {
        self.delta(&json!({"content": text}), None)
    }

    /// The chunk that says why it ended.
    pub fn finish(&self, reason: &str) -> Value {
        self.delta(&json!({}), Some(reason))
    }

    /// The chunk with the counts, for clients that ask for it.
    pub fn usage(&self, tokens: TokenCounts) -> Value {
        let mut chunk = self.object("chat.completion.chunk", &json!([]));
        chunk["usage"] = usage(tokens);
        chunk
    }

    /// The last chunk: the receipt.
    pub fn receipt(&self, receipt: &(SignedReceipt, ContentKey)) -> Value {
        let mut chunk = self.object("chat.completion.chunk", &json!([]));
        chunk["cocoon"] = proof(receipt);
        chunk
    }

    fn delta(&self, delta: &Value, reason: Option<&str>) -> Value {
        self.object(
            "chat.completion.chunk",
            &json!([
                {"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason}
            ]),
        )
    }

    fn object(&self, object: &str, choices: &Value) -> Value {
        let Self { id, created_s, model } = self;
        json!({"id": id, "object": object, "created": created_s, "model": model, "choices": choices})
    }
}

/// The list of models: one.
pub fn models(launch: &LaunchDocument, created_s: u64) -> Value {
    json!({"object": "list", "data": [
        {"id": launch.model.name, "object": "model", "created": created_s, "owned_by": "cocoon"}
    ]})
}

fn usage(TokenCounts { input, output }: TokenCounts) -> Value {
    json!({"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output})
}

fn proof((receipt, content_key): &(SignedReceipt, ContentKey)) -> Value {
    json!({"receipt": receipt, "content_key": content_key})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch() -> LaunchDocument {
        let digest = "00".repeat(32);
        let document = json!({
            "version": 1,
            "model": {"name": "demo", "verity": {"data_blocks": 1, "salt": digest, "root_hash": digest}},
            "numeric_profile": "f32",
            "prices": {"input_nano_per_kilotoken": 1, "output_nano_per_kilotoken": 1},
            "limits": {"context_tokens_max": 512, "output_tokens_max": 64, "requests_max": 2},
            "settlement": {"network": -417, "payout_address": format!("0:{digest}"),
                           "contract_code": {"hash": digest, "depth": 0}},
        });
        serde_json::from_value(document).unwrap()
    }

    fn parse(change: impl FnOnce(&mut Value)) -> Result<Chat, ApiError> {
        let mut body = json!({"model": "demo", "messages": [{"role": "user", "content": "hello"}]});
        change(&mut body);
        Chat::parse(body.to_string().as_bytes(), &launch(), 7)
    }

    #[test]
    fn what_clients_commonly_send_is_read() {
        let chat = parse(|body| {
            body["messages"] = json!([
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": null, "name": "x"},
            ]);
            body["stream"] = json!(true);
            body["stream_options"] = json!({"include_usage": true});
            body["max_completion_tokens"] = json!(9);
            body["stop"] = json!("end");
            body["user"] = json!("somebody");
            body["tools"] = json!([]);
            body["frequency_penalty"] = json!(0);
        })
        .unwrap();
        let contents: Vec<_> = chat
            .messages
            .iter()
            .map(|m| (m.role.as_str(), m.content.as_str()))
            .collect();
        assert_eq!(
            contents,
            [("system", "be brief"), ("user", "ab"), ("assistant", "")]
        );
        assert!(chat.stream && chat.include_usage);
        assert_eq!((chat.sampling.output_tokens_max, chat.sampling.seed), (9, 7));
        assert_eq!(chat.sampling.stop, ["end"]);
        assert_eq!(
            chat.worst,
            TokenCounts {
                input: 10 + 48 + 256,
                output: 9
            }
        );
    }

    #[test]
    fn the_worst_case_is_bounded_by_the_nodes_limits() {
        let chat = parse(|body| {
            body["messages"][0]["content"] = json!("x".repeat(10_000));
            body["max_tokens"] = json!(1_000_000);
        })
        .unwrap();
        assert_eq!(
            chat.worst,
            TokenCounts {
                input: 512,
                output: 64
            }
        );
    }

    #[test]
    fn what_would_change_the_answer_is_refused() {
        let changes: [(&str, Value); 14] = [
            ("tools", json!([{"type": "function"}])),
            ("response_format", json!({"type": "json_object"})),
            ("logprobs", json!(true)),
            ("frequency_penalty", json!(0.5)),
            ("n", json!(2)),
            ("messages", json!([])),
            ("messages", json!([{"role": "tool", "content": "x"}])),
            (
                "messages",
                json!([{"role": "user", "content": [{"type": "image_url"}]}]),
            ),
            ("max_tokens", json!(0)),
            ("temperature", json!(2.5)),
            ("top_p", json!(0)),
            ("stop", json!(["a", "b", "c", "d", "e"])),
            ("stop", json!("")),
            ("stream", json!("yes")),
        ];
        for (name, value) in changes {
            let error = parse(|body| body[name] = value.clone()).unwrap_err();
            assert_eq!(error.status, 400, "{name} {value}");
        }
        let error = parse(|body| body["model"] = json!("other")).unwrap_err();
        assert_eq!((error.status, error.code), (404, "model_not_found"));
    }
}
