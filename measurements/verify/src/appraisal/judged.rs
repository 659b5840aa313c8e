//! Rows of a judgement of raw evidence, as rows of an appraisal. A row that was not judged refuses here: where raw
//! evidence is only looked at it may stand, but nothing that was left open makes a guest trusted.

use super::{Row, Rows};
use crate::{
    judgement::{FailureClass, JudgedCheck, Judgement, Status},
    report::{Fault, RefusalClass, Verdict},
};

/// Adds every row as `row` names and classifies it; one that passes has the verdict `pass`.
pub(super) fn push(
    rows: &mut Rows,
    judgement: &Judgement,
    pass: Verdict,
    row: impl Fn(&JudgedCheck) -> (String, Fault, RefusalClass),
) {
    for check in judgement.checks() {
        let (name, fault, class) = row(check);
        let actual = match check.detail.as_str() {
            "" => check.actual.clone(),
            detail => format!("{} ({detail})", check.actual),
        };
        let row = Row {
            name: name.into(),
            expected: check.expected.clone(),
            actual,
            fault,
            class,
        };
        let verdict = match check.status {
            Status::Pass => pass,
            Status::Fail => Verdict::Fail,
            Status::Skip => Verdict::Skip,
        };
        rows.push(row, verdict);
    }
}

/// Where to look, by what a failure means.
pub(super) fn fault(class: FailureClass) -> (Fault, RefusalClass) {
    match class {
        FailureClass::Signature => (Fault::Host, RefusalClass::Signature),
        FailureClass::Tcb => (Fault::Platform, RefusalClass::Tcb),
        FailureClass::Policy => (Fault::Host, RefusalClass::Policy),
    }
}
