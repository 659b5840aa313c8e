//! A simulated platform whose vendor signs whatever an attack needs: one test for each thing that must be noticed.

use aws_lc_rs::{rand::SystemRandom, signature::ECDSA_P256_SHA256_ASN1_SIGNING};
use cocoon_evidence::Digest48;
use cocoon_protocol::simulated::{FromPlatform, ToPlatform};
use cocoon_simulator::{InitialRegisters, SimulatedPlatform};
use cocoon_verify::{
    Root,
    judgement::FailureClass,
    tdx::{Quote, TcbStatus, TdxTerms},
};
use serde_json::{Value, json};
use x509_parser::{
    pem::Pem,
    prelude::{FromDer as _, X509Certificate},
};

use crate::{
    inputs::{Case, actual, failed},
    simulated_vendor,
};

const NOW_S: u64 = 1_800_000_000;
const DAY_S: u64 = 24 * 3600;

struct Vendor {
    state: tempfile::TempDir,
    case: Case,
}

impl Vendor {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let platform = SimulatedPlatform::open_or_create(state.path(), NOW_S).unwrap();
        let mut td = platform.start_td(InitialRegisters {
            mrtd: Digest48::of(b"firmware"),
            rtmr0: Digest48::of(b"hardware"),
            rtmr1: Digest48::of(b"kernel"),
            rtmr2: Digest48::of(b"command line"),
        });
        let request = ToPlatform::Quote { report_data: [7; 64] };
        let FromPlatform::Quote { quote } = td.handle(request) else {
            panic!("the platform does not quote");
        };
        let case = Case {
            quote,
            collateral: platform.collateral(NOW_S).unwrap(),
            root: Root::given(platform.root_pem()).unwrap(),
            now_s: NOW_S,
        };
        Self { state, case }
    }

    /// `document` ("tcb_info" or "qe_identity") after `change`, signed again by `key`.
    fn signed_by(&self, key: &str, document: &str, change: impl Fn(&mut Value)) -> Case {
        let signer = (self.state.path(), key);
        Case {
            collateral: simulated_vendor::signed_again(signer, &self.case.collateral, document, change),
            ..self.case.clone()
        }
    }

    fn tcb_info(&self, change: impl Fn(&mut Value)) -> Case {
        self.signed_by("tcb-signing.key", "tcb_info", change)
    }

    fn qe_identity(&self, change: impl Fn(&mut Value)) -> Case {
        self.signed_by("tcb-signing.key", "qe_identity", change)
    }

    /// A revocation list of the certificate `issuer` (PEM) with its `key`, which revokes `revoked` (DER).
    fn crl(&self, key: &str, issuer: &[u8], revoked: &[u8]) -> Value {
        let (_, issuer) = X509Certificate::from_der(issuer).unwrap();
        let (_, revoked) = X509Certificate::from_der(revoked).unwrap();
        let algorithm = tlv(0x30, &[&tlv(6, &[&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]])]);
        let date = |text: &str| tlv(0x17, &[text.as_bytes()]);
        let serial = tlv(2, &[revoked.tbs_certificate.raw_serial()]);
        let entry = tlv(0x30, &[&serial, &date("260101000000Z")]);
        let signed = tlv(
            0x30,
            &[
                &tlv(2, &[&[1]]),
                &algorithm,
                issuer.tbs_certificate.subject.as_raw(),
                &date("260101000000Z"),
                &date("300101000000Z"),
                &tlv(0x30, &[&entry]),
            ],
        );
        let key = simulated_vendor::key(self.state.path(), key, &ECDSA_P256_SHA256_ASN1_SIGNING);
        let signature = key.sign(&SystemRandom::new(), &signed).unwrap();
        let list = tlv(0x30, &[&signed, &algorithm, &tlv(3, &[&[0], signature.as_ref()])]);
        json!(hex::encode(list))
    }

    /// PCK, PCK CA and root, DER.
    fn chain(&self) -> [Vec<u8>; 3] {
        let quote = Quote::parse(&self.case.quote).unwrap();
        let chain: Vec<_> = Pem::iter_from_buffer(quote.pck_chain())
            .map(|block| block.unwrap().contents)
            .collect();
        chain.try_into().unwrap()
    }

    fn tcb_signer(&self) -> Vec<u8> {
        let pem = self.case.part("tcb_info_issuer_chain");
        Pem::iter_from_buffer(pem.as_bytes())
            .next()
            .unwrap()
            .unwrap()
            .contents
    }
}

