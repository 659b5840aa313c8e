//! Security versions and what a policy asks of them and of every other value.

use cocoon_verify::{
    Bits64,
    judgement::FailureClass::{Policy, Signature, Tcb},
    snp::{SnpSigningKeyTerm, SnpTerms, SnpTermsError},
};

use crate::{
    put, refused,
    snp_forge::{Case, NOW_S, Vek, failed, terms},
};

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
