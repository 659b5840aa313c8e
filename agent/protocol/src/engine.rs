//! Messages between the agent and its engine child, over a socketpair, framed as in [`crate::read_frame`].
//!
//! The engine is unprivileged and may crash; the agent believes its counts only within what it asked for.

use serde::{Deserialize, Serialize};

use crate::{NumericProfile, TokenCounts};

/// The descriptor on which the engine finds its end of the socketpair.
pub const ENGINE_SOCKET_FD: i32 = 3;

/// Agent to engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToEngine {
    /// First message, once.
    Load {
        /// Directory in Hugging Face's layout.
        model_dir: String,
        /// In which arithmetic.
        numeric_profile: NumericProfile,
        /// Prompt and answer together, tokens.
        context_tokens_max: u32,
        /// How many requests are run at the same time at most.
        requests_max: u32,
    },
    /// Starts a request.
    Generate {
        /// Chosen by the agent, never used twice.
        id: u64,
        /// The conversation.
        messages: Vec<Message>,
        /// How to sample.
        sampling: Sampling,
    },
    /// Stops a request; the engine still answers with [`FromEngine::Finished`].
    Cancel {
        /// Which.
        id: u64,
    },
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// How to sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Generated tokens at most.
    pub output_tokens_max: u32,
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus; 1 keeps everything.
    pub top_p: f32,
    /// Same seed, same answer.
    pub seed: u64,
    /// Generation ends before any of these.
    pub stop: Vec<String>,
}

/// Engine to agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromEngine {
    /// The model is loaded.
    Loaded {
        /// Milliseconds from the engine's start to here.
        elapsed_ms: u64,
    },
    /// The model cannot be loaded; the engine exits.
    LoadFailed {
        /// Why, about files and shapes only.
        reason: String,
    },
    /// The prompt is in the KV cache.
    Started {
        /// Which request.
        id: u64,
        /// Prompt tokens.
        input_tokens: u64,
    },
    /// Some more text of the answer; whole UTF-8 characters.
    Text {
        /// Which request.
        id: u64,
        /// The piece.
        text: String,
        /// Tokens generated so far.
        output_tokens: u64,
    },
    /// The request ended well, or was cancelled.
    Finished {
        /// Which request.
        id: u64,
        /// Why.
        reason: FinishReason,
        /// Its tokens.
        tokens: TokenCounts,
    },
    /// The request was refused or failed; nothing of it is charged.
    Failed {
        /// Which request.
        id: u64,
        /// Whose fault.
        fault: Fault,
        /// Why, without any of the content.
        reason: String,
    },
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// End-of-sequence token or stop string.
    Stop,
    /// `output_tokens_max` or the context is full.
    Length,
    /// Cancelled by the agent.
    Cancelled,
}

/// Whose fault a failed request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The request's: HTTP 400.
    Client,
    /// The request's, because it is longer than the context: HTTP 400 with a code of its own, so that a program can
    /// send less.
    Context,
    /// The engine's: HTTP 500.
    Engine,
}
