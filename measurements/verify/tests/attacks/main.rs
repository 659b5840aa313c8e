//! Complete bundles from a simulated platform: what a client accepts, and one test for each attack that it must
//! notice.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod gpu;
#[path = "../nvidia_lab/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod nvidia_lab;
mod snp;
#[path = "../snp_forge/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod snp_forge;
mod world;

use cocoon_evidence::{
    Digest32, Digest48, ENDORSEMENTS_BYTES_MAX, EvidenceBundle, FreshBinding, FreshTree, Role, TlsBinding,
};
use cocoon_simulator::{
    COLLATERAL_LIFETIME_S, InitialRegisters, SIMULATED_TCB_EVALUATION_NUMBER, SIMULATED_TD_ATTRIBUTES,
    SIMULATED_XFAM,
};
use cocoon_verify::{
    Bits64, DocumentTerms, Expect, Fault, FieldAccepts, FieldRule, FieldValue, INTEL_SGX_ROOT_CA_PEM,
    PlatformId, PlatformTerms, Policy, PolicyKey, RefusalClass, SignedPolicyError, TdTerms, Verdict,
    appraise, sign_policy,
};
use ed25519_dalek::SigningKey;
use proptest::prelude::*;

use world::{
    DOCUMENT, NOW_S, USAGE_KEY, World, assert_refused, boot, extend, honest_events, log, quote_bytes, quoted,
    registers, tls_binding, tls_report_data,
};

#[test]
fn the_honest_guest_is_trusted_and_every_row_says_simulated() {
    let world = World::new();
    let (report, trusted) = world.judge(&world.bundle());
    let guest = trusted.unwrap();
    assert!(report.is_accepted());
    assert!(guest.is_simulated());
    assert_eq!(guest.usage_key(), &USAGE_KEY);
    assert_eq!(guest.launch_document(), DOCUMENT);
    let PlatformId::Tdx { fmspc, ppid } = guest.platform() else {
        panic!("the platform is TDX");
    };
    assert_eq!((*fmspc, ppid.len()), (*b"SIM\0\0\0", 16));
    let not_simulated: Vec<_> = report
        .checks
        .iter()
        .filter(|check| check.verdict != Verdict::Simulated)
        .map(|check| (check.name.as_ref(), check.verdict))
        .collect();
    assert_eq!(
        not_simulated,
        [
            ("policy number", Verdict::Pass),
            ("policy expiry", Verdict::Pass),
            ("endorsements", Verdict::Pass),
            ("quote format", Verdict::Pass),
            ("collateral", Verdict::Pass)
        ]
    );
    for name in [
        "MRTD",
        "RTMR0",
        "RTMR1",
        "RTMR2",
        "RTMR3",
        "TD attributes",
        "report data",
    ] {
        assert_eq!(report.check(name).unwrap().verdict, Verdict::Simulated, "{name}");
    }
}

#[test]
fn each_wrong_register_is_named_alone() {
    let other = Digest48::of(b"evil");
    let honest = registers();
    let cases: [(&str, InitialRegisters); 4] = [
        (
            "MRTD",
            InitialRegisters {
                mrtd: other,
                ..honest
            },
        ),
        (
            "RTMR0",
            InitialRegisters {
                rtmr0: other,
                ..honest
            },
        ),
        (
            "RTMR1",
            InitialRegisters {
                rtmr1: other,
                ..honest
            },
        ),
        (
            "RTMR2",
            InitialRegisters {
                rtmr2: other,
                ..honest
            },
        ),
    ];
    let world = World::new();
    for (name, registers) in cases {
        let mut td = world.platform.start_td(registers);
        let events = boot(&mut td, &honest_events());
        let report_data = tls_report_data(&events);
        let bundle = quoted(&mut td, events, report_data);
        world.assert_refused(&bundle, RefusalClass::Policy, &[name]);
    }
}

#[test]
fn what_the_host_sets_when_it_makes_the_td_is_compared() {
    let mut world = World::new();
    let bundle = world.bundle();
    let other = Expect::exact(Digest48::of(b"other"));
    let tdx = world.terms.tdx_mut().unwrap();
    tdx.registers.mr_config_id = other.clone();
    tdx.registers.mr_owner = other.clone();
    tdx.registers.mr_owner_config = other;
    world.assert_refused(
        &bundle,
        RefusalClass::Policy,
        &["MRCONFIGID", "MROWNER", "MROWNERCONFIG"],
    );
}

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

