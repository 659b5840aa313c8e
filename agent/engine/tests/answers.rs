//! The demo model answers questions that it was never trained on: `scripts/demo-model/held-out.toml`, which
//! the training script keeps out of the training set.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail like tests"
)]

mod support;

use std::{fs, path::Path};

use cocoon_protocol::engine::FinishReason;
use serde::Deserialize;

#[derive(Deserialize)]
struct HeldOut {
    question: Vec<Question>,
}

#[derive(Deserialize)]
struct Question {
    text: String,
    words: Vec<String>,
}

#[test]
fn held_out_questions_are_answered_with_the_stated_words() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/demo-model/held-out.toml");
    let questions = toml::from_str::<HeldOut>(&fs::read_to_string(path).unwrap())
        .unwrap()
        .question;
    let mut engine = support::engine(512);
    let mut wrong = vec![];
    for question in &questions {
        let answer = support::answer(&mut engine, &support::ask(&question.text), support::greedy(100));
        let right = question.words.iter().all(|word| answer.text.contains(word));
        if !right || answer.finished().0 != FinishReason::Stop {
            wrong.push(format!("{}\n  {}", question.text, answer.text));
        }
    }
    let right = questions.len() - wrong.len();
    // Nine of ten, and far more than the ten answers that would do.
    assert!(
        right >= 36,
        "{right} of {} are right; wrong are:\n{}",
        questions.len(),
        wrong.join("\n")
    );
}