/// DER with the shortest length, up to 64 KiB.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let value = parts.concat();
    let [high, low] = u16::try_from(value.len()).unwrap().to_be_bytes();
    let length: &[u8] = match (high, low) {
        (0, 0..=0x7f) => &[low],
        (0, _) => &[0x81, low],
        _ => &[0x82, high, low],
    };
    [&[tag], length, &value].concat()
}

#[track_caller]
fn assert_refused(case: &Case, class: FailureClass, rows: &[&str]) {
    let judgement = case.judge();
    assert_eq!(failed(&judgement), rows, "{judgement:#?}");
    assert_eq!(judgement.failure(), Some(class));
}

#[test]
fn the_honest_platform_is_accepted() {
    let vendor = Vendor::new();
    assert_eq!(failed(&vendor.case.judge()), [""; 0]);
    assert_eq!(failed(&vendor.tcb_info(|_| ()).judge()), [""; 0]);
    let [pck, ca, root] = vendor.chain();
    let other = vendor.crl("pck-ca.key", &ca, &root);
    assert_eq!(failed(&vendor.case.with("pck_crl", other).judge()), [""; 0]);
    let other = vendor.crl("root.key", &root, &pck);
    assert_eq!(failed(&vendor.case.with("root_ca_crl", other).judge()), [""; 0]);
}

#[test]
fn any_status_but_up_to_date_is_refused_unless_a_policy_names_it() {
    let vendor = Vendor::new();
    for status in TcbStatus::ALL {
        let case = vendor.tcb_info(|info| info["tcbLevels"][0]["tcbStatus"] = json!(status));
        let tcb_accepted = vec![status];
        let named = case.judge_with(&TdxTerms {
            tcb_accepted,
            ..TdxTerms::default()
        });
        match status {
            TcbStatus::UpToDate => assert_eq!(failed(&case.judge()), [""; 0]),
            // Revoked is never accepted; the advice to start a TD again is none of Intel's statuses for platforms.
            TcbStatus::Revoked
            | TcbStatus::TDRelaunchAdvised
            | TcbStatus::TDRelaunchAdvisedConfigurationNeeded => {
                assert_refused(&case, FailureClass::Tcb, &["tcb.level"]);
                assert_eq!(failed(&named), ["tcb.level"]);
            }
            _ => {
                assert_refused(&case, FailureClass::Tcb, &["tcb.status"]);
                assert_eq!(failed(&named), [""; 0]);
            }
        }
    }
}

#[test]
fn the_worst_of_platform_module_and_quoting_enclave_counts() {
    let vendor = Vendor::new();
    let module = vendor
        .tcb_info(|info| info["tdxModuleIdentities"][0]["tcbLevels"][0]["tcbStatus"] = json!("OutOfDate"));
    assert_refused(&module, FailureClass::Tcb, &["tcb.status"]);
    let qe = vendor.qe_identity(|identity| identity["tcbLevels"][0]["tcbStatus"] = json!("OutOfDate"));
    assert_refused(&qe, FailureClass::Tcb, &["tcb.status"]);
    for key in ["tdxModuleIdentities", "tcbLevels"] {
        let revoked = vendor.tcb_info(|info| match key {
            "tcbLevels" => info[key][0]["tcbStatus"] = json!("Revoked"),
            _ => info[key][0]["tcbLevels"][0]["tcbStatus"] = json!("Revoked"),
        });
        assert_refused(&revoked, FailureClass::Tcb, &["tcb.level"]);
    }
    let revoked = vendor.qe_identity(|identity| identity["tcbLevels"][0]["tcbStatus"] = json!("Revoked"));
    assert_refused(&revoked, FailureClass::Tcb, &["tcb.level"]);
}

/// They would not change the status of the whole: the enclave would count as up to date.
#[test]
fn a_quoting_enclave_or_module_with_a_status_of_platforms_is_refused_whatever_a_policy_accepts() {
    let vendor = Vendor::new();
    let terms = TdxTerms {
        tcb_accepted: TcbStatus::ALL.to_vec(),
        ..TdxTerms::default()
    };
    for status in TcbStatus::ALL {
        let qe = vendor.qe_identity(|identity| identity["tcbLevels"][0]["tcbStatus"] = json!(status));
        let module = vendor
            .tcb_info(|info| info["tdxModuleIdentities"][0]["tcbLevels"][0]["tcbStatus"] = json!(status));
        for case in [qe, module] {
            let judgement = case.judge_with(&terms);
            let expected: &[&str] = match status {
                TcbStatus::UpToDate | TcbStatus::OutOfDate => &[],
                _ => &["tcb.level"],
            };
            assert_eq!(failed(&judgement), expected, "{status}");
        }
    }
}

