//! Event logs that do not tell what was extended, and events that the policy does not accept.

use cocoon_evidence::{Digest48, EvidenceBundle, TlsBinding};
use cocoon_verify::{DocumentTerms, FieldAccepts, FieldRule, FieldValue, RefusalClass};

use crate::world::{
    NOW_S, World, assert_refused, boot, extend, honest_events, log, quoted, registers, tls_binding,
    tls_report_data,
};

#[test]
fn an_event_that_the_log_does_not_show_is_noticed() {
    let world = World::new();
    let mut td = world.platform.start_td(registers());
    let events = boot(&mut td, &honest_events());
    extend(&mut td, Digest48::of(b"hidden"));
    let report_data = tls_report_data(&events);
    let bundle = quoted(&mut td, events, report_data);
    world.assert_refused(&bundle, RefusalClass::Policy, &["RTMR3"]);
}

#[test]
fn events_reordered_in_the_log_are_noticed() {
    let world = World::new();
    let mut bundle = world.bundle();
    let mut events = honest_events();
    events.swap(0, 1);
    bundle.events = log(&events);
    let rows = ["report data", "RTMR3", "event order"];
    world.assert_refused(&bundle, RefusalClass::Channel, &rows);
}

#[test]
fn events_that_a_guest_really_extended_in_another_order_are_refused() {
    let world = World::new();
    let mut td = world.platform.start_td(registers());
    let mut events = honest_events();
    events.swap(0, 1);
    let events = boot(&mut td, &events);
    let report_data = tls_report_data(&events);
    let bundle = quoted(&mut td, events, report_data);
    world.assert_refused(&bundle, RefusalClass::Policy, &["event order"]);
}

#[test]
fn a_guest_that_is_not_ready_is_refused() {
    let world = World::new();
    let mut td = world.platform.start_td(registers());
    let events = boot(&mut td, &honest_events()[..4]);
    let report_data = tls_report_data(&events);
    let bundle = quoted(&mut td, events, report_data);
    world.assert_refused(&bundle, RefusalClass::Policy, &["event order", "event ready"]);
}

/// The guest really booted with this event, and says so.
fn booted_with(world: &World, index: usize, payload: &[u8]) -> EvidenceBundle {
    let mut events = honest_events();
    events[index].1 = payload.to_vec();
    let mut td = world.platform.start_td(registers());
    let events = boot(&mut td, &events);
    let report_data = tls_report_data(&events);
    quoted(&mut td, events, report_data)
}

#[test]
fn a_guest_with_another_launch_document_is_refused() {
    let world = World::new();
    let bundle = booted_with(&world, 0, b"other document");
    world.assert_refused(&bundle, RefusalClass::Policy, &["event launch-document"]);
}

#[test]
fn a_guest_with_another_model_is_refused() {
    let world = World::new();
    let bundle = booted_with(&world, 1, b"other model");
    world.assert_refused(&bundle, RefusalClass::Policy, &["event model"]);
}

#[test]
fn a_usage_key_of_another_length_is_refused() {
    let world = World::new();
    let bundle = booted_with(&world, 2, &[5; 33]);
    world.assert_refused(&bundle, RefusalClass::Policy, &["event usage-key"]);
}

#[test]
fn a_ready_event_with_content_is_refused() {
    let world = World::new();
    let bundle = booted_with(&world, 4, b"x");
    world.assert_refused(&bundle, RefusalClass::Policy, &["event ready"]);
}

#[test]
fn a_launch_document_swapped_after_the_boot_is_noticed() {
    let world = World::new();
    let mut honest = honest_events();
    honest[0].1 = b"other document".to_vec();
    let mut bundle = world.bundle();
    bundle.events = log(&honest);
    let rows = ["report data", "RTMR3", "event launch-document"];
    world.assert_refused(&bundle, RefusalClass::Channel, &rows);
}

#[test]
fn a_usage_key_swapped_after_the_boot_is_noticed() {
    let world = World::new();
    let mut bundle = world.bundle();
    let mut events = honest_events();
    events[2].1 = vec![6; 32];
    bundle.events = log(&events);
    let binding = TlsBinding {
        usage_key: &[6; 32],
        ..tls_binding(&bundle.events)
    };
    let verdict = world.judge_with(&bundle, &world.endorsements(), &binding.report_data(), NOW_S);
    assert_refused(verdict, RefusalClass::Channel, &["report data", "RTMR3"]);
}

fn field(name: &str, accepts: FieldAccepts) -> FieldRule {
    FieldRule {
        field: name.into(),
        accepts,
    }
}

#[test]
fn a_launch_document_outside_of_the_fields_ranges_is_refused() {
    let mut world = World::new();
    let names = ["a", "b"].map(|name| FieldValue::Text(name.into()));
    world.terms.events.launch_document = DocumentTerms::Fields(vec![
        field("limits.tokens", FieldAccepts::Range { min: 1, max: 64 }),
        field("model", FieldAccepts::OneOf(names.into())),
    ]);
    let good = booted_with(&world, 0, br#"{"model":"b","limits":{"tokens":64}}"#);
    assert!(world.judge(&good).1.is_ok());
    let cases: [(&[u8], &str); 4] = [
        (
            br#"{"model":"b","limits":{"tokens":65}}"#,
            "event launch-document limits.tokens",
        ),
        (
            br#"{"model":"c","limits":{"tokens":64}}"#,
            "event launch-document model",
        ),
        (
            br#"{"model":"b","limits":{"tokens":64},"debug":true}"#,
            "event launch-document debug",
        ),
        (
            br#"{"model":"b","model":"b","limits":{"tokens":64}}"#,
            "event launch-document",
        ),
    ];
    for (document, row) in cases {
        let bundle = booted_with(&world, 0, document);
        world.assert_refused(&bundle, RefusalClass::Policy, &[row]);
    }
}