#[test]
fn a_foreign_test_root_is_refused_and_nothing_else_holds() {
    let world = World::new();
    let foreign = World::new();
    let bundle = foreign.bundle();
    let verdict = world.judge_with(
        &bundle,
        &foreign.endorsements(),
        &tls_report_data(&bundle.events),
        NOW_S,
    );
    for name in ["MRTD", "RTMR3", "report data", "TCB status", "event ready"] {
        assert_eq!(verdict.0.check(name).unwrap().verdict, Verdict::Skip, "{name}");
    }
    assert_refused(verdict, RefusalClass::Signature, &["quote signature"]);
}

#[test]
fn collateral_from_another_root_is_refused() {
    let world = World::new();
    let bundle = world.bundle();
    let foreign = World::new().endorsements();
    let verdict = world.judge_with(&bundle, &foreign, &tls_report_data(&bundle.events), NOW_S);
    assert_refused(verdict, RefusalClass::Signature, &["quote signature"]);
}

#[test]
fn a_simulated_quote_under_a_production_policy_is_refused() {
    let mut world = World::new();
    let bundle = world.bundle();
    world.terms.platform = PlatformTerms {
        simulated: false,
        root_pem: INTEL_SGX_ROOT_CA_PEM.into(),
    };
    world.assert_refused(&bundle, RefusalClass::Signature, &["quote signature"]);
}

#[test]
fn an_expired_policy_accepts_nothing() {
    let world = World::new();
    let bundle = world.bundle();
    let report_data = tls_report_data(&bundle.events);
    let collateral = world.endorsements();
    assert!(
        world
            .judge_with(&bundle, &collateral, &report_data, NOW_S + 999)
            .1
            .is_ok()
    );
    let verdict = world.judge_with(&bundle, &collateral, &report_data, NOW_S + 1000);
    assert_refused(verdict, RefusalClass::Freshness, &["policy expiry"]);
}

#[test]
fn a_remembered_verdict_ends_with_the_first_thing_that_expires() {
    let mut world = World::new();
    for (policy_expires_s, until_s) in [
        (NOW_S + 1000, NOW_S + 1000),
        (u64::MAX / 4, NOW_S + COLLATERAL_LIFETIME_S),
    ] {
        world.terms.expires_s = policy_expires_s;
        world.assert_trusted_until(&world.bundle(), &world.endorsements(), NOW_S, until_s);
    }
}

#[test]
fn expired_endorsements_are_refused_as_stale_and_not_as_forged() {
    let mut world = World::new();
    world.terms.expires_s = u64::MAX / 4;
    let bundle = world.bundle();
    let report_data = tls_report_data(&bundle.events);
    for now_s in [NOW_S + COLLATERAL_LIFETIME_S + 1, NOW_S - 2 * 3600] {
        let verdict = world.judge_with(&bundle, &world.endorsements(), &report_data, now_s);
        assert_refused(verdict, RefusalClass::Freshness, &["endorsement freshness"]);
    }
}

#[test]
fn a_tcb_evaluation_number_below_the_minimum_is_refused() {
    let mut world = World::new();
    world.terms.tdx_mut().unwrap().tcb.evaluation_number_min = SIMULATED_TCB_EVALUATION_NUMBER + 1;
    let bundle = world.bundle();
    world.assert_refused(&bundle, RefusalClass::Tcb, &["TCB evaluation number"]);
}

#[test]
fn td_attributes_and_xfam_are_compared_exactly() {
    let mut world = World::new();
    world.terms.tdx_mut().unwrap().td = TdTerms {
        attributes: Expect::exact(Bits64(SIMULATED_TD_ATTRIBUTES | 1 << 30)),
        xfam: Expect::exact(Bits64(SIMULATED_XFAM | 1 << 11)),
    };
    let bundle = world.bundle();
    world.assert_refused(&bundle, RefusalClass::Policy, &["TD attributes", "XFAM"]);
}

#[test]
fn bytes_after_the_quote_are_refused() {
    let world = World::new();
    let mut bundle = world.bundle();
    quote_bytes(&mut bundle).push(0);
    let (report, trusted) = world.judge(&bundle);
    assert_eq!(report.check("quote format").unwrap().verdict, Verdict::Fail);
    assert_eq!(trusted.unwrap_err().class, RefusalClass::Signature);
}

