//! dcap-qvl 0.7.1, which decides the same from other code: on public quotes, at many times, and after changes to quote
//! and collateral. Where the two differ, the reason is listed here.

use cocoon_verify::tdx::{Collateral, Quote, TcbStatus, TdxTerms, VerifiedPck};
use dcap_qvl::{QuoteClaims, QuoteCollateralV3, QuotePolicy, verify::QuoteVerifier};
use serde_json::Value;

use crate::inputs::{Case, Vectors, failed};

/// What both have to say alike.
#[derive(Debug, PartialEq, Eq)]
struct Decision {
    status: String,
    advisories: Vec<String>,
    evaluation_number: u32,
    platform: (String, u64),
    qe_status: String,
    fmspc: [u8; 6],
    ppid: Vec<u8>,
    expires_s: u64,
}

impl From<QuoteClaims> for Decision {
    fn from(claims: QuoteClaims) -> Self {
        Self {
            status: claims.tcb.status.to_string(),
            advisories: claims.tcb.advisory_ids,
            evaluation_number: claims.tcb.eval_data_number,
            platform: (
                claims.platform.tcb_level.tcb_status.to_string(),
                claims.platform.tcb_date_tag,
            ),
            qe_status: claims.qe.tcb_level.tcb_status.to_string(),
            fmspc: claims.platform.pck.fmspc,
            ppid: claims.platform.pck.ppid,
            expires_s: claims.earliest_expiration_date,
        }
    }
}

fn theirs(case: &Case) -> Result<Decision, String> {
    let root = x509_parser::pem::Pem::iter_from_buffer(cocoon_verify::INTEL_SGX_ROOT_CA_PEM.as_bytes());
    let root = root.map(Result::unwrap).next().unwrap().contents;
    let collateral: QuoteCollateralV3 =
        serde_json::from_slice(&case.collateral).map_err(|error| error.to_string())?;
    QuoteVerifier::new(root)
        .verify_with_policy(
            &case.quote,
            &collateral,
            case.now_s,
            &QuotePolicy::claims_only(case.now_s),
        )
        .map(Decision::from)
        .map_err(|error| format!("{error:#}"))
}

/// The same scope as theirs: any status but Revoked, any XFAM, and of the attributes those that they refuse too.
fn ours(case: &Case) -> Result<Decision, String> {
    let quote = Quote::parse(&case.quote).map_err(|error| error.to_string())?;
    let collateral = Collateral::parse(&case.collateral).map_err(|error| error.to_string())?;
    let collateral = collateral.verify(&case.root).map_err(|error| error.to_string())?;
    let pck = collateral
        .verify_pck(quote.pck_chain())
        .map_err(|error| error.to_string())?;
    let verified = pck
        .verify(&quote, case.now_s)
        .map_err(|error| error.to_string())?;
    if let Some(report) = quote.td_report() {
        let terms = TdxTerms {
            tcb_accepted: TcbStatus::ALL.to_vec(),
            attributes: Some(report.attributes()),
            xfam: Some(report.xfam()),
            ..TdxTerms::default()
        };
        let judgement = case.judge_with(&terms);
        let refused = failed(&judgement);
        if !refused.is_empty() {
            return Err(refused.join(", "));
        }
    }
    let tcb = verified.tcb();
    Ok(Decision {
        status: tcb.status.to_string(),
        advisories: tcb.advisories.clone(),
        evaluation_number: collateral.evaluation_number(),
        platform: (tcb.platform.status.to_string(), tcb.platform.date_s),
        qe_status: tcb.qe.status.to_string(),
        fmspc: pck.platform().fmspc,
        ppid: pck.platform().ppid.to_vec(),
        expires_s: expiry(&pck),
    })
}

/// Theirs counts a list's nextUpdate as its last second.
fn expiry(pck: &VerifiedPck) -> u64 {
    let periods = pck.validity().periods().iter();
    periods
        .map(|period| period.until_s + u64::from(period.of.ends_with("CRL")))
        .min()
        .unwrap()
}

fn cases(vectors: &Vectors) -> Vec<Case> {
    let with_quote = |name: &str, case: Case| Case {
        quote: vectors.read(name),
        ..case
    };
    vec![
        vectors.td10(),
        vectors.td15(),
        vectors.td15_outdated(),
        vectors.td15ex(),
        vectors.sgx(),
        with_quote("tdx/phala/tdx_quote", vectors.td10()),
        with_quote("tdx/quotes/coco_tdx_quote_5_v5.dat", vectors.td15()),
        with_quote("tdx/quotes/coco_tdx_quote_4_debug_v4.dat", vectors.td10()),
        with_quote("eventlog/ccapi_ubuntu/quote_v4.bin", vectors.td10()),
        with_quote("tdx/phala/sgx_quote", vectors.td10()),
        with_quote("tdx/phala/tdx_quote_td15ex", vectors.td10()),
    ]
}

