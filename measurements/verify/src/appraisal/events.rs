//! Rows about the events that the guest recorded. The log comes from the network; it counts for nothing unless the
//! platform's evidence binds it, which the rows before these have judged.

use cocoon_evidence::{Digest48, EventKind, EvidenceBundle};

use std::borrow::Cow;

use super::{Row, Rows, compare, not_compared};
use crate::{
    policy::{DocumentTerms, Expect, FieldRule, Policy, ReadyRule, UsageKeyRule, judge_fields},
    report::{Fault, RefusalClass},
};

/// Rows "event order" and one for each event, but that of the GPU.
pub(super) fn check(rows: &mut Rows, policy: &Policy, bundle: &EvidenceBundle) {
    let log = &bundle.events;
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
        "a key of 32 bytes, bound by the platform".into(),
        key,
        |payload| payload.len() == 32,
    );
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

fn check_payload(
    rows: &mut Rows,
    name: &'static str,
    expected: String,
    payload: Option<&[u8]>,
    holds: impl Fn(&[u8]) -> bool,
) {
    let actual = payload_text(payload);
    rows.proven(event_row(name, expected, actual), payload.is_some_and(holds));
}

pub(super) fn payload_text(payload: Option<&[u8]>) -> String {
    match payload {
        None => missing(),
        Some([]) => "empty".into(),
        Some(bytes) if bytes.len() <= 48 => hex::encode(bytes),
        Some(bytes) => format!("{} bytes", bytes.len()),
    }
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
