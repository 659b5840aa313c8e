//! The rows of a judgement while it is made.

use crate::judgement::{FailureClass, JudgedCheck, Status};

use super::verify::VerifyError;

/// Why a check failed, and what that means.
pub(crate) struct Failure {
    class: FailureClass,
    text: String,
}

impl Failure {
    pub(crate) fn new(class: FailureClass, text: impl std::fmt::Display) -> Self {
        let text = text.to_string();
        Self { class, text }
    }
}

impl From<&VerifyError> for Failure {
    fn from(error: &VerifyError) -> Self {
        Self::new(error.class(), error)
    }
}

#[derive(Default)]
pub(crate) struct Rows(Vec<JudgedCheck>);

impl Rows {
    pub(crate) fn into_checks(self) -> Vec<JudgedCheck> {
        self.0
    }

    pub(crate) fn pass(&mut self, id: &str, class: FailureClass, expected: &str, actual: String) {
        self.push(id, Status::Pass, class, expected, actual, "");
    }

    pub(crate) fn fail(&mut self, id: &str, expected: &str, failure: Failure) {
        self.push(id, Status::Fail, failure.class, expected, failure.text, "");
    }

    /// An earlier check left nothing to judge.
    pub(crate) fn skip(&mut self, id: &str, class: FailureClass, expected: &str, why: &str) {
        self.push(id, Status::Skip, class, expected, String::new(), why);
    }

    /// There is a value, but nothing says what it has to be.
    pub(crate) fn unjudged(&mut self, id: &str, actual: &str, why: &str) {
        self.push(id, Status::Skip, FailureClass::Policy, "", actual.to_owned(), why);
    }

    pub(crate) fn judge(&mut self, id: &str, class: FailureClass, expected: &str, actual: &str, holds: bool) {
        let status = if holds { Status::Pass } else { Status::Fail };
        self.push(id, status, class, expected, actual.to_owned(), "");
    }

    /// `None`: skipped.
    pub(crate) fn result(
        &mut self,
        id: &str,
        class: FailureClass,
        expected: &str,
        result: Option<Result<String, Failure>>,
        why_skipped: &str,
    ) {
        match result {
            Some(Ok(actual)) => self.pass(id, class, expected, actual),
            Some(Err(failure)) => self.fail(id, expected, failure),
            None => self.skip(id, class, expected, why_skipped),
        }
    }

    fn push(
        &mut self,
        id: &str,
        status: Status,
        class: FailureClass,
        expected: &str,
        actual: String,
        detail: &str,
    ) {
        self.0.push(JudgedCheck {
            id: id.to_owned(),
            status,
            expected: expected.to_owned(),
            actual,
            detail: detail.to_owned(),
            class,
        });
    }
}
