//! Raw evidence against a policy: the same file that judges a guest on a connection, as far as one quote or report
//! can be judged by it. What needs the guest's event log is SKIP.

mod nvidia;
mod snp;
mod tdx;

use cocoon_evidence::EventKind;
use serde_json::Value;

pub use nvidia::{RawNvidia, judge_raw_nvidia};
pub use snp::{RawSnp, judge_raw_snp};
pub use tdx::{RawTdx, judge_raw_tdx};

use crate::{
    date::date_text,
    judgement::{FailureClass, JudgedCheck, Status},
    policy::{MachineId, PlatformKind, Policy},
};

/// Whether the policy itself may be used, for evidence of `kind`; `None` is a GPU's.
fn policy_checks(policy: &Policy, kind: Option<PlatformKind>, now_s: u64) -> Vec<JudgedCheck> {
    let expires_s = policy.terms().expires_s;
    let mut checks = vec![
        JudgedCheck {
            id: "policy.signature".to_owned(),
            status: if policy.signer().is_some() {
                Status::Pass
            } else {
                Status::Skip
            },
            expected: "signed by a trusted key".to_owned(),
            actual: policy
                .signer()
                .map_or_else(|| "not judged".to_owned(), |key| key.to_string()),
            detail: match policy.signer() {
                Some(_) => String::new(),
                None => "no key to trust was named: the policy is taken as your own file".to_owned(),
            },
            class: FailureClass::Policy,
        },
        JudgedCheck {
            id: "policy.expiry".to_owned(),
            status: passes(now_s < expires_s),
            expected: format!("before {}", date_text(expires_s)),
            actual: date_text(now_s),
            detail: String::new(),
            class: FailureClass::Tcb,
        },
    ];
    let found = policy.terms().hardware.kind();
    if let Some(kind) = kind {
        checks.push(JudgedCheck {
            id: "policy.kind".to_owned(),
            status: passes(kind == found),
            expected: format!("a policy for {}", kind.name()),
            actual: found.name().to_owned(),
            detail: String::new(),
            class: FailureClass::Policy,
        });
    }
    checks
}

/// Whether it is one of the machines that the policy takes. `claimed` is what the evidence says, in hexadecimal digits,
/// which the other rows prove.
fn machine_check(policy: &Policy, claimed: Option<&Value>) -> Option<JudgedCheck> {
    let terms = policy.terms().machines.as_ref()?;
    let id = claimed.and_then(Value::as_str);
    let id = id.and_then(|id| hex::decode(id).ok()).map(MachineId);
    Some(JudgedCheck {
        id: "policy.machine".to_owned(),
        status: passes(id.as_ref().is_some_and(|id| terms.accepts(id))),
        expected: terms.to_string(),
        actual: id.map_or_else(|| "not known".to_owned(), |id| id.to_string()),
        detail: String::new(),
        class: FailureClass::Policy,
    })
}

/// The rows that a raw quote or report leaves open.
fn event_checks() -> impl Iterator<Item = JudgedCheck> {
    EventKind::ORDER.into_iter().map(|kind| JudgedCheck {
        id: format!("event.{}", kind.name()),
        status: Status::Skip,
        expected: "as the policy says".to_owned(),
        actual: "not judged".to_owned(),
        detail: NO_EVENTS.to_owned(),
        class: FailureClass::Policy,
    })
}

const NO_EVENTS: &str = "the guest's event log is not in a quote; `cocoon verify` judges it on a connection";

/// Whose root the evidence has to end at, if a caller may name another.
struct RootChoice {
    /// The policy's, or the vendor's.
    expected: String,
    /// The one that was judged by.
    actual: String,
    same: bool,
}

/// A root that the caller names in the place of the policy's must not make more evidence acceptable. Without a policy
/// it is the caller's own choice, and said.
fn root_check(choice: RootChoice, policy: Option<&Policy>) -> Option<JudgedCheck> {
    let RootChoice {
        expected,
        actual,
        same,
    } = choice;
    let (id, status, detail) = match (policy, same) {
        (None, true) => return None,
        (None, false) => (
            GIVEN_ROOT,
            Status::Skip,
            "the caller trusts this root; it is not the vendor's",
        ),
        (Some(_), true) => ("policy.root", Status::Pass, ""),
        (Some(_), false) => (
            "policy.root",
            Status::Fail,
            "the policy does not accept the root that the caller names",
        ),
    };
    Some(JudgedCheck {
        id: id.to_owned(),
        status,
        expected,
        actual,
        detail: detail.to_owned(),
        class: FailureClass::Policy,
    })
}

/// The row that is there only if, without a policy, evidence is judged by another root than the vendor's.
pub const GIVEN_ROOT: &str = "root.given";

fn passes(holds: bool) -> Status {
    if holds { Status::Pass } else { Status::Fail }
}
