//! The result of judging one piece of raw evidence (a TDX quote, an SNP report, a GPU's report): one row for
//! every check, and the facts that the evidence claims. `cocoon-measure verify --json` prints it as it is.

use serde::Serialize;
use serde_json::{Map, Value};

/// The version of the JSON form.
pub const JUDGEMENT_SCHEMA: &str = "cocoon.verify/1";

/// How one check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// Holds.
    Pass,
    /// Does not hold.
    Fail,
    /// Was not judged: the policy that would state an expectation is missing, or an earlier check failed. Never
    /// counts as a pass.
    Skip,
}

/// What a failed check means; the programs' exit codes follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureClass {
    /// Signature, certificate chain or format: the evidence is not the vendor's.
    Signature,
    /// Security version, expiry, revocation, or collateral that is missing.
    Tcb,
    /// Attributes or values that the policy (or the strict defaults) refuse.
    Policy,
}

impl FailureClass {
    /// The exit code of programs that end because of it.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Signature => 11,
            Self::Tcb => 12,
            Self::Policy => 10,
        }
    }
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JudgedCheck {
    /// What is checked, in kebab-case with dots between levels: `quote.signature`, `td.debug`, `tcb.status`.
    pub id: String,
    /// How it ended.
    pub status: Status,
    /// What has to be.
    pub expected: String,
    /// What the evidence says.
    pub actual: String,
    /// For a person: why, and what to do; empty where there is nothing to add.
    pub detail: String,
    /// What a failure means.
    #[serde(skip)]
    pub class: FailureClass,
}

/// Whether the evidence is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// No check failed, and at least one was made.
    Pass,
    /// A check failed.
    Fail,
}

/// All checks of one piece of evidence and what it claims.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judgement {
    schema: &'static str,
    verdict: Verdict,
    checks: Vec<JudgedCheck>,
    claims: Map<String, Value>,
    /// Not part of the JSON form.
    #[serde(skip)]
    until_s: u64,
}

impl Judgement {
    /// Draws the verdict.
    pub fn new(checks: Vec<JudgedCheck>, claims: Map<String, Value>) -> Self {
        let failed = checks.iter().any(|check| check.status == Status::Fail);
        let passed = checks.iter().any(|check| check.status == Status::Pass);
        Self {
            schema: JUDGEMENT_SCHEMA,
            verdict: if passed && !failed {
                Verdict::Pass
            } else {
                Verdict::Fail
            },
            checks,
            claims,
            until_s: u64::MAX,
        }
    }

    /// The same, which the clock alone makes another from this second on at the latest.
    #[must_use]
    pub(crate) fn until(self, until_s: u64) -> Self {
        Self {
            until_s: self.until_s.min(until_s),
            ..self
        }
    }

    /// The first second at which something that was judged (a certificate, a revocation list, an OCSP response) is
    /// valid no longer, or another one begins to be. Of SEV-SNP and NVIDIA; for TDX, [`crate::tdx`] says it of the
    /// collateral.
    pub(crate) fn until_s(&self) -> u64 {
        self.until_s
    }

    /// The same with more checks, and one more claim.
    #[must_use]
    pub fn with(mut self, checks: Vec<JudgedCheck>, claim: (&str, Value)) -> Self {
        self.checks.extend(checks);
        self.claims.insert(claim.0.to_owned(), claim.1);
        Self::new(self.checks, self.claims).until(self.until_s)
    }

    /// The same with every check as `change` leaves it.
    #[must_use]
    pub(crate) fn map_checks(self, change: impl Fn(JudgedCheck) -> JudgedCheck) -> Self {
        Self::new(self.checks.into_iter().map(change).collect(), self.claims).until(self.until_s)
    }

    /// Whether the evidence is accepted.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Every check, in the order in which it was made.
    pub fn checks(&self) -> &[JudgedCheck] {
        &self.checks
    }

    /// What the evidence says about itself. Only true if the verdict is [`Verdict::Pass`].
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// The worst failure, or `None` if the evidence is accepted: a signature before a security version, and
    /// that before a policy.
    pub fn failure(&self) -> Option<FailureClass> {
        let failed = self.checks.iter().filter(|check| check.status == Status::Fail);
        failed
            .map(|check| check.class)
            .min()
            .or((self.verdict == Verdict::Fail).then_some(FailureClass::Signature))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: Status, class: FailureClass) -> JudgedCheck {
        JudgedCheck {
            id: "quote.signature".to_owned(),
            status,
            expected: String::new(),
            actual: String::new(),
            detail: String::new(),
            class,
        }
    }

    #[test]
    fn the_worst_failure_decides() {
        use FailureClass::{Policy, Signature, Tcb};
        let fails = |classes: &[FailureClass]| {
            let checks = classes.iter().map(|class| check(Status::Fail, *class)).collect();
            Judgement::new(checks, Map::new()).failure()
        };
        assert_eq!(fails(&[Policy, Tcb, Signature]), Some(Signature));
        assert_eq!(fails(&[Policy, Tcb]), Some(Tcb));
        assert_eq!(fails(&[Policy]), Some(Policy));
    }

    #[test]
    fn nothing_checked_is_no_pass() {
        assert_eq!(Judgement::new(Vec::new(), Map::new()).verdict(), Verdict::Fail);
        let skipped = vec![check(Status::Skip, FailureClass::Policy)];
        assert_eq!(Judgement::new(skipped, Map::new()).verdict(), Verdict::Fail);
        let passed = vec![check(Status::Pass, FailureClass::Policy)];
        let judgement = Judgement::new(passed, Map::new());
        assert_eq!((judgement.verdict(), judgement.failure()), (Verdict::Pass, None));
    }
}