#[test]
fn advisories_are_listed() {
    let vendor = Vendor::new();
    let case = vendor.tcb_info(|info| {
        info["tcbLevels"][0]["advisoryIDs"] = json!(["INTEL-SA-00001"]);
        info["tdxModuleIdentities"][0]["tcbLevels"][0]["advisoryIDs"] = json!(["INTEL-SA-00002"]);
    });
    let judgement = case.judge();
    assert_eq!(failed(&judgement), [""; 0]);
    assert_eq!(
        actual(&judgement, "tcb.status"),
        "UpToDate (INTEL-SA-00001, INTEL-SA-00002)"
    );
}

#[test]
fn an_outdated_platform_is_accepted_only_within_its_grace_period() {
    let vendor = Vendor::new();
    let case = vendor.tcb_info(|info| {
        info["tcbLevels"][0]["tcbStatus"] = json!("OutOfDate");
        info["tcbLevels"][0]["tcbDate"] = json!("2027-01-05T08:00:00Z");
    });
    // NOW_S is 2027-01-15T08:00:00Z.
    let with = |platform_grace_s, qe_grace_s| {
        let terms = TdxTerms {
            platform_grace_s,
            qe_grace_s,
            ..TdxTerms::default()
        };
        case.judge_with(&terms).failure()
    };
    assert_eq!(with(10 * DAY_S, 0), None);
    assert_eq!(with(10 * DAY_S - 1, 0), Some(FailureClass::Tcb));
    assert_eq!(with(0, 100 * DAY_S), Some(FailureClass::Tcb));
}

#[test]
fn a_platform_below_the_levels_is_refused() {
    let vendor = Vendor::new();
    let pce = vendor.tcb_info(|info| info["tcbLevels"][0]["tcb"]["pcesvn"] = json!(u16::MAX));
    assert_refused(&pce, FailureClass::Tcb, &["tcb.level"]);
    let cpu = vendor.tcb_info(|info| info["tcbLevels"][0]["tcb"]["sgxtcbcomponents"][15]["svn"] = json!(255));
    assert_refused(&cpu, FailureClass::Tcb, &["tcb.level"]);
    let tdx = vendor.tcb_info(|info| info["tcbLevels"][0]["tcb"]["tdxtcbcomponents"][2]["svn"] = json!(255));
    assert_refused(&tdx, FailureClass::Tcb, &["tcb.level"]);
    let module =
        vendor.tcb_info(|info| info["tdxModuleIdentities"][0]["tcbLevels"][0]["tcb"]["isvsvn"] = json!(255));
    assert_refused(&module, FailureClass::Tcb, &["tcb.level"]);
    let qe = vendor.qe_identity(|identity| identity["tcbLevels"][0]["tcb"]["isvsvn"] = json!(u16::MAX));
    assert_refused(&qe, FailureClass::Tcb, &["tcb.level"]);
}

#[test]
fn tcb_info_of_another_platform_is_refused() {
    let vendor = Vendor::new();
    for (key, value) in [
        ("fmspc", json!("0123456789AB")),
        ("pceId", json!("ABCD")),
        ("tcbType", json!(1)),
        ("tdxModuleIdentities", json!([])),
        ("tdxModule", Value::Null),
    ] {
        let case = vendor.tcb_info(|info| info[key] = value.clone());
        assert_refused(&case, FailureClass::Tcb, &["tcb.level"]);
    }
    for (key, value) in [("id", json!("SGX")), ("version", json!(2))] {
        let case = vendor.tcb_info(|info| info[key] = value.clone());
        assert_refused(&case, FailureClass::Signature, &["tcb.level"]);
    }
}

#[test]
fn another_tdx_module_is_refused() {
    let vendor = Vendor::new();
    for (key, value) in [("mrsigner", "01".repeat(48)), ("attributes", "01".repeat(8))] {
        let case = vendor.tcb_info(|info| info["tdxModuleIdentities"][0][key] = json!(value));
        assert_refused(&case, FailureClass::Signature, &["tcb.level"]);
    }
}

