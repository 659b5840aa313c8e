//! Whole judgements of public quotes: what passes, and which rows refuse the rest.

use cocoon_verify::{
    Root,
    judgement::{FailureClass, Verdict},
    tdx::{TdField, TdxTerms, judge_tdx},
};
use serde_json::json;

use crate::inputs::{Case, TD10_S, Vectors, actual, failed, skipped};

const NO_POLICY: [&str; 9] = [
    "register.mrtd",
    "register.rtmr0",
    "register.rtmr1",
    "register.rtmr2",
    "register.rtmr3",
    "register.mr_config_id",
    "register.mr_owner",
    "register.mr_owner_config",
    "register.report_data",
];

#[track_caller]
fn assert_passes(case: &Case) {
    let judgement = case.judge();
    assert_eq!(failed(&judgement), [""; 0], "{judgement:#?}");
    assert_eq!(skipped(&judgement), NO_POLICY);
    assert_eq!(judgement.verdict(), Verdict::Pass);
    assert_eq!(judgement.failure(), None);
    assert_eq!(judgement.claims()["tcb"]["status"], "UpToDate");
}

#[track_caller]
fn assert_fails(case: &Case, class: FailureClass, rows: &[&str]) {
    let judgement = case.judge();
    assert_eq!(failed(&judgement), rows, "{judgement:#?}");
    assert_eq!(judgement.failure(), Some(class));
}

#[test]
fn a_version_4_quote_passes() {
    let Some(vectors) = Vectors::open() else { return };
    assert_passes(&vectors.td10());
    let judgement = vectors.td10().judge();
    assert!(
        judgement.claims()["mrtd"]
            .as_str()
            .unwrap()
            .starts_with("91eb2b44d141d4ec")
    );
    assert_eq!(judgement.claims()["platform"]["fmspc"], "B0C06F000000");
    assert_eq!(actual(&judgement, "tcb.evaluation-number"), "17");
}

#[test]
fn a_version_4_quote_passes_with_the_zeros_of_intels_quoting_service_and_no_others() {
    let Some(vectors) = Vectors::open() else { return };
    let case = vectors.td10();
    let padded = |padding: &[u8]| {
        let quote = [case.quote.as_slice(), padding].concat();
        Case {
            quote,
            ..case.clone()
        }
    };
    assert_eq!(padded(&[0; 70]).quote, vectors.read("tdx/phala/tdx_quote"));
    assert_passes(&padded(&[0; 70]));
    let mut one = [0; 70];
    one[69] = 1;
    for wrong in [&[0; 1][..], &[0; 69], &[0; 71], &[0; 3065], &[1; 70], &one] {
        let judgement = padded(wrong).judge();
        assert_eq!(judgement.failure(), Some(FailureClass::Signature));
        assert!(actual(&judgement, "quote.format").starts_with("byte 4936: "));
    }
}

#[test]
fn version_5_quotes_pass() {
    let Some(vectors) = Vectors::open() else { return };
    assert_passes(&vectors.td15());
    assert_passes(&vectors.td15ex());
}

#[test]
fn registers_are_held_against_a_policy() {
    let Some(vectors) = Vectors::open() else { return };
    let case = vectors.td10();
    let mrtd = hex::decode(case.judge().claims()["mrtd"].as_str().unwrap()).unwrap();
    let with = |any_of| {
        let fields = [(TdField::MrTd, any_of)].into();
        case.judge_with(&TdxTerms {
            fields,
            ..TdxTerms::default()
        })
    };
    let judgement = with(vec![vec![0; 48], mrtd]);
    assert_eq!(judgement.verdict(), Verdict::Pass);
    assert_eq!(skipped(&judgement), NO_POLICY[1..]);
    for other in [vec![vec![0; 48]], vec![]] {
        let judgement = with(other);
        assert_eq!(failed(&judgement), ["register.mrtd"]);
        assert_eq!(judgement.failure(), Some(FailureClass::Policy));
    }
}

#[test]
fn a_field_that_the_quote_does_not_have_fails_a_policy() {
    let Some(vectors) = Vectors::open() else { return };
    let fields = [(TdField::TdId, vec![vec![0; 32]])].into();
    let judgement = vectors.td10().judge_with(&TdxTerms {
        fields,
        ..TdxTerms::default()
    });
    assert_eq!(failed(&judgement), ["field.td_id"]);
}

#[test]
fn missing_collateral_fails_as_a_question_of_versions() {
    let Some(vectors) = Vectors::open() else { return };
    let case = vectors.td10();
    let judgement = judge_tdx(&case.quote, None, &case.root, &TdxTerms::default(), TD10_S);
    assert_eq!(failed(&judgement), ["collateral.format"]);
    assert_eq!(judgement.failure(), Some(FailureClass::Tcb));
    assert!(skipped(&judgement).contains(&"tcb.status"));
}

