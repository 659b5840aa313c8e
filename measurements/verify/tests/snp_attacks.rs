//! Each rule about SEV-SNP reports with the attack that it stops, on evidence of a manufacturer of our own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod snp_forge;

use cocoon_verify::{
    Bits64,
    judgement::{
        FailureClass::{self, Policy, Signature, Tcb},
        Status, Verdict,
    },
    snp::{SnpRoot, SnpSigningKeyTerm, SnpTerms, SnpTermsError},
};
use snp_forge::{
    ASK_SERIAL, CHIP, Case, NOW_S, Vek, amd, ark, ask, ask_signed_by_itself, ask_without_authority, crl,
    failed, signed, terms,
};

/// The case fails in exactly these rows, and for that reason.
#[track_caller]
fn refused(case: &Case, rows: &[&str], class: FailureClass) {
    let judgement = case.judge();
    assert_eq!(failed(&judgement), rows, "{judgement:#?}");
    assert_eq!(judgement.failure(), Some(class));
}

#[track_caller]
fn accepted(case: &Case) {
    let judgement = case.judge();
    assert_eq!(judgement.verdict(), Verdict::Pass, "{judgement:#?}");
}

fn put(case: &mut Case, at: usize, bytes: &[u8]) {
    case.report[at..at + bytes.len()].copy_from_slice(bytes);
}

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

#[test]
fn a_chain_to_a_root_that_is_not_amds_is_refused() {
    let mut case = Case::milan();
    case.files.push(ark());
    case.root = SnpRoot::amd();
    refused(&case, &["chain.root"], Signature);
    // AMD's own root does not vouch for an intermediate of its name either.
    case.files.pop();
    refused(&case, &["chain.complete"], Tcb);
    let amd_root = SnpRoot::from_file(sev::certs::snp::builtin::milan::ARK).unwrap();
    let mut foreign = Case::milan();
    foreign.files.push(ark());
    foreign.root = amd_root;
    refused(&foreign, &["chain.root"], Signature);
}

#[test]
fn an_intermediate_that_the_root_did_not_sign_is_refused() {
    let mut case = Case::milan();
    case.files[1] = ask_signed_by_itself();
    refused(&case, &["chain.signatures"], Signature);
}

#[test]
fn an_intermediate_that_may_not_sign_and_a_key_that_may_are_refused() {
    let mut case = Case::milan();
    case.files[1] = ask_without_authority();
    refused(&case, &["certificates.format", "chain.complete"], Signature);
    let mut vek = Vek::milan();
    vek.is_authority = true;
    let mut case = Case::milan();
    case.files[0] = vek.der();
    refused(&case, &["certificates.format", "chain.complete"], Signature);
}

#[test]
fn a_certificate_with_an_unknown_critical_extension_is_refused() {
    let mut vek = Vek::milan();
    let mut extension = amd("77", vec![5, 0]);
    extension.critical = true;
    vek.more.push(extension);
    let mut case = Case::milan();
    case.files[0] = vek.der();
    refused(&case, &["certificates.format", "chain.complete"], Signature);
}

#[test]
fn an_expired_or_future_certificate_is_refused() {
    for now_s in [NOW_S - 1001, NOW_S + 1001] {
        let mut case = Case::milan();
        case.now_s = now_s;
        refused(&case, &["chain.validity"], Tcb);
    }
    for now_s in [NOW_S - 1000, NOW_S + 1000] {
        let mut case = Case::milan();
        case.now_s = now_s;
        accepted(&case);
    }
}

#[test]
fn an_expired_root_or_intermediate_is_refused() {
    let mut vek = Vek::milan();
    vek.validity_s = (NOW_S, NOW_S + 1_000_000);
    let mut case = Case::milan();
    case.files[0] = vek.der();
    case.now_s = NOW_S + 500_000;
    refused(&case, &["chain.validity"], Tcb);
}

#[test]
fn a_certificate_for_another_security_version_is_refused() {
    for part in [0, 1, 6, 7] {
        let mut vek = Vek::milan();
        vek.tcb[part] ^= 1;
        let mut case = Case::milan();
        case.files[0] = vek.der();
        refused(&case, &["certificate.tcb"], Tcb);
    }
    let mut vek = Vek::turin();
    vek.tcb[0] ^= 1;
    let mut case = Case::turin();
    case.files[0] = vek.der();
    refused(&case, &["certificate.tcb"], Tcb);
}

#[test]
fn another_chips_certificate_is_refused() {
    let mut vek = Vek::milan();
    vek.chip = Some(vec![0xc6; 64]);
    let mut case = Case::milan();
    case.files[0] = vek.der();
    refused(&case, &["certificate.chip-id"], Signature);
    let mut turin = Case::turin();
    put(&mut turin, 0x1df, &[1]);
    refused(&turin, &["certificate.chip-id"], Signature);
}

