//! The result of an appraisal: one row for every check, and why a guest is refused.

use std::{borrow::Cow, fmt};

use serde::Serialize;

/// How one check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// Holds, proven by the platform's vendor (or not a question of the platform).
    Pass,
    /// Holds under a simulated root: whoever runs the host could have made it up.
    Simulated,
    /// Does not hold.
    Fail,
    /// Could not be judged because an earlier check failed. Counts as a refusal.
    Skip,
}

impl Verdict {
    /// As it is printed and as it stands in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Simulated => "SIMULATED",
            Self::Fail => "FAIL",
            Self::Skip => "SKIP",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Where to look when a check fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// What booted is not what the policy expects: image, kernel, command line, firmware or launch document.
    GuestImage,
    /// The provider's machine or launcher: its configuration, or the endorsements it carries.
    Host,
    /// The processor, its microcode, the TDX module or the quoting enclave.
    Platform,
    /// The verifier's own policy.
    Policy,
    /// What came over this connection: someone in between, or evidence made for another connection.
    Network,
}

impl Fault {
    /// As it is printed and as it stands in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::GuestImage => "guest-image",
            Self::Host => "host",
            Self::Platform => "platform",
            Self::Policy => "policy",
            Self::Network => "network",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why a guest is refused, in classes that programs can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalClass {
    /// The evidence is real, but not of a guest that the policy accepts.
    Policy,
    /// The evidence is not signed by the platform root that the policy names.
    Signature,
    /// The platform's security version is not accepted.
    Tcb,
    /// The evidence does not belong to this connection.
    Channel,
    /// Policy or endorsements are expired or not yet valid.
    Freshness,
    /// A GPU is not what the policy accepts, or did not prove what it is.
    Gpu,
}

impl RefusalClass {
    /// The exit code of programs that end because of it.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Policy => 10,
            Self::Signature => 11,
            Self::Tcb => 12,
            Self::Channel => 13,
            Self::Freshness => 14,
            Self::Gpu => 15,
        }
    }
}

impl fmt::Display for RefusalClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Policy => "policy",
            Self::Signature => "signature",
            Self::Tcb => "TCB",
            Self::Channel => "channel",
            Self::Freshness => "freshness",
            Self::Gpu => "GPU",
        })
    }
}

/// One row of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What is checked, for example `MRTD` or `event launch-document`.
    pub name: Cow<'static, str>,
    /// What the policy (or the connection) asks for; alternatives are joined with ` or `.
    pub expected: String,
    /// What the evidence says.
    pub actual: String,
    /// How it ended.
    pub verdict: Verdict,
    /// Where to look if it failed.
    pub fault: Fault,
    /// What a failure means.
    pub class: RefusalClass,
}

/// All checks of one appraisal, in the order in which they were made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether the policy names a simulated root. To be shown wherever the report is.
    pub simulated: bool,
    /// The policy's number.
    pub policy_number: u64,
    /// The public key that signed the policy; `None` if it is a file that nobody needed to sign.
    pub policy_signer: Option<String>,
    /// The rows.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether every check holds.
    pub fn is_accepted(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| self.holds(check))
    }

    /// The row with this name.
    pub fn check(&self, name: &str) -> Option<&Check> {
        self.checks.iter().find(|check| check.name == name)
    }

    fn holds(&self, check: &Check) -> bool {
        match check.verdict {
            Verdict::Pass => true,
            Verdict::Simulated => self.simulated,
            Verdict::Fail | Verdict::Skip => false,
        }
    }

    /// The first failed row decides the class; a skipped row always follows a failed one.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        let mut failed: Vec<_> = self.checks.iter().filter(|check| !self.holds(check)).collect();
        failed.sort_by_key(|check| check.verdict == Verdict::Skip);
        let class = failed
            .first()
            .map_or(RefusalClass::Signature, |check| check.class);
        (!self.is_accepted()).then(|| Refusal {
            class,
            checks: failed.into_iter().cloned().collect(),
        })
    }
}

/// Why a guest is not trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Refusal {
    /// Decided by the first check that failed.
    pub class: RefusalClass,
    /// The checks that failed, then those that could not be made.
    pub checks: Vec<Check>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guest is refused ({})", self.class)?;
        if let Some(check) = self.checks.first() {
            write!(
                f,
                ": {}: expected {}, found {}; look at: {}",
                check.name, check.expected, check.actual, check.fault
            )?;
        }
        match self.checks.len() {
            0 | 1 => Ok(()),
            more => write!(f, "; and {} other checks do not hold", more - 1),
        }
    }
}
