//! A verification for programs.

use serde_json::{Value, json};

use crate::{Exit, Verification};

/// The verdict and everything it rests upon. `refused` is the exit code of a refusal, `None` if there is a session.
pub fn verdict_json(verification: &Verification, refused: Option<Exit>) -> Value {
    let simulated = verification.certificate.simulated;
    let verdict = match (refused, simulated) {
        (Some(_), _) => "FAIL",
        (None, true) => "SIMULATED",
        (None, false) => "PASS",
    };
    json!({
        "verdict": verdict,
        "simulated": simulated,
        "certificate": verification.certificate,
        "fresh": verification.fresh,
        "facts": verification.facts,
        "exit_code": refused.unwrap_or(Exit::Ok) as u8,
    })
}
