//! Public quotes and collateral that nobody in this project wrote, from the folder that `COCOON_VECTORS` names.
//! Without it the tests pass with a message; if it is set, a missing file fails.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod public_vectors;

use std::path::PathBuf;

use cocoon_evidence::{Digest48, Endorsements, EventLog, EvidenceBundle, Platform, ReportData};
use cocoon_verify::{
    Appraiser, Bits64, DocumentTerms, EventTerms, Expect, Fault, Floors, GpuEvidenceRule, HardwareTerms,
    INTEL_SGX_ROOT_CA_PEM, POLICY_VERSION, PlatformTerms, Policy, PolicyError, PolicyRole, PolicyTerms,
    ReadyRule, Refusal, RefusalClass, RegisterTerms, Report, TcbStatusName, TcbTerms, TdTerms,
    TdxExpectations, TrustedGuest, UsageKeyRule, Verdict,
};
use dcap_qvl::QuoteCollateralV3;

/// When the collateral of phala/tdx_quote is valid; published with the quote.
const PHALA_S: u64 = 1_750_332_747;

struct Vectors(PathBuf);

impl Vectors {
    fn open() -> Option<Self> {
        public_vectors::folder().map(Self)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        public_vectors::read(&self.0.join("tdx").join(name))
    }

    /// A quote without the zeros with which the kernel's interface pads it.
    fn quote(&self, name: &str) -> Vec<u8> {
        let mut quote = self.read(name);
        let u32_at = |offset: usize| u32::from_le_bytes(quote[offset..offset + 4].try_into().unwrap());
        let signed_bytes = match quote[0] {
            4 => 48 + 584,
            _ => 48 + 6 + u32_at(50) as usize,
        };
        let length = signed_bytes + 4 + u32_at(signed_bytes) as usize;
        assert!(quote[length..].iter().all(|byte| *byte == 0));
        quote.truncate(length);
        quote
    }
}

/// Intel's root; registers that no vector has.
fn terms() -> PolicyTerms {
    let zero = || Expect::exact(Digest48::ZERO);
    PolicyTerms {
        version: POLICY_VERSION,
        number: 1,
        expires_s: 4_000_000_000,
        role: PolicyRole::Inference,
        platform: PlatformTerms {
            simulated: false,
            root_pem: INTEL_SGX_ROOT_CA_PEM.into(),
        },
        machines: None,
        hardware: HardwareTerms::Tdx(TdxExpectations {
            registers: RegisterTerms {
                mrtd: zero(),
                rtmr0: zero(),
                rtmr1: zero(),
                rtmr2: zero(),
                mr_config_id: zero(),
                mr_owner: zero(),
                mr_owner_config: zero(),
            },
            td: TdTerms {
                attributes: Expect::exact(Bits64(0x1000_0000)),
                xfam: Expect::exact(Bits64(0x6_02e7)),
            },
            tcb: TcbTerms {
                accepted: vec![TcbStatusName::UP_TO_DATE],
                evaluation_number_min: 17,
                platform_grace_s: 0,
                qe_grace_s: 0,
            },
        }),
        events: EventTerms {
            launch_document: DocumentTerms::exact(Digest48::ZERO),
            model: zero(),
            usage_key: UsageKeyRule::Bound,
            gpu_evidence: GpuEvidenceRule::None,
            ready: ReadyRule::Empty,
        },
        nvidia: None,
    }
}

fn judge(
    terms: PolicyTerms,
    quote: Vec<u8>,
    collateral: &[u8],
    now_s: u64,
) -> (Report, Result<TrustedGuest, Refusal>) {
    let bundle = EvidenceBundle {
        platform: Platform::Tdx { quote },
        events: EventLog::default(),
        gpu: vec![],
    };
    let policy = Policy::new(terms).unwrap();
    let endorsements = Endorsements::of_tdx(collateral.to_vec()).encode();
    let mut appraiser = Appraiser::new(&policy, Floors::default(), &endorsements, now_s);
    let appraisal = appraiser.appraise(&bundle, &ReportData([0; 64]));
    (appraisal.report.clone(), appraisal.into_trusted())
}