#[test]
fn collateral_that_is_not_collateral_fails_as_a_format() {
    let Some(vectors) = Vectors::open() else { return };
    let case = vectors.td10();
    for bytes in [
        b"".to_vec(),
        b"{}".to_vec(),
        vec![b' '; 300 * 1024],
        b"[1]".to_vec(),
    ] {
        let collateral = bytes;
        let case = Case {
            collateral,
            ..case.clone()
        };
        assert_fails(&case, FailureClass::Signature, &["collateral.format"]);
    }
}

#[test]
fn unknown_keys_in_collateral_are_skipped() {
    let Some(vectors) = Vectors::open() else { return };
    assert_passes(&vectors.td10().with("published", json!({"by": "somebody"})));
}

#[test]
fn expired_collateral_fails() {
    let Some(vectors) = Vectors::open() else { return };
    // nextUpdate of the TCB info is 2025-07-19T10:16:03Z.
    let now_s = 1_752_920_164;
    let case = Case {
        now_s,
        ..vectors.td10()
    };
    assert_fails(&case, FailureClass::Tcb, &["collateral.validity"]);
    assert!(actual(&case.judge(), "collateral.validity").contains(" is valid from "));
}

#[test]
fn collateral_from_the_future_fails() {
    let Some(vectors) = Vectors::open() else { return };
    let case = Case {
        now_s: 1_740_000_000,
        ..vectors.td10()
    };
    assert_fails(&case, FailureClass::Tcb, &["collateral.validity"]);
}

#[test]
fn a_platform_below_every_level_fails() {
    let Some(vectors) = Vectors::open() else { return };
    let case = vectors.td15_outdated();
    assert_fails(&case, FailureClass::Tcb, &["tcb.level"]);
    assert!(actual(&case.judge(), "tcb.level").starts_with("no matching TCB level"));
}

#[test]
fn an_sgx_quote_is_not_a_td_but_is_appraised() {
    let Some(vectors) = Vectors::open() else { return };
    let case = vectors.sgx();
    assert_fails(&case, FailureClass::Signature, &["quote.kind", "tcb.status"]);
    let judgement = case.judge();
    assert_eq!(
        actual(&judgement, "tcb.status"),
        "ConfigurationAndSWHardeningNeeded (INTEL-SA-00289, INTEL-SA-00615)"
    );
    assert_eq!(actual(&judgement, "quote.kind"), "SGX enclave report");
}

#[test]
fn a_debug_td_fails() {
    let Some(vectors) = Vectors::open() else { return };
    let case = Case {
        quote: vectors.read("tdx/quotes/coco_tdx_quote_4_debug_v4.dat"),
        ..vectors.td10()
    };
    // The collateral is another platform model's.
    assert_fails(&case, FailureClass::Tcb, &["tcb.level", "td.debug"]);
    let judgement = judge_tdx(&case.quote, None, &case.root, &TdxTerms::default(), TD10_S);
    assert_eq!(failed(&judgement), ["collateral.format", "td.debug"]);
}

#[test]
fn a_td_with_a_service_td_fails() {
    let Some(vectors) = Vectors::open() else { return };
    let case = Case {
        quote: vectors.read("tdx/quotes/coco_tdx_quote_5_v5.dat"),
        ..vectors.td15()
    };
    let judgement = case.judge();
    assert!(failed(&judgement).contains(&"td.service-td"), "{judgement:#?}");
    assert_eq!(actual(&judgement, "td.service-td"), "mr_service_td is not zero");
}

#[test]
fn a_quote_under_another_root_fails() {
    let Some(vectors) = Vectors::open() else { return };
    let case = Case {
        quote: vectors.read("eventlog/ccapi_ubuntu/quote_v4.bin"),
        ..vectors.td10()
    };
    let judgement = case.judge();
    assert!(failed(&judgement).contains(&"pck.chain"), "{judgement:#?}");
    assert_eq!(judgement.failure(), Some(FailureClass::Signature));
}

#[test]
fn intels_sample_is_genuine_under_its_own_root_only() {
    let Some(vectors) = Vectors::open() else { return };
    let case = vectors.intel_sample();
    // All signatures hold, but its QE identity is another enclave's, and its TD has neither SEPT_VE_DISABLE nor x87.
    let refused = ["tcb.level", "td.sept-ve-disable", "td.xfam"];
    assert_fails(&case, FailureClass::Signature, &refused);
    let found = case.judge();
    assert!(actual(&found, "tcb.level").starts_with("the quoting enclave's MRSIGNER is "));
    let other = Case {
        root: Root::intel(),
        ..case
    };
    assert_eq!(other.judge().failure(), Some(FailureClass::Signature));
    assert!(failed(&other.judge()).contains(&"pck.chain"));
}

#[test]
fn another_given_root_refuses_intels_quotes() {
    let Some(vectors) = Vectors::open() else { return };
    let case = Case {
        root: vectors.intel_sample().root,
        ..vectors.td10()
    };
    assert_eq!(case.judge().failure(), Some(FailureClass::Signature));
}
