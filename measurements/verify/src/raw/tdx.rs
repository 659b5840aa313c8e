//! A raw TDX quote, with or without a policy.

use cocoon_evidence::Digest48;
use serde_json::Value;

use super::{NO_EVENTS, RootChoice, event_checks, machine_check, policy_checks, root_check};
use crate::{
    judgement::{JudgedCheck, Judgement, Status},
    policy::{ANY_INSECURE, Bits64, Comparison, Expect, PlatformKind, Policy, TdxExpectations},
    root::Root,
    tdx::{Quote, TdField, TdxTerms, judge_tdx},
};

/// What a raw TDX quote is judged with.
#[derive(Debug, Clone, Copy)]
pub struct RawTdx<'a> {
    /// The quote.
    pub quote: &'a [u8],
    /// Collateral in dcap-qvl's JSON.
    pub collateral: Option<&'a [u8]>,
    /// Where the chain must end, if it is neither Intel's root nor the policy's.
    pub root: Option<&'a Root>,
    /// What the report data must be: up to 64 bytes, zeros follow.
    pub nonce: Option<&'a [u8]>,
    /// What is accepted; without it only the platform is judged.
    pub policy: Option<&'a Policy>,
    /// Seconds since 1970.
    pub now_s: u64,
}

/// Judges a raw TDX quote: the platform, and with a policy also what the quote says of the guest.
pub fn judge_raw_tdx(input: &RawTdx<'_>) -> Judgement {
    let (expectations, policy_root) = input.policy.and_then(Policy::tdx).unzip();
    let report = Quote::parse(input.quote).ok();
    let report = report.as_ref().and_then(Quote::td_report);
    let values = report.as_ref().map(|report| Claimed {
        attributes: report.attributes(),
        xfam: report.xfam(),
    });
    let mut terms = expectations.map_or_else(TdxTerms::default, |tdx| terms(tdx, values));
    if let Some(nonce) = input.nonce {
        let mut report_data = nonce.to_vec();
        report_data.resize(report_data.len().max(REPORT_DATA_BYTES), 0);
        terms.fields.insert(TdField::ReportData, vec![report_data]);
    }
    let intel = Root::intel();
    let root = input.root.or(policy_root).unwrap_or(&intel);
    let mut judgement = judge_tdx(input.quote, input.collateral, root, &terms, input.now_s);
    if let Some(tdx) = expectations {
        judgement = judgement.map_checks(|check| explain(check, tdx));
    }
    let mut checks = Vec::new();
    if let Some(policy) = input.policy {
        checks.extend(policy_checks(policy, Some(PlatformKind::Tdx), input.now_s));
        let platform = judgement.claims().get("platform");
        checks.extend(machine_check(
            policy,
            platform.and_then(|platform| platform.get("ppid")),
        ));
        checks.extend(event_checks());
    }
    let expected = policy_root.unwrap_or(&intel);
    let choice = RootChoice {
        expected: expected.label(),
        actual: root.label(),
        same: expected.der() == root.der(),
    };
    checks.extend(root_check(choice, input.policy));
    judgement.with(checks, ("simulated", Value::Bool(root.is_simulated())))
}

const REPORT_DATA_BYTES: usize = 64;

/// What the terms of the judge have room for one of.
#[derive(Clone, Copy)]
struct Claimed {
    attributes: u64,
    xfam: u64,
}

fn terms(tdx: &TdxExpectations, claimed: Option<Claimed>) -> TdxTerms {
    let TdxExpectations { td, tcb, .. } = tdx;
    // With several accepted values the one that the quote has is stated, or any if it has none of them. With
    // any-insecure nothing is, and the judge's strict defaults hold.
    let exactly = |expect: &Expect<Bits64>, claimed: Option<u64>| {
        let equal = expect.values().find(|bits| Some(bits.0) == claimed);
        equal.or_else(|| expect.values().next()).map(|bits| bits.0)
    };
    TdxTerms {
        attributes: exactly(&td.attributes, claimed.map(|claimed| claimed.attributes)),
        xfam: exactly(&td.xfam, claimed.map(|claimed| claimed.xfam)),
        fields: registers(tdx)
            .into_iter()
            .filter(|(_, _, expect)| **expect != Expect::AnyInsecure)
            .map(|(field, _, expect)| (field, expect.values().map(|value| value.0.to_vec()).collect()))
            .collect(),
        ..tcb.judged()
    }
}

fn registers(tdx: &TdxExpectations) -> [(TdField, &'static str, &Expect<Digest48>); 7] {
    let registers = &tdx.registers;
    [
        (TdField::MrTd, "register.mrtd", &registers.mrtd),
        (TdField::Rtmr0, "register.rtmr0", &registers.rtmr0),
        (TdField::Rtmr1, "register.rtmr1", &registers.rtmr1),
        (TdField::Rtmr2, "register.rtmr2", &registers.rtmr2),
        (
            TdField::MrConfigId,
            "register.mr_config_id",
            &registers.mr_config_id,
        ),
        (TdField::MrOwner, "register.mr_owner", &registers.mr_owner),
        (
            TdField::MrOwnerConfig,
            "register.mr_owner_config",
            &registers.mr_owner_config,
        ),
    ]
}

/// Says which profile a register matches, and why one is not compared.
fn explain(mut check: JudgedCheck, tdx: &TdxExpectations) -> JudgedCheck {
    if check.id == "register.rtmr3" && check.status == Status::Skip {
        check.expected = "the replay of the guest's events".to_owned();
        check.detail = NO_EVENTS.to_owned();
    }
    let Some((_, _, expect)) = registers(tdx).into_iter().find(|(_, id, _)| check.id == *id) else {
        return check;
    };
    let profile = check.actual.parse().ok().map(|value| expect.compare(&value));
    match profile {
        Some(Comparison::Equal(Some(profile))) if check.status == Status::Pass => {
            check.detail = format!("as in profile {profile}");
        }
        Some(Comparison::NotCompared) => check.detail = format!("the policy says {ANY_INSECURE}"),
        _ => {}
    }
    check
}
