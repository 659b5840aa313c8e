//! Rows about an SEV-SNP report. SNP has no run-time register: HOST_DATA holds the hash of the launch document, and
//! the report data binds the digest of the event log.

use cocoon_evidence::{Digest32, Endorsements, EventKind};

use super::{Input, PlatformId, ProvenPlatform, Row, Rows, judged, unproven};
use crate::{
    judgement::{FailureClass, JudgedCheck, Judgement, Status},
    report::{Fault, RefusalClass, Verdict},
    snp::{SnpInputs, SnpReport, SnpRoot, SnpTerms, judge_snp},
};

/// Which chip it is, if the report is authentic.
pub(super) fn check(
    rows: &mut Rows,
    terms: &SnpTerms,
    report: &[u8],
    input: &Input<'_>,
    (endorsements, root): (&Endorsements, &SnpRoot),
) -> Option<ProvenPlatform> {
    let files: Vec<_> = endorsements.snp.iter().map(|file| file.as_slice()).collect();
    let judgement = judge_snp(&SnpInputs {
        report,
        endorsements: &files,
        root,
        terms: Some(terms),
        nonce: Some(&input.report_data.0),
        now_s: input.now_s,
    });
    rows.authentic = is_authentic(&judgement);
    let proof = rows.proof();
    judged::push(rows, &judgement, proof, classify);

    let report = SnpReport::parse(report).ok();
    check_host_data(rows, input, report.as_ref());
    // The report data is computed over this very log.
    rows.authentic &= holds(&judgement, "report-data");
    let report = report.filter(|_| is_authentic(&judgement))?;
    Some(ProvenPlatform {
        id: PlatformId::Snp {
            chip_id: report.chip_id(),
        },
        endorsed_until_s: judgement.until_s(),
        tcb_evaluation_number: None,
    })
}

fn is_authentic(judgement: &Judgement) -> bool {
    let forged = |check: &JudgedCheck| check.status == Status::Fail && check.class == FailureClass::Signature;
    holds(judgement, "report.signature") && !judgement.checks().iter().any(forged)
}

fn holds(judgement: &Judgement, id: &str) -> bool {
    let mut checks = judgement.checks().iter();
    checks.any(|check| check.id == id && check.status == Status::Pass)
}

fn classify(check: &JudgedCheck) -> (String, Fault, RefusalClass) {
    let (fault, class) = match check.id.as_str() {
        "report-data" => (Fault::Network, RefusalClass::Channel),
        "chain.validity" => (Fault::Host, RefusalClass::Freshness),
        "measurement" => (Fault::GuestImage, RefusalClass::Policy),
        _ => judged::fault(check.class),
    };
    (format!("snp {}", check.id), fault, class)
}

/// The host sets HOST_DATA before the guest runs, so the document that it hands over later is bound to the launch.
fn check_host_data(rows: &mut Rows, input: &Input<'_>, report: Option<&SnpReport>) {
    let document = input.bundle.events.payload(EventKind::LaunchDocument);
    let expected = document.map(Digest32::of);
    let actual = report.map(|report| Digest32(report.host_data()));
    let row = Row {
        name: "HOST_DATA".into(),
        expected: expected.map_or_else(unproven, |digest| digest.to_string()),
        actual: actual.map_or_else(unproven, |digest| digest.to_string()),
        fault: Fault::Host,
        class: RefusalClass::Policy,
    };
    match (expected, actual) {
        (Some(expected), Some(actual)) => rows.proven(row, expected == actual),
        _ => rows.push(row, Verdict::Skip),
    }
}