#[test]
fn a_masked_chip_with_a_chips_certificate_is_refused() {
    let mut vek = Vek::milan();
    vek.chip = Some(vec![0; 64]);
    let mut case = Case::milan();
    case.files[0] = vek.der();
    put(&mut case, 0x1a0, &[0; 64]);
    refused(&case, &["certificate.chip-id"], Signature);
}

#[test]
fn a_chip_identifier_of_either_encoding_is_read_and_of_another_length_refused() {
    let mut wrapped = Case::milan();
    let mut vek = Vek::milan();
    vek.chip = Some([&[4, 64], &CHIP[..]].concat());
    wrapped.files[0] = vek.der();
    accepted(&wrapped);
    vek.chip = Some([&[4, 8], &CHIP[..8]].concat());
    wrapped.files[0] = vek.der();
    refused(&wrapped, &["certificates.format", "chain.complete"], Signature);
}

#[test]
fn another_products_certificate_is_refused() {
    let mut case = Case::milan();
    // Genoa writes its versions as Milan does, so that only the names differ.
    put(&mut case, 0x188, &[0x19, 0x11, 0x01]);
    refused(&case, &["report.product"], Signature);
    put(&mut case, 0x188, &[0x17, 0x31, 0x00]);
    refused(&case, &["report.product"], Signature);
}

#[test]
fn a_report_that_names_the_other_kind_of_key_is_refused() {
    let mut case = Case::milan();
    put(&mut case, 0x48, &[1 << 2]);
    refused(&case, &["report.signing-key"], Signature);
    let mut vek = Vek::milan();
    vek.chip = None;
    vek.provider = Some("CN=cloud.example");
    case.files[0] = vek.der();
    accepted(&case);
    put(&mut case, 0x48, &[0]);
    refused(&case, &["report.signing-key"], Signature);
}

#[test]
fn a_key_for_both_or_neither_of_chip_and_provider_is_refused() {
    for (chip, provider) in [(None, None), (Some(CHIP.to_vec()), Some("CN=cloud.example"))] {
        let mut vek = Vek::milan();
        vek.chip = chip;
        vek.provider = provider;
        let mut case = Case::milan();
        case.files[0] = vek.der();
        refused(&case, &["certificates.format", "chain.complete"], Signature);
    }
}

#[test]
fn a_doubled_or_missing_security_version_is_refused() {
    let mut vek = Vek::milan();
    vek.more.push(amd("3.1", vec![2, 1, 4]));
    let mut case = Case::milan();
    case.files[0] = vek.der();
    refused(&case, &["certificates.format", "chain.complete"], Signature);
    assert!(
        case.judge().checks()[1]
            .detail
            .contains("1.3.6.1.4.1.3704.1.3.1: twice")
    );
    let mut vek = Vek::turin();
    vek.product = "Milan-B0";
    case.files[0] = vek.der();
    refused(&case, &["certificates.format", "chain.complete"], Signature);
}

#[test]
fn a_revoked_intermediate_is_refused() {
    let mut case = Case::milan();
    case.files.push(crl(&[3, ASK_SERIAL], Some(NOW_S + 10), false));
    refused(&case, &["chain.revocation"], Tcb);
    let judgement = case.judge();
    let row = judgement
        .checks()
        .iter()
        .find(|check| check.id == "chain.revocation")
        .unwrap();
    assert_eq!(
        (row.actual.as_str(), row.detail.as_str()),
        ("revoked", "the root revoked the ASK")
    );
}

#[test]
fn a_forged_outdated_or_endless_revocation_list_is_refused() {
    for list in [
        crl(&[], Some(NOW_S + 10), true),
        crl(&[], Some(NOW_S - 1), false),
        crl(&[], None, false),
    ] {
        let mut case = Case::milan();
        case.files.push(list);
        refused(&case, &["chain.revocation"], Tcb);
    }
}

#[test]
fn a_good_list_does_not_cover_for_a_bad_one() {
    let mut case = Case::milan();
    case.files.push(crl(&[], Some(NOW_S + 10), false));
    accepted(&case);
    case.files.push(crl(&[ASK_SERIAL], Some(NOW_S + 10), false));
    refused(&case, &["chain.revocation"], Tcb);
}

#[test]
fn missing_certificates_are_missing_collateral() {
    let mut case = Case::milan();
    case.files = vec![ask()];
    refused(&case, &["chain.complete"], Tcb);
    case.files = vec![Vek::milan().der()];
    refused(&case, &["chain.complete"], Tcb);
}

#[test]
fn two_endorsement_keys_are_ambiguous() {
    let mut case = Case::milan();
    let mut other = Vek::milan();
    other.tcb[7] += 1;
    case.files.push(other.der());
    refused(&case, &["chain.complete"], Signature);
}

