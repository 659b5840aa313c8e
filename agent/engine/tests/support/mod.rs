//! What several tests of the engine need: the demo model, requests, and how to run them to their end.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use cocoon_engine::Engine;
use cocoon_protocol::{
    NumericProfile, TokenCounts,
    engine::{Fault, FinishReason, FromEngine, Message, Sampling},
};

/// How one request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// Well, or cancelled.
    Finished(FinishReason, TokenCounts),
    /// Refused or failed.
    Failed(Fault, String),
}

/// Everything that the engine said about one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// From `Started`.
    pub(crate) input_tokens: Option<u64>,
    /// All pieces.
    pub(crate) text: String,
    /// How many pieces there were.
    pub(crate) pieces: usize,
    /// The last message.
    pub(crate) end: Option<End>,
}

impl Answer {
    /// Adds one event and checks the order of events.
    pub(crate) fn add(&mut self, event: FromEngine) {
        assert!(self.end.is_none(), "after the end came {event:?}");
        match event {
            FromEngine::Started { input_tokens, .. } => {
                assert!(self.input_tokens.replace(input_tokens).is_none(), "started twice");
            }
            FromEngine::Text { text, .. } => {
                assert!(self.input_tokens.is_some() && !text.is_empty());
                self.text += &text;
                self.pieces += 1;
            }
            FromEngine::Finished { reason, tokens, .. } => self.end = Some(End::Finished(reason, tokens)),
            FromEngine::Failed { fault, reason, .. } => self.end = Some(End::Failed(fault, reason)),
            FromEngine::Loaded { .. } | FromEngine::LoadFailed { .. } => panic!("unexpected {event:?}"),
        }
    }

    /// Reason and counts of an answer that did not fail.
    pub(crate) fn finished(&self) -> (FinishReason, TokenCounts) {
        match &self.end {
            Some(End::Finished(reason, tokens)) => (*reason, *tokens),
            other => panic!("{other:?}"),
        }
    }
}

/// Which request an event is about.
pub(crate) fn id_of(event: &FromEngine) -> u64 {
    match event {
        FromEngine::Started { id, .. }
        | FromEngine::Text { id, .. }
        | FromEngine::Finished { id, .. }
        | FromEngine::Failed { id, .. } => *id,
        FromEngine::Loaded { .. } | FromEngine::LoadFailed { .. } => panic!("{event:?} is about no request"),
    }
}

/// The committed model.
pub(crate) fn demo_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model")
}

/// A copy of it that a test may break.
pub(crate) fn copy_of_demo_model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(demo_model()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

/// In f32.
pub(crate) fn engine(context_tokens_max: u32) -> Engine {
    Engine::load(&demo_model(), NumericProfile::F32, context_tokens_max, 8).unwrap()
}

/// One message of a user.
pub(crate) fn ask(text: &str) -> Vec<Message> {
    vec![Message {
        role: "user".into(),
        content: text.into(),
    }]
}

/// No randomness.
pub(crate) fn greedy(output_tokens_max: u32) -> Sampling {
    Sampling {
        output_tokens_max,
        temperature: 0.0,
        top_p: 1.0,
        seed: 0,
        stop: vec![],
    }
}

/// Runs until nothing is running.
pub(crate) fn run(engine: &mut Engine, answers: &mut HashMap<u64, Answer>) {
    while !engine.is_idle() {
        for event in engine.step() {
            answers.entry(id_of(&event)).or_default().add(event);
        }
    }
}

/// One request alone.
pub(crate) fn answer(engine: &mut Engine, messages: &[Message], sampling: Sampling) -> Answer {
    let mut answers = HashMap::new();
    if let Some(event) = engine.start(1, messages, sampling) {
        answers.entry(1).or_insert_with(Answer::default).add(event);
    }
    run(engine, &mut answers);
    answers.remove(&1).unwrap()
}
