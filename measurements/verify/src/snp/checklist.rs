//! Collects the rows of a judgement.

use std::fmt::Display;

use crate::judgement::{FailureClass, JudgedCheck, Status};

/// The rows so far.
#[derive(Debug, Default)]
pub(super) struct Checklist(Vec<JudgedCheck>);

impl Checklist {
    pub(super) fn into_checks(self) -> Vec<JudgedCheck> {
        self.0
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
        self.0.push(JudgedCheck {
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
