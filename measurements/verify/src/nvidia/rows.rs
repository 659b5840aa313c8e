//! Collects the rows of a judgement.

use serde_json::{Map, Value};

use crate::judgement::{FailureClass, JudgedCheck, Judgement, Status};

/// Rows, each of whose names starts with the same prefix.
pub(super) struct Rows {
    prefix: String,
    checks: Vec<JudgedCheck>,
    until_s: u64,
}

impl Rows {
    pub(super) fn new(prefix: String) -> Self {
        Self {
            prefix,
            checks: Vec::new(),
            until_s: u64::MAX,
        }
    }

    /// From this second on, a row can be another.
    pub(super) fn ends(&mut self, until_s: u64) {
        self.until_s = self.until_s.min(until_s);
    }

    /// A check that was made.
    pub(super) fn judge(
        &mut self,
        class: FailureClass,
        id: &str,
        holds: bool,
        expected: impl Into<String>,
        actual: impl Into<String>,
        detail: impl Into<String>,
    ) -> bool {
        let status = if holds { Status::Pass } else { Status::Fail };
        // The detail says what is wrong and what to do.
        let detail = if holds { String::new() } else { detail.into() };
        self.push(class, id, status, expected.into(), actual.into(), detail);
        holds
    }

    /// A check that holds, with something to add.
    pub(super) fn pass(
        &mut self,
        id: &str,
        expected: &str,
        actual: impl Into<String>,
        detail: impl Into<String>,
    ) {
        let (expected, class) = (expected.to_owned(), FailureClass::Policy);
        self.push(class, id, Status::Pass, expected, actual.into(), detail.into());
    }

    /// A check that could not even be made, because what it is about cannot be read.
    pub(super) fn unreadable(&mut self, id: &str, expected: &str, error: impl std::fmt::Display) {
        let (class, expected) = (FailureClass::Signature, expected.to_owned());
        self.push(
            class,
            id,
            Status::Fail,
            expected,
            "unreadable".to_owned(),
            error.to_string(),
        );
    }

    /// A check that was not made.
    pub(super) fn skip(&mut self, id: &str, expected: &str, actual: impl Into<String>, detail: &str) {
        let (class, expected) = (FailureClass::Policy, expected.to_owned());
        self.push(
            class,
            id,
            Status::Skip,
            expected,
            actual.into(),
            detail.to_owned(),
        );
    }

    pub(super) fn append(&mut self, mut other: Self) {
        self.ends(other.until_s);
        self.checks.append(&mut other.checks);
    }

    pub(super) fn failed(&self) -> bool {
        self.checks.iter().any(|check| check.status == Status::Fail)
    }

    pub(super) fn into_judgement(self, claims: Map<String, Value>) -> Judgement {
        Judgement::new(self.checks, claims).until(self.until_s)
    }

    fn push(
        &mut self,
        class: FailureClass,
        id: &str,
        status: Status,
        expected: String,
        actual: String,
        detail: String,
    ) {
        let id = format!("{}{id}", self.prefix);
        self.checks.push(JudgedCheck {
            id,
            status,
            expected,
            actual,
            detail,
            class,
        });
    }
}
