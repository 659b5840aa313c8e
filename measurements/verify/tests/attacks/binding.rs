//! Evidence that is genuine, but bound to something else.

use cocoon_evidence::{Digest32, FreshBinding, FreshTree, Role, TlsBinding};
use cocoon_verify::RefusalClass;

use crate::world::{
    NOW_S, World, assert_refused, boot, honest_events, quoted, registers, tls_binding, tls_report_data,
};

#[test]
fn evidence_copied_to_another_tls_key_is_refused() {
    let world = World::new();
    let bundle = world.bundle();
    let own_key = TlsBinding {
        spki: b"key of the man in the middle",
        ..tls_binding(&bundle.events)
    };
    let verdict = world.judge_with(&bundle, &world.endorsements(), &own_key.report_data(), NOW_S);
    assert_refused(verdict, RefusalClass::Channel, &["report data"]);
}

#[test]
fn a_certificate_prolonged_after_the_quote_is_refused() {
    let world = World::new();
    let bundle = world.bundle();
    let longer = TlsBinding {
        not_after_s: 3,
        ..tls_binding(&bundle.events)
    };
    let verdict = world.judge_with(&bundle, &world.endorsements(), &longer.report_data(), NOW_S);
    assert_refused(verdict, RefusalClass::Channel, &["report data"]);
}

#[test]
fn fresh_evidence_replayed_is_refused() {
    let world = World::new();
    let mut td = world.platform.start_td(registers());
    let events = boot(&mut td, &honest_events());
    let log = events.replay();
    let asked = FreshBinding {
        nonce: &[1; 32],
        exporter: &[2; 32],
        certificate: Digest32::of(b"certificate"),
        role: Role::Inference,
        log,
    };
    let beside = FreshBinding {
        nonce: &[9; 32],
        ..asked.clone()
    };
    let tree = FreshTree::new(&[asked.leaf(), beside.leaf()]).unwrap();
    let bundle = quoted(&mut td, events, tree.report_data());
    let fresh = tree.answer(0, bundle.clone());
    let collateral = world.endorsements();
    let judge = |binding: &FreshBinding<'_>| {
        let report_data = fresh.report_data(&binding.leaf());
        world.judge_with(&bundle, &collateral, &report_data, NOW_S)
    };
    assert!(judge(&asked).1.is_ok());
    let other_nonce = FreshBinding {
        nonce: &[3; 32],
        ..asked.clone()
    };
    let other_session = FreshBinding {
        exporter: &[3; 32],
        ..asked.clone()
    };
    let other_certificate = FreshBinding {
        certificate: Digest32::of(b"other"),
        ..asked.clone()
    };
    for binding in [beside, other_nonce, other_session, other_certificate] {
        assert_refused(judge(&binding), RefusalClass::Channel, &["report data"]);
    }
    let as_certificate = tls_report_data(&bundle.events);
    let verdict = world.judge_with(&bundle, &collateral, &as_certificate, NOW_S);
    assert_refused(verdict, RefusalClass::Channel, &["report data"]);
}
