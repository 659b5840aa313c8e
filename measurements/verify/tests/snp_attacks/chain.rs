//! Chains of certificates, and whether a key is this chip's at this version.

use cocoon_verify::{
    judgement::FailureClass::{Signature, Tcb},
    snp::SnpRoot,
};

use crate::{
    accepted, put, refused,
    snp_forge::{
        ASK_SERIAL, CHIP, Case, NOW_S, Vek, amd, ark, ask, ask_signed_by_itself, ask_without_authority, crl,
    },
};

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
