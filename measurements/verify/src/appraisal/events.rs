//! Rows about RTMR3 and the events that it records. The log comes from the network; it counts for nothing
//! unless it replays to the register in a quote that is authentic.

use cocoon_evidence::{Digest48, EventKind, EvidenceBundle};
use dcap_qvl::quote::TDReport10;

use super::{Row, Rows, any_of, compare};
use crate::{
    policy::{GpuEvidenceRule, Policy, ReadyRule, UsageKeyRule},
    report::{Fault, RefusalClass},
};

/// Rows "RTMR3", "event order" and one for each event.
pub(super) fn check(rows: &mut Rows, policy: &Policy, bundle: &EvidenceBundle, claimed: Option<&TDReport10>) {
    let log = &bundle.events;
    let rtmr3 = claimed.map(|report| Digest48(report.rt_mr3));
    compare(rows, "RTMR3", Fault::Host, &[log.replay()], rtmr3);
    // Events that RTMR3 does not record are anybody's.
    rows.authentic &= rtmr3 == Some(log.replay());

    let order = log.check_complete();
    let row = Row {
        name: "event order",
        expected: EventKind::ORDER.map(EventKind::name).join(", "),
        actual: match &order {
            Ok(()) => "every event once, in order".into(),
            Err(error) => error.to_string(),
        },
        fault: Fault::GuestImage,
        class: RefusalClass::Policy,
    };
    rows.proven(row, order.is_ok());

    let terms = &policy.terms().events;
    check_document(
        rows,
        "event launch-document",
        log.payload(EventKind::LaunchDocument),
        &terms.launch_document,
    );
    check_document(rows, "event model", log.payload(EventKind::Model), &terms.model);
    let UsageKeyRule::Bound = terms.usage_key;
    let key = log.payload(EventKind::UsageKey);
    check_payload(
        rows,
        "event usage-key",
        "a key of 32 bytes, bound by RTMR3".into(),
        key,
        |payload| payload.len() == 32,
    );
    check_gpu(rows, terms.gpu_evidence, bundle);
    let ReadyRule::Empty = terms.ready;
    let ready = log.payload(EventKind::Ready);
    check_payload(rows, "event ready", "empty".into(), ready, <[u8]>::is_empty);
}

fn check_document(rows: &mut Rows, name: &'static str, payload: Option<&[u8]>, accepted: &[Digest48]) {
    let digest = payload.map(Digest48::of);
    let row = event_row(
        name,
        any_of(accepted),
        digest.map_or_else(missing, |digest| digest.to_string()),
    );
    rows.proven(row, digest.is_some_and(|digest| accepted.contains(&digest)));
}

fn check_gpu(rows: &mut Rows, rule: GpuEvidenceRule, bundle: &EvidenceBundle) {
    const NAME: &str = "event gpu-evidence";
    let payload = bundle.events.payload(EventKind::GpuEvidence);
    match (rule, EvidenceBundle::gpu_digest(&bundle.gpu)) {
        (GpuEvidenceRule::None, None) => {
            check_payload(rows, NAME, "empty".into(), payload, <[u8]>::is_empty);
        }
        (GpuEvidenceRule::Bundle, Some(digest)) => {
            check_payload(rows, NAME, digest.to_string(), payload, |payload| {
                payload == digest.as_bytes()
            });
        }
        (GpuEvidenceRule::None, Some(_)) => {
            let actual = format!("evidence of {} in the bundle", bundle.gpu.len());
            rows.proven(event_row(NAME, "no GPU".into(), actual), false);
        }
        (GpuEvidenceRule::Bundle, None) => {
            let row = event_row(NAME, "GPU evidence in the bundle".into(), "none".into());
            rows.proven(row, false);
        }
    }
}

fn check_payload(
    rows: &mut Rows,
    name: &'static str,
    expected: String,
    payload: Option<&[u8]>,
    holds: impl Fn(&[u8]) -> bool,
) {
    let actual = match payload {
        None => missing(),
        Some([]) => "empty".into(),
        Some(bytes) if bytes.len() <= 48 => hex::encode(bytes),
        Some(bytes) => format!("{} bytes", bytes.len()),
    };
    rows.proven(event_row(name, expected, actual), payload.is_some_and(holds));
}

fn event_row(name: &'static str, expected: String, actual: String) -> Row {
    Row {
        name,
        expected,
        actual,
        fault: Fault::GuestImage,
        class: RefusalClass::Policy,
    }
}

fn missing() -> String {
    "missing".into()
}
