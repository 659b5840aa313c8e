//! What a report says of its guest, and who signed the report.

use cocoon_verify::{
    judgement::{
        FailureClass::{Policy, Signature},
        Status,
    },
    snp::SnpTerms,
};

use crate::{
    accepted, put, refused,
    snp_forge::{Case, NOW_S, crl, failed, signed, terms},
};

#[test]
fn honest_reports_are_accepted() {
    accepted(&Case::milan());
    accepted(&Case::turin());
    let mut judged = Case::milan();
    judged.terms = Some(terms());
    judged.nonce = Some(vec![0x11; 64]);
    judged.files.push(crl(&[99], Some(NOW_S + 10), false));
    accepted(&judged);
    let judgement = judged.judge();
    let skipped = judgement
        .checks()
        .iter()
        .filter(|check| check.status == Status::Skip);
    assert_eq!(skipped.count(), 0, "{judgement:#?}");
}

#[test]
fn without_a_policy_every_value_is_skipped() {
    let judgement = Case::milan().judge();
    for id in [
        "measurement",
        "host-data",
        "report-data",
        "guest.policy",
        "tcb.minimum",
        "chain.revocation",
    ] {
        let row = judgement.checks().iter().find(|check| check.id == id).unwrap();
        assert_eq!(row.status, Status::Skip, "{row:?}");
    }
}

#[test]
fn a_debug_guest_is_refused() {
    let mut case = Case::milan();
    put(&mut case, 0x8, &0xb_0000u64.to_le_bytes());
    refused(&case, &["guest.debug"], Policy);
}

#[test]
fn a_guest_that_a_migration_agent_may_move_is_refused() {
    let mut case = Case::milan();
    put(&mut case, 0x8, &0x7_0000u64.to_le_bytes());
    refused(&case, &["guest.migration-agent"], Policy);
    let mut bound = Case::milan();
    put(&mut bound, 0x160, &[0xab; 32]);
    refused(&bound, &["guest.migration-agent"], Policy);
}

#[test]
fn unknown_policy_bits_are_refused() {
    for bits in [0x3_0000u64 | 1 << 26, 0x3_0000 | 1 << 63, 0x1_0000] {
        let mut case = Case::milan();
        put(&mut case, 0x8, &bits.to_le_bytes());
        refused(&case, &["guest.policy-bits"], Policy);
    }
    let mut platform = Case::milan();
    put(&mut platform, 0x40, &[0x40]);
    refused(&platform, &["platform.info-bits"], Policy);
}

#[test]
fn a_report_for_a_lower_privilege_level_is_refused_unless_the_policy_names_it() {
    let mut case = Case::milan();
    case.terms = Some(terms());
    put(&mut case, 0x30, &[1]);
    refused(&case, &["guest.vmpl"], Policy);
    let mut named = Case::milan();
    put(&mut named, 0x30, &[1]);
    named.terms = Some(SnpTerms {
        vmpl: vec![1],
        ..terms()
    });
    accepted(&named);
    put(&mut named, 0x30, &[0]);
    refused(&named, &["guest.vmpl"], Policy);
}

#[test]
fn a_report_that_the_host_asked_for_is_refused() {
    let mut case = Case::milan();
    put(&mut case, 0x30, &u32::MAX.to_le_bytes());
    refused(&case, &["guest.vmpl"], Policy);
}

#[test]
fn a_report_that_another_key_signed_is_refused() {
    let case = Case::milan();
    let mut report = signed(case.report);
    report[0x90] ^= 1;
    let judgement = case.judge_bytes(&report);
    assert_eq!(failed(&judgement), ["report.signature"]);
    assert_eq!(judgement.failure(), Some(Signature));
    let unsigned = case.judge_bytes(&case.report);
    assert_eq!(failed(&unsigned), ["report.signature"]);
}