#[test]
fn an_enclave_that_is_not_intels_quoting_enclave_is_refused() {
    let vendor = Vendor::new();
    for (key, value) in [
        ("mrsigner", json!("01".repeat(32))),
        ("isvprodid", json!(77)),
        ("miscselect", json!("01000000")),
        ("attributes", json!("10000000000000000000000000000000")),
        ("id", json!("QE")),
    ] {
        let case = vendor.qe_identity(|identity| identity[key] = value.clone());
        assert_refused(&case, FailureClass::Signature, &["tcb.level"]);
    }
}

#[test]
fn old_collateral_below_the_floor_is_refused() {
    let vendor = Vendor::new();
    let terms = TdxTerms {
        evaluation_number_min: 2,
        ..TdxTerms::default()
    };
    assert_eq!(failed(&vendor.case.judge_with(&terms)), ["tcb.evaluation-number"]);
    let newer = vendor.tcb_info(|info| info["tcbEvaluationDataNumber"] = json!(2));
    // The QE identity is still the old one.
    assert_eq!(failed(&newer.judge_with(&terms)), ["tcb.evaluation-number"]);
}

#[test]
fn a_revoked_pck_is_refused() {
    let vendor = Vendor::new();
    let [pck, ca, _] = vendor.chain();
    let case = vendor.case.with("pck_crl", vendor.crl("pck-ca.key", &ca, &pck));
    assert_refused(&case, FailureClass::Tcb, &["pck.revocation"]);
}

#[test]
fn a_revoked_pck_ca_is_refused() {
    let vendor = Vendor::new();
    let [_, ca, root] = vendor.chain();
    let case = vendor
        .case
        .with("root_ca_crl", vendor.crl("root.key", &root, &ca));
    assert_refused(&case, FailureClass::Tcb, &["pck-crl.signature"]);
}

#[test]
fn a_revoked_tcb_signer_is_refused() {
    let vendor = Vendor::new();
    let [_, _, root] = vendor.chain();
    let list = vendor.crl("root.key", &root, &vendor.tcb_signer());
    let case = vendor.case.with("root_ca_crl", list);
    let rows = ["tcb-info.signature", "qe-identity.signature"];
    assert_refused(&case, FailureClass::Tcb, &rows);
}

#[test]
fn a_revocation_list_of_another_ca_is_refused() {
    let vendor = Vendor::new();
    let [pck, ca, root] = vendor.chain();
    let by_root = vendor.crl("root.key", &root, &pck);
    assert_refused(
        &vendor.case.with("pck_crl", by_root),
        FailureClass::Signature,
        &["pck-crl.signature"],
    );
    let forged = vendor.crl("pck.key", &ca, &root);
    assert_refused(
        &vendor.case.with("pck_crl", forged),
        FailureClass::Signature,
        &["pck-crl.signature"],
    );
}

#[test]
fn documents_that_a_platform_signs_itself_are_refused() {
    let vendor = Vendor::new();
    let case = vendor.signed_by("pck.key", "tcb_info", |_| ());
    assert_refused(&case, FailureClass::Signature, &["tcb-info.signature"]);
    // With its own certificate as the signer, which the root did not sign.
    let quote = Quote::parse(&vendor.case.quote).unwrap();
    let chain = String::from_utf8(quote.pck_chain().to_vec()).unwrap();
    let pck = chain
        .split_inclusive("-----END CERTIFICATE-----\n")
        .next()
        .unwrap();
    let case = case.with("tcb_info_issuer_chain", json!(pck));
    assert_refused(&case, FailureClass::Signature, &["tcb-info.signature"]);
}

#[test]
fn a_ca_does_not_sign_documents() {
    let vendor = Vendor::new();
    let case = vendor.signed_by("pck-ca.key", "qe_identity", |_| ());
    let ca = json!(case.part("pck_crl_issuer_chain"));
    let case = case.with("qe_identity_issuer_chain", ca);
    assert_refused(&case, FailureClass::Signature, &["qe-identity.signature"]);
}

#[test]
fn stale_documents_are_refused() {
    let vendor = Vendor::new();
    for (key, value) in [
        ("nextUpdate", "2027-01-15T07:59:59Z"),
        ("issueDate", "2027-01-15T08:00:01Z"),
    ] {
        let case = vendor.tcb_info(|info| info[key] = json!(value));
        assert_refused(&case, FailureClass::Tcb, &["collateral.validity"]);
        let case = vendor.qe_identity(|identity| identity[key] = json!(value));
        assert_refused(&case, FailureClass::Tcb, &["collateral.validity"]);
    }
}