#[test]
fn a_platform_that_reports_more_than_it_runs_is_refused() {
    for at in [0x180, 0x1e0] {
        let mut case = Case::milan();
        put(&mut case, 0x38 + 7, &[218]);
        put(&mut case, at ^ 0x180 ^ 0x1e0, &[4, 0, 0, 0, 0, 0, 24, 218]);
        if at == 0x1e0 {
            let mut vek = Vek::milan();
            vek.tcb[7] = 218;
            case.files[0] = vek.der();
        }
        refused(&case, &["tcb.order"], Tcb);
    }
}

#[test]
fn a_reserved_byte_of_a_security_version_is_refused() {
    let mut case = Case::milan();
    put(&mut case, 0x1f0 + 3, &[1]);
    refused(&case, &["report.tcb-format"], Signature);
    let mut turin = Case::turin();
    put(&mut turin, 0x38 + 4, &[1]);
    refused(&turin, &["report.tcb-format"], Signature);
}

#[test]
fn any_version_below_the_minimum_is_refused() {
    // Committed, current and launch; the reported one is the certificate's.
    for at in [0x1e0, 0x38, 0x1f0] {
        let mut case = Case::milan();
        case.terms = Some(terms());
        put(&mut case, at + 6, &[23]);
        let judgement = case.judge();
        assert!(
            failed(&judgement).contains(&"tcb.minimum"),
            "{at:#x}: {judgement:#?}"
        );
        assert_eq!(judgement.failure(), Some(Tcb));
    }
}

#[test]
fn a_product_that_the_policy_does_not_name_is_refused() {
    let mut case = Case::turin();
    case.terms = Some(terms());
    refused(&case, &["tcb.minimum"], Tcb);
}

#[test]
fn every_value_has_an_expectation() {
    let changes: [(&str, usize, u8); 9] = [
        ("measurement", 0x90, 0x23),
        ("host-data", 0xdf, 0x34),
        ("guest.policy", 0x8, 0x1f),
        ("guest.vmpl", 0x30, 2),
        ("family-id", 0x10, 1),
        ("image-id", 0x2f, 1),
        ("id-key-digest", 0xe0, 1),
        ("author-key-digest", 0x110, 1),
        ("platform.info", 0x40, 0x05),
    ];
    for (row, at, byte) in changes {
        let mut case = Case::milan();
        case.terms = Some(terms());
        put(&mut case, at, &[byte]);
        refused(&case, &[row], Policy);
    }
    let mut old = Case::milan();
    old.terms = Some(SnpTerms {
        guest_svn_min: 1,
        ..terms()
    });
    refused(&old, &["guest.svn"], Policy);
    let mut kind = Case::milan();
    kind.terms = Some(SnpTerms {
        signing_key: vec![SnpSigningKeyTerm::Vlek],
        ..terms()
    });
    refused(&kind, &["report.signing-key-kind"], Policy);
}

#[test]
fn a_replayed_report_is_refused() {
    let mut case = Case::milan();
    for nonce in [vec![0x11; 63], vec![0x12; 64], vec![0x11; 65], Vec::new()] {
        case.nonce = Some(nonce);
        refused(&case, &["report-data"], Policy);
    }
}

#[test]
fn the_worst_fault_decides_and_all_are_listed() {
    let mut case = Case::milan();
    put(&mut case, 0x8, &0xb_0000u64.to_le_bytes());
    case.now_s = NOW_S + 5000;
    refused(&case, &["chain.validity", "guest.debug"], Tcb);
    let judgement = case.judge_bytes(&case.report);
    assert_eq!(
        failed(&judgement),
        ["chain.validity", "report.signature", "guest.debug"]
    );
    assert_eq!(judgement.failure(), Some(Signature));
}

#[test]
fn empty_or_dangerous_terms_are_refused() {
    assert_eq!(terms().check(), Ok(()));
    let empty = SnpTerms {
        measurement: Vec::new(),
        ..terms()
    };
    assert_eq!(empty.check(), Err(SnpTermsError::Empty("measurement")));
    for bits in [0xb_0000, 0x7_0000, 0x1_0000] {
        let dangerous = SnpTerms {
            guest_policy: vec![Bits64(bits)],
            ..terms()
        };
        assert!(matches!(dangerous.check(), Err(SnpTermsError::GuestPolicy(..))));
    }
    // Judging with terms that nobody checked does not accept them either.
    let mut case = Case::milan();
    case.terms = Some(SnpTerms {
        host_data: Vec::new(),
        ..terms()
    });
    refused(&case, &["policy.terms", "host-data"], Policy);
}

#[test]
fn terms_are_read_from_toml_and_an_unknown_key_is_an_error() {
    let text = toml::to_string(&terms()).unwrap();
    assert_eq!(toml::from_str::<SnpTerms>(&text).unwrap(), terms());
    let error = toml::from_str::<SnpTerms>(&format!("debug = true\n{text}")).unwrap_err();
    assert!(error.to_string().contains("unknown field `debug`"), "{error}");
    let missing = text.replace("guest_svn_min = 0\n", "");
    assert!(toml::from_str::<SnpTerms>(&missing).is_err());
}
