//! Rows about RTMR3 and the events that it records. The log comes from the network; it counts for nothing
//! unless it replays to the register in a quote that is authentic.

use cocoon_evidence::{Digest48, EventKind, EvidenceBundle};

use std::borrow::Cow;

use super::{Row, Rows, compare, digest, not_compared};
use crate::{
    policy::{
        DocumentTerms, Expect, FieldRule, GpuEvidenceRule, Policy, ReadyRule, UsageKeyRule, judge_fields,
    },
    report::{Fault, RefusalClass},
    tdx::{TdField, TdReport},
};

/// Rows "RTMR3", "event order" and one for each event.
pub(super) fn check(
    rows: &mut Rows,
    policy: &Policy,
    bundle: &EvidenceBundle,
    claimed: Option<&TdReport<'_>>,
) {
    let log = &bundle.events;
    let rtmr3 = digest(claimed, TdField::Rtmr3);
    compare(
        rows,
        "RTMR3",
        Fault::Host,
        &Expect::exact(log.replay()),
        rtmr3.as_ref(),
    );
    // Events that RTMR3 does not record are anybody's.
    rows.authentic &= rtmr3 == Some(log.replay());

    let order = log.check_complete();
    let row = Row {
        name: "event order".into(),
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
    let document = log.payload(EventKind::LaunchDocument);
    match &terms.launch_document {
        DocumentTerms::Digest(digests) => check_digest(rows, "event launch-document", document, digests),
        DocumentTerms::Fields(rules) => check_fields(rows, document, rules),
    }
    check_digest(rows, "event model", log.payload(EventKind::Model), &terms.model);
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

fn check_digest(rows: &mut Rows, name: &'static str, payload: Option<&[u8]>, accepted: &Expect<Digest48>) {
    match payload {
        Some(payload) => compare(
            rows,
            name,
            Fault::GuestImage,
            accepted,
            Some(&Digest48::of(payload)),
        ),
        None => rows.proven(event_row(name, accepted.to_string(), missing()), false),
    }
}

fn check_fields(rows: &mut Rows, document: Option<&[u8]>, rules: &[FieldRule]) {
    const NAME: &str = "event launch-document";
    let judged = document.map_or_else(|| Err(missing()), |document| judge_fields(rules, document));
    let expected = "a document of which every field has a rule".to_owned();
    let judged = match judged {
        Ok(judged) => judged,
        Err(reason) => return rows.proven(event_row(NAME, expected, reason), false),
    };
    rows.proven(
        event_row(NAME, expected, format!("{} fields", judged.len())),
        true,
    );
    for field in judged {
        let row = event_row(format!("{NAME} {}", field.field), field.expected, field.actual);
        match field.holds {
            Some(holds) => rows.proven(row, holds),
            None => not_compared(rows, row),
        }
    }
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

fn event_row(name: impl Into<Cow<'static, str>>, expected: String, actual: String) -> Row {
    Row {
        name: name.into(),
        expected,
        actual,
        fault: Fault::GuestImage,
        class: RefusalClass::Policy,
    }
}

fn missing() -> String {
    "missing".into()
}