#[test]
fn bytes_hidden_in_the_certification_data_are_refused() {
    let world = World::new();
    let mut bundle = world.bundle();
    let quote = quote_bytes(&mut bundle);
    // One byte more at the end, and both outer lengths say so: authentication data and QE certification data.
    quote.push(0);
    for offset in [632, 632 + 4 + 128 + 2] {
        let length = u32::from_le_bytes(quote[offset..offset + 4].try_into().unwrap()) + 1;
        quote[offset..offset + 4].copy_from_slice(&length.to_le_bytes());
    }
    let (report, trusted) = world.judge(&bundle);
    assert_eq!(report.check("quote format").unwrap().verdict, Verdict::Fail);
    assert!(trusted.is_err());
}

#[test]
fn a_flipped_bit_anywhere_in_the_signed_part_is_refused() {
    const SIGNED_BYTES: usize = 48 + 584;
    let world = World::new();
    let honest = world.bundle();
    // One bit of every third byte: a verification takes milliseconds.
    for byte in (0..SIGNED_BYTES).step_by(3) {
        let mut bundle = honest.clone();
        quote_bytes(&mut bundle)[byte] ^= 1 << (byte % 8);
        let (_, trusted) = world.judge(&bundle);
        assert!(trusted.is_err(), "byte {byte}");
    }
}

#[test]
fn a_flipped_bit_in_a_signature_key_or_qe_report_is_refused() {
    let world = World::new();
    let honest = world.bundle();
    let qe_report = 636 + 128 + 6;
    for byte in (632..qe_report + 384 + 64 + 2 + 32).step_by(7) {
        let mut bundle = honest.clone();
        quote_bytes(&mut bundle)[byte] ^= 1 << (byte % 8);
        let (_, trusted) = world.judge(&bundle);
        assert!(trusted.is_err(), "byte {byte}");
    }
}

#[test]
fn a_truncated_quote_is_refused() {
    let world = World::new();
    let honest = world.bundle();
    for length in (0..quote_bytes(&mut honest.clone()).len()).step_by(97) {
        let mut bundle = honest.clone();
        quote_bytes(&mut bundle).truncate(length);
        assert!(world.judge(&bundle).1.is_err(), "length {length}");
    }
}

#[test]
fn oversized_endorsements_are_refused_unread() {
    let world = World::new();
    let bundle = world.bundle();
    let mut collateral = world.endorsements();
    collateral.resize(ENDORSEMENTS_BYTES_MAX + 1, b' ');
    let verdict = world.judge_with(&bundle, &collateral, &tls_report_data(&bundle.events), NOW_S);
    assert_refused(
        verdict,
        RefusalClass::Signature,
        &["endorsements", "collateral", "quote signature"],
    );
}

#[test]
fn changing_the_report_does_not_make_a_guest_trusted() {
    let world = World::new();
    let mut bundle = world.bundle();
    quote_bytes(&mut bundle)[200] ^= 1;
    let report_data = tls_report_data(&bundle.events);
    let mut appraisal = appraise(
        &world.policy(),
        world.floors,
        &bundle,
        &world.endorsements(),
        &report_data,
        NOW_S,
    );
    appraisal
        .report
        .checks
        .iter_mut()
        .for_each(|check| check.verdict = Verdict::Pass);
    assert!(appraisal.into_trusted().is_err());
}

#[test]
fn an_old_policy_below_the_callers_floor_is_refused() {
    let mut world = World::new();
    world.terms.number = 7;
    world.floors.policy_number = 7;
    let bundle = world.bundle();
    assert!(world.judge(&bundle).1.is_ok());
    world.floors.policy_number = 8;
    world.assert_refused(&bundle, RefusalClass::Policy, &["policy number"]);
}

#[test]
fn old_endorsements_below_the_callers_floor_are_refused_although_the_policy_accepts_them() {
    let mut world = World::new();
    world.floors.tcb_evaluation_number = SIMULATED_TCB_EVALUATION_NUMBER + 1;
    let bundle = world.bundle();
    world.assert_refused(&bundle, RefusalClass::Tcb, &["TCB evaluation number"]);
}

#[test]
fn a_guest_is_never_trusted_on_a_register_that_the_policy_does_not_compare() {
    let mut world = World::new();
    world.terms.tdx_mut().unwrap().registers.rtmr1 = Expect::AnyInsecure;
    let (report, trusted) = world.judge(&world.bundle());
    assert_eq!(report.check("RTMR1").unwrap().verdict, Verdict::Skip);
    let refusal = trusted.unwrap_err();
    assert_eq!(refusal.class, RefusalClass::Policy);
    assert_eq!(refusal.checks[0].fault, Fault::Policy);
}

