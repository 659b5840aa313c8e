//! Quotes and endorsements that are forged, damaged, or of another root.

use cocoon_evidence::ENDORSEMENTS_BYTES_MAX;
use cocoon_verify::{INTEL_SGX_ROOT_CA_PEM, PlatformTerms, RefusalClass, Verdict};

use crate::world::{NOW_S, World, assert_refused, quote_bytes, tls_report_data};

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