#[track_caller]
fn assert_row(report: &Report, name: &str, verdict: Verdict, actual: &str) {
    let check = report.check(name).unwrap();
    assert_eq!(check.verdict, verdict, "{check:#?}");
    assert!(check.actual.starts_with(actual), "{check:#?}");
}

#[test]
fn intels_signature_proves_a_real_quote_but_not_that_it_is_our_guest() {
    let Some(vectors) = Vectors::open() else { return };
    let collateral = vectors.read("phala/tdx_quote_collateral.json");
    let quote = vectors.quote("phala/tdx_quote");
    let (report, trusted) = judge(terms(), quote.clone(), &collateral, PHALA_S);
    assert_row(&report, "quote signature", Verdict::Pass, "verified");
    assert_row(&report, "endorsement freshness", Verdict::Pass, "2025-06-19T");
    assert_row(&report, "TCB status", Verdict::Pass, "UpToDate");
    assert_row(&report, "TCB evaluation number", Verdict::Pass, "17");
    assert_row(&report, "MRTD", Verdict::Fail, "91eb2b44d141d4ec");
    assert_row(&report, "event ready", Verdict::Fail, "missing");
    assert!(trusted.is_err());

    let mut expecting = terms();
    let tdx = expecting.tdx_mut().unwrap();
    tdx.registers.mrtd = Expect::exact(report.check("MRTD").unwrap().actual.parse().unwrap());
    let (report, trusted) = judge(expecting, quote, &collateral, PHALA_S);
    assert_row(&report, "MRTD", Verdict::Pass, "91eb2b44d141d4ec");
    assert!(trusted.is_err());
}

#[test]
fn a_quote_of_td_report_1_5_ex_verifies() {
    let Some(vectors) = Vectors::open() else { return };
    let collateral = vectors.read("phala/tdx_quote_td15ex_collateral.json");
    // 2026-10-08T06:00:00Z.
    let (report, _) = judge(
        terms(),
        vectors.quote("phala/tdx_quote_td15ex"),
        &collateral,
        1_791_439_200,
    );
    assert_row(&report, "quote signature", Verdict::Pass, "verified");
    assert_row(&report, "TCB status", Verdict::Pass, "UpToDate");
}

#[test]
fn a_flipped_bit_in_a_real_quote_is_refused() {
    let Some(vectors) = Vectors::open() else { return };
    let collateral = vectors.read("phala/tdx_quote_collateral.json");
    let quote = vectors.quote("phala/tdx_quote");
    for byte in (0..48 + 584).step_by(41) {
        let mut quote = quote.clone();
        quote[byte] ^= 0x10;
        let (report, _) = judge(terms(), quote, &collateral, PHALA_S);
        let signed = report.check("quote signature").unwrap().verdict;
        assert_eq!(signed, Verdict::Fail, "byte {byte}");
    }
}

#[test]
fn padding_after_a_real_quote_is_refused() {
    let Some(vectors) = Vectors::open() else { return };
    let collateral = vectors.read("phala/tdx_quote_collateral.json");
    let (report, _) = judge(terms(), vectors.read("phala/tdx_quote"), &collateral, PHALA_S);
    assert_row(&report, "quote format", Verdict::Fail, "byte 4936: 70 bytes");
}

#[test]
fn expired_collateral_is_refused() {
    let Some(vectors) = Vectors::open() else { return };
    let collateral = vectors.read("phala/tdx_quote_collateral.json");
    // One second after nextUpdate of the TCB info, 2025-07-19T10:16:03Z.
    let expired_s = 1_752_920_164;
    let quote = vectors.quote("phala/tdx_quote");
    let (report, trusted) = judge(terms(), quote, &collateral, expired_s);
    assert_row(
        &report,
        "endorsement freshness",
        Verdict::Fail,
        "2025-07-19T10:16:04Z",
    );
    assert_eq!(trusted.unwrap_err().class, RefusalClass::Freshness);
}

