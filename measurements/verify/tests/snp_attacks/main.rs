//! Each rule about SEV-SNP reports with the attack that it stops, on evidence of a manufacturer of our own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod chain;
mod guest;
#[path = "../snp_forge/mod.rs"]
mod snp_forge;
mod terms;

use cocoon_verify::judgement::{FailureClass, Verdict};

use crate::snp_forge::{Case, failed};

/// The case fails in exactly these rows, and for that reason.
#[track_caller]
pub(crate) fn refused(case: &Case, rows: &[&str], class: FailureClass) {
    let judgement = case.judge();
    assert_eq!(failed(&judgement), rows, "{judgement:#?}");
    assert_eq!(judgement.failure(), Some(class));
}

#[track_caller]
pub(crate) fn accepted(case: &Case) {
    let judgement = case.judge();
    assert_eq!(judgement.verdict(), Verdict::Pass, "{judgement:#?}");
}

pub(crate) fn put(case: &mut Case, at: usize, bytes: &[u8]) {
    case.report[at..at + bytes.len()].copy_from_slice(bytes);
}