#[test]
fn a_match_names_the_profile_that_leads_to_the_value() {
    let mut world = World::new();
    let values = [("qemu-8.2", Digest48::of(b"x")), ("qemu-9.2", registers().rtmr0)];
    world.terms.tdx_mut().unwrap().registers.rtmr0 = Expect::by_profile(values);
    let (report, trusted) = world.judge(&world.bundle());
    assert!(report.check("RTMR0").unwrap().actual.ends_with(" (qemu-9.2)"));
    assert!(trusted.is_ok());
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

#[test]
fn a_policy_that_no_trusted_key_signed_is_refused() {
    let world = World::new();
    let text = world.policy().to_toml();
    let (ours, theirs) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
    let trusted = [PolicyKey::of(&ours)];
    let (good, foreign) = (
        sign_policy(&text, &ours).unwrap(),
        sign_policy(&text, &theirs).unwrap(),
    );
    let policy = Policy::parse_signed(&text, &good, &trusted).unwrap();
    assert_eq!(policy.signer(), Some(trusted[0]));
    assert!(Policy::parse_signed(&text, &(foreign.clone() + &good), &trusted).is_ok());
    for signatures in ["", &foreign] {
        let error = Policy::parse_signed(&text, signatures, &trusted).unwrap_err();
        assert!(matches!(error, SignedPolicyError::NotTrusted { .. }), "{error}");
    }
    assert!(Policy::parse_signed(&text, &good, &[]).is_err());
}

#[test]
fn a_policy_changed_after_it_was_signed_is_refused() {
    let world = World::new();
    let text = world.policy().to_toml();
    let key = SigningKey::from_bytes(&[1; 32]);
    let signature = sign_policy(&text, &key).unwrap();
    let changed = text.replacen("number = 1", "number = 2", 1);
    assert_ne!(changed, text);
    for other in [changed, text.clone() + "\n"] {
        let error = Policy::parse_signed(&other, &signature, &[PolicyKey::of(&key)]).unwrap_err();
        assert!(matches!(error, SignedPolicyError::Forged(_)), "{error}");
    }
    let flipped = signature.replacen(
        &signature[120..121],
        if &signature[120..121] == "0" { "1" } else { "0" },
        1,
    );
    let cut = &signature[..signature.len() - 3];
    for broken in [flipped.as_str(), cut, "cocoon-policy-v1 00 00\n", "x"] {
        assert!(
            Policy::parse_signed(&text, broken, &[PolicyKey::of(&key)]).is_err(),
            "{broken}"
        );
    }
}

#[test]
fn the_report_says_who_signed_the_policy() {
    let world = World::new();
    let bundle = world.bundle();
    assert_eq!(world.judge(&bundle).0.policy_signer, None);
    let key = SigningKey::from_bytes(&[1; 32]);
    let text = world.policy().to_toml();
    let signed =
        Policy::parse_signed(&text, &sign_policy(&text, &key).unwrap(), &[PolicyKey::of(&key)]).unwrap();
    let report_data = tls_report_data(&bundle.events);
    let collateral = world.endorsements();
    let appraisal = appraise(&signed, world.floors, &bundle, &collateral, &report_data, NOW_S);
    assert_eq!(
        appraisal.report.policy_signer,
        Some(PolicyKey::of(&key).to_string())
    );
    assert!(appraisal.into_trusted().is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn hostile_quotes_and_endorsements_never_panic(
        quote in prop::collection::vec(any::<u8>(), 0..6000),
        endorsements in prop::collection::vec(any::<u8>(), 0..600),
        now_s in any::<u64>(),
    ) {
        let world = World::new();
        let mut bundle = world.bundle();
        *quote_bytes(&mut bundle) = quote;
        let report_data = tls_report_data(&bundle.events);
        prop_assert!(world.judge_with(&bundle, &endorsements, &report_data, now_s).1.is_err());
    }

    #[test]
    fn a_damaged_quote_never_panics(
        start in 0_usize..5000, bytes in prop::collection::vec(any::<u8>(), 1..40), now_s in any::<u64>(),
    ) {
        let world = World::new();
        let mut bundle = world.bundle();
        let honest = quote_bytes(&mut bundle).clone();
        let end = (start + bytes.len()).min(honest.len());
        let start = start.min(end);
        quote_bytes(&mut bundle).splice(start..end, bytes);
        let report_data = tls_report_data(&bundle.events);
        let trusted = world.judge_with(&bundle, &world.endorsements(), &report_data, now_s).1;
        let in_time = (NOW_S - 3600..NOW_S + 1000).contains(&now_s);
        prop_assert!(trusted.is_err() || in_time);
    }
}