#[test]
fn a_platform_below_every_tcb_level_is_refused_for_its_tcb() {
    let Some(vectors) = Vectors::open() else { return };
    let collateral = vectors.read("phala/tdx_quote_outdated_collateral.json");
    let quote = vectors.quote("phala/tdx_quote_outdated");
    let (report, trusted) = judge(terms(), quote, &collateral, 1_771_415_931);
    assert_row(&report, "quote signature", Verdict::Fail, "no matching TCB level");
    assert_eq!(report.check("quote signature").unwrap().fault, Fault::Platform);
    assert_eq!(trusted.unwrap_err().class, RefusalClass::Tcb);
}

#[test]
fn a_debug_td_is_refused() {
    let Some(vectors) = Vectors::open() else { return };
    let collateral = vectors.read("phala/tdx_quote_collateral.json");
    let quote = vectors.quote("quotes/coco_tdx_quote_4_debug_v4.dat");
    let (report, trusted) = judge(terms(), quote, &collateral, PHALA_S);
    assert_row(&report, "TD attributes", Verdict::Fail, "0x0000000010000001");
    assert!(trusted.is_err());
}

#[test]
fn intels_sample_under_its_test_root_is_refused_under_the_production_root() {
    let Some(vectors) = Vectors::open() else { return };
    let text =
        |name: &str| String::from_utf8(vectors.read(&format!("intel_qvl_sample_testroot/{name}"))).unwrap();
    let (tcb_info, tcb_info_signature) = signed_json(&text("tcbInfo.json"), "tcbInfo");
    let (qe_identity, qe_identity_signature) = signed_json(&text("qeIdentity.json"), "enclaveIdentity");
    let collateral = QuoteCollateralV3 {
        pck_crl_issuer_chain: text("pckSignChain.pem"),
        root_ca_crl: vectors.read("intel_qvl_sample_testroot/rootCaCrl.der"),
        pck_crl: vectors.read("intel_qvl_sample_testroot/intermediateCaCrl.der"),
        tcb_info_issuer_chain: text("tcbSignChain.pem"),
        tcb_info,
        tcb_info_signature,
        qe_identity_issuer_chain: text("tcbSignChain.pem"),
        qe_identity,
        qe_identity_signature,
        pck_certificate_chain: Some(text("pckCert.pem") + &text("pckSignChain.pem")),
    };
    let quote = vectors.read("intel_qvl_sample_testroot/quote.dat");
    let json = serde_json::to_vec(&collateral).unwrap();
    let (report, trusted) = judge(terms(), quote, &json, 1_640_000_000);
    assert_row(&report, "collateral", Verdict::Pass, "");
    assert!(
        report.check("quote signature").unwrap().verdict == Verdict::Fail,
        "{report:#?}"
    );
    assert_eq!(trusted.unwrap_err().class, RefusalClass::Signature);
}

/// The signed bytes of `{"NAME":{...},"signature":"..."}`, which are those between the name and the signature.
fn signed_json(text: &str, name: &str) -> (String, Vec<u8>) {
    let body = text.trim().strip_prefix(&format!("{{\"{name}\":")).unwrap();
    let (body, signature) = body.rsplit_once(",\"signature\":\"").unwrap();
    (
        body.into(),
        hex::decode(signature.trim_end_matches("\"}")).unwrap(),
    )
}

#[test]
fn intels_sample_root_is_neither_intels_production_root_nor_a_simulator() {
    let Some(vectors) = Vectors::open() else { return };
    let root_pem = vectors.read("intel_qvl_sample_testroot/trustedRootCaCert.pem");
    let root_pem = String::from_utf8(root_pem).unwrap();
    for simulated in [false, true] {
        let mut terms = terms();
        terms.platform.root_pem.clone_from(&root_pem);
        terms.platform.simulated = simulated;
        assert!(matches!(Policy::new(terms), Err(PolicyError::Root(_))));
    }
}