#[track_caller]
fn assert_alike(case: &Case, what: &str) {
    match (ours(case), theirs(case)) {
        (Ok(ours), Ok(theirs)) => assert_eq!(ours, theirs, "{what}"),
        (Err(_), Err(_)) => {}
        (ours, theirs) => panic!("{what}: ours {ours:?}, dcap-qvl's {theirs:?}"),
    }
}

#[test]
fn both_decide_alike_on_every_public_quote_around_every_date() {
    let Some(vectors) = Vectors::open() else { return };
    for (number, case) in cases(&vectors).into_iter().enumerate() {
        let collateral = Collateral::parse(&case.collateral).unwrap();
        let collateral = collateral.verify(&case.root).unwrap();
        let mut times = vec![case.now_s];
        // Ours refuses what is issued in the future, theirs does so only for documents and certificates, and it
        // leaves the trusted root's dates alone: only the ends are compared.
        let ends = collateral
            .validity()
            .periods()
            .iter()
            .filter(|period| period.of != "root CA");
        times.extend(ends.flat_map(|period| {
            [
                period.until_s - 1,
                period.until_s,
                period.until_s + 1,
                period.until_s + 2,
            ]
        }));
        for now_s in times {
            assert_alike(
                &Case {
                    now_s,
                    ..case.clone()
                },
                &format!("case {number} at {now_s}"),
            );
        }
    }
}

#[test]
fn both_decide_alike_on_changed_collateral() {
    let Some(vectors) = Vectors::open() else { return };
    for case in [vectors.td10(), vectors.td15ex()] {
        for key in [
            "tcb_info",
            "qe_identity",
            "tcb_info_signature",
            "qe_identity_signature",
            "root_ca_crl",
            "pck_crl",
            "tcb_info_issuer_chain",
        ] {
            let text = case.part(key);
            let mut changes: Vec<String> = vec![
                String::new(),
                text[..text.len() / 2].to_owned(),
                text.replacen('0', "1", 1),
                text.replacen('A', "B", 1),
                text.replacen('3', "4", 2),
            ];
            // The lists of another time are in the test after this one.
            if !key.ends_with("crl") {
                changes.push(vectors.td15().part(key));
            }
            for changed in changes {
                let what = format!("{key} {:.40}", changed);
                assert_alike(&case.with(key, Value::String(changed)), &what);
            }
        }
    }
}

/// dcap-qvl does not ask when a revocation list was issued.
#[test]
fn a_revocation_list_from_the_future_is_refused() {
    let Some(vectors) = Vectors::open() else { return };
    let case = vectors.td10();
    let from_2026 = Value::String(vectors.td15().part("pck_crl"));
    let case = case.with("pck_crl", from_2026);
    assert_eq!(failed(&case.judge()), ["collateral.validity"]);
    assert!(ours(&case).is_err() && theirs(&case).is_ok());
}

/// Why dcap-qvl accepts a changed quote: the bytes are in the copy of the PCK chain, of which it reads less than there
/// is (PEM with other line ends or text around it, the copy of the root; nothing at all if the collateral carries the
/// chain too), or they follow the quote.
#[test]
fn what_dcap_qvl_accepts_and_the_strict_mode_does_not() {
    let Some(vectors) = Vectors::open() else { return };
    let mut only_strict = 0;
    for case in [vectors.td10(), vectors.td15(), vectors.td15ex()] {
        let chain = Quote::parse(&case.quote).unwrap().pck_chain().len();
        let before_chain = case.quote.len() - chain;
        for bit in (0..case.quote.len() * 8).step_by(97) {
            let mut changed = case.clone();
            changed.quote[bit / 8] ^= 1 << (bit % 8);
            assert!(ours(&changed).is_err(), "bit {bit}");
            if theirs(&changed).is_ok() {
                assert!(bit / 8 >= before_chain, "bit {bit}");
                only_strict += 1;
            }
        }
        let mut longer = case.clone();
        longer.quote.push(0);
        assert!(ours(&longer).is_err() && theirs(&longer).is_ok());
    }
    assert!(only_strict > 0, "the gap that the strict mode closes");
}

/// dcap-qvl does not read the PCK CRL's issuer chain, and takes the PCK chain from the collateral, if it is there.
#[test]
fn a_list_whose_issuer_is_not_shown_is_refused() {
    let Some(vectors) = Vectors::open() else { return };
    let case = vectors
        .td10()
        .with("pck_crl_issuer_chain", Value::String(String::new()));
    assert!(ours(&case).is_err() && theirs(&case).is_ok());
}
