//! Collects the rows of a judgement.

use std::fmt::Display;

use serde_json::{Map, Value};

use crate::judgement::{FailureClass, JudgedCheck, Judgement, Status};

/// The rows so far.
#[derive(Debug)]
pub(super) struct Checklist {
    checks: Vec<JudgedCheck>,
    until_s: u64,
}

impl Default for Checklist {
    fn default() -> Self {
        Self {
            checks: vec![],
            until_s: u64::MAX,
        }
    }
}

impl Checklist {
    pub(super) fn into_judgement(self, claims: Map<String, Value>) -> Judgement {
        Judgement::new(self.checks, claims).until(self.until_s)
    }

    /// What was judged holds to this second at most.
    pub(super) fn holds_to(&mut self, last_s: u64) {
        self.until_s = self.until_s.min(last_s.saturating_add(1));
    }

    /// A row that holds or not.
    pub(super) fn judge(
        &mut self,
        (id, class): (&str, FailureClass),
        holds: bool,
        expected: impl Display,
        actual: impl Display,
        detail: impl Display,
    ) {
        let status = if holds { Status::Pass } else { Status::Fail };
        self.push((id, class), status, expected, actual, detail);
    }

    /// A row for something that succeeded or says why not.
    pub(super) fn outcome<T, E: Display>(
        &mut self,
        what: (&str, FailureClass),
        expected: impl Display,
        outcome: Result<T, E>,
    ) -> Option<T> {
        match outcome {
            Ok(value) => {
                self.push(what, Status::Pass, &expected, &expected, "");
                Some(value)
            }
            Err(error) => {
                self.push(what, Status::Fail, &expected, "refused", error);
                None
            }
        }
    }

    /// A row that cannot be judged, and why.
    pub(super) fn skip(
        &mut self,
        what: (&str, FailureClass),
        expected: impl Display,
        actual: impl Display,
        why: impl Display,
    ) {
        self.push(what, Status::Skip, expected, actual, why);
    }

    fn push(
        &mut self,
        (id, class): (&str, FailureClass),
        status: Status,
        expected: impl Display,
        actual: impl Display,
        detail: impl Display,
    ) {
        self.checks.push(JudgedCheck {
            id: id.to_owned(),
            status,
            expected: expected.to_string(),
            actual: actual.to_string(),
            // A pass needs no explanation.
            detail: match status {
                Status::Pass => String::new(),
                Status::Fail | Status::Skip => detail.to_string(),
            },
            class,
        });
    }
}
