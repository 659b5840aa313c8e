//! The appraisal itself: evidence and endorsements against a policy, row by row.
//!
//! The order of the rows is the order in which failures matter: first whether the evidence is authentic and
//! fresh, then whether it belongs to this connection, then what it says.

mod events;

use std::borrow::Cow;

use cocoon_evidence::{Digest48, EventKind, EventLog, EvidenceBundle, Platform, ReportData};
use dcap_qvl::{QuoteClaims, quote::TDReport10};

use crate::{
    endorsements::{self, date_text},
    policy::{Bits64, Comparison, Expect, Floors, HardwareTerms, Policy, TdxExpectations},
    quote::ParsedQuote,
    report::{Check, Fault, Refusal, RefusalClass, Report, Verdict},
};

/// Which machine it is, as the platform root says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformId {
    /// Family, model, stepping, platform and custom SKU.
    pub fmspc: [u8; 6],
    /// Platform provisioning id: the same for all guests on one processor package.
    pub ppid: Vec<u8>,
}

/// A guest that met its policy on this connection. Only [`Appraisal::into_trusted`] hands it out.
#[derive(Debug, Clone)]
pub struct TrustedGuest {
    events: EventLog,
    usage_key: [u8; 32],
    platform: PlatformId,
    simulated: bool,
}

impl TrustedGuest {
    /// The Ed25519 key that signs this guest's vouchers and receipts; new at every boot.
    pub fn usage_key(&self) -> &[u8; 32] {
        &self.usage_key
    }

    /// The launch document as the guest received and measured it.
    pub fn launch_document(&self) -> &[u8] {
        self.events
            .payload(EventKind::LaunchDocument)
            .expect("a guest is trusted only with a complete event log")
    }

    /// Everything that RTMR3 records.
    pub fn events(&self) -> &EventLog {
        &self.events
    }

    /// Which machine it runs on.
    pub fn platform(&self) -> &PlatformId {
        &self.platform
    }

    /// Whether the platform is simulated: then the host can read everything, and nothing but a local chain's
    /// money may be granted.
    pub fn is_simulated(&self) -> bool {
        self.simulated
    }
}

/// What [`appraise`] found.
#[derive(Debug, Clone)]
pub struct Appraisal {
    /// Every check, made or skipped.
    pub report: Report,
    outcome: Result<TrustedGuest, Refusal>,
}

impl Appraisal {
    /// The guest, if every check holds. Changing `report` does not change this.
    ///
    /// # Errors
    /// Says which checks do not hold.
    pub fn into_trusted(self) -> Result<TrustedGuest, Refusal> {
        self.outcome
    }
}

/// Judges `bundle` against `policy`, which must not be older than the caller's `floors`.
///
/// `endorsements` is the JSON of dcap-qvl's `QuoteCollateralV3`, from whoever carries it. `report_data` is what
/// the quote must bind on this connection: [`cocoon_evidence::TlsBinding`] or [`cocoon_evidence::FreshBinding`]
/// over [`Policy::role`] and the bundle's own log. `now_s` is the caller's clock, seconds since 1970.
pub fn appraise(
    policy: &Policy,
    floors: Floors,
    bundle: &EvidenceBundle,
    endorsements: &[u8],
    report_data: &ReportData,
    now_s: u64,
) -> Appraisal {
    let (HardwareTerms::Tdx(tdx), Platform::Tdx { quote }) = (&policy.terms().hardware, &bundle.platform);
    let mut rows = Rows::new(policy.is_simulated());
    check_policy_number(&mut rows, policy, floors);
    check_policy_expiry(&mut rows, policy, now_s);
    let parsed = check_format(&mut rows, quote);
    let claims = check_authenticity(&mut rows, policy, parsed.as_ref(), endorsements, now_s);
    check_tcb(&mut rows, tdx, floors, claims.as_ref());
    let claimed = parsed.as_ref().map(ParsedQuote::claimed);
    check_report_data(&mut rows, report_data, claimed);
    check_td(&mut rows, tdx, claimed);
    check_registers(&mut rows, tdx, claimed);
    events::check(&mut rows, policy, bundle, claimed);

    let report = rows.into_report(policy);
    let outcome = match report.refusal() {
        Some(refusal) => Err(refusal),
        None => trusted(policy, bundle, claims).ok_or_else(|| Refusal {
            class: RefusalClass::Signature,
            checks: vec![],
        }),
    };
    Appraisal { report, outcome }
}

/// The report is the proof; what is missing here would have failed a row.
fn trusted(policy: &Policy, bundle: &EvidenceBundle, claims: Option<QuoteClaims>) -> Option<TrustedGuest> {
    let pck = claims?.platform.pck;
    Some(TrustedGuest {
        events: bundle.events.clone(),
        usage_key: bundle.events.payload(EventKind::UsageKey)?.try_into().ok()?,
        platform: PlatformId {
            fmspc: pck.fmspc,
            ppid: pck.ppid,
        },
        simulated: policy.is_simulated(),
    })
}

/// Collects the rows, and knows whether what the quote says is proven.
struct Rows {
    simulated: bool,
    /// Set once the platform root is known to vouch for the quote.
    authentic: bool,
    checks: Vec<Check>,
}

/// A row before its verdict.
struct Row {
    name: Cow<'static, str>,
    expected: String,
    actual: String,
    fault: Fault,
    class: RefusalClass,
}

impl Rows {
    fn new(simulated: bool) -> Self {
        Self {
            simulated,
            authentic: false,
            checks: vec![],
        }
    }

    fn push(&mut self, row: Row, verdict: Verdict) {
        self.checks.push(Check {
            name: row.name,
            expected: row.expected,
            actual: row.actual,
            verdict,
            fault: row.fault,
            class: row.class,
        });
    }

    /// A row that does not depend on the platform.
    fn local(&mut self, row: Row, holds: bool) {
        self.push(row, if holds { Verdict::Pass } else { Verdict::Fail });
    }

    /// A row about what the quote says: nothing that is unproven can hold.
    fn proven(&mut self, row: Row, holds: bool) {
        let proof = self.proof();
        self.push(row, if holds { proof } else { Verdict::Fail });
    }

    fn proof(&self) -> Verdict {
        match (self.authentic, self.simulated) {
            (false, _) => Verdict::Skip,
            (true, true) => Verdict::Simulated,
            (true, false) => Verdict::Pass,
        }
    }

    fn into_report(self, policy: &Policy) -> Report {
        Report {
            simulated: self.simulated,
            policy_number: policy.terms().number,
            policy_signer: policy.signer().map(|key| key.to_string()),
            checks: self.checks,
        }
    }
}

fn check_policy_number(rows: &mut Rows, policy: &Policy, floors: Floors) {
    let number = policy.terms().number;
    let row = Row {
        name: "policy number".into(),
        expected: format!("at least {}", floors.policy_number),
        actual: number.to_string(),
        fault: Fault::Policy,
        class: RefusalClass::Policy,
    };
    rows.local(row, number >= floors.policy_number);
}

fn check_policy_expiry(rows: &mut Rows, policy: &Policy, now_s: u64) {
    let expires_s = policy.terms().expires_s;
    let row = Row {
        name: "policy expiry".into(),
        expected: format!("before {}", date_text(expires_s)),
        actual: date_text(now_s),
        fault: Fault::Policy,
        class: RefusalClass::Freshness,
    };
    rows.local(row, now_s < expires_s);
}

fn check_format<'a>(rows: &mut Rows, quote: &'a [u8]) -> Option<ParsedQuote<'a>> {
    let parsed = ParsedQuote::parse(quote);
    let row = Row {
        name: "quote format".into(),
        expected: "a TDX quote, version 4 or 5, every byte accounted for".into(),
        actual: match &parsed {
            Ok(_) => format!("{} bytes", quote.len()),
            Err(error) => error.to_string(),
        },
        fault: Fault::Host,
        class: RefusalClass::Signature,
    };
    rows.local(row, parsed.is_ok());
    parsed.ok()
}

/// Rows "endorsements", "quote signature" and "endorsement freshness".
fn check_authenticity(
    rows: &mut Rows,
    policy: &Policy,
    parsed: Option<&ParsedQuote<'_>>,
    endorsements: &[u8],
    now_s: u64,
) -> Option<QuoteClaims> {
    let collateral = endorsements::parse(endorsements);
    let row = Row {
        name: "endorsements".into(),
        expected: "collateral for a TDX quote".into(),
        actual: match &collateral {
            Ok(_) => format!("{} bytes", endorsements.len()),
            Err(error) => error.to_string(),
        },
        fault: Fault::Host,
        class: RefusalClass::Signature,
    };
    rows.local(row, collateral.is_ok());

    let authenticity = match (parsed, &collateral) {
        (Some(quote), Ok(collateral)) => authenticity(policy, quote, collateral, now_s),
        _ => Authenticity::Refused("nothing to verify".into()),
    };
    let (claims, reason) = match authenticity {
        Authenticity::Proven(claims) => {
            rows.authentic = true;
            (Some(claims), None)
        }
        Authenticity::Stale(claims) => {
            push_signature(rows, policy, None);
            push_freshness(rows, Some(&claims), now_s, Verdict::Fail);
            return None;
        }
        Authenticity::Refused(reason) => (None, Some(reason)),
    };
    push_signature(rows, policy, reason);
    let verdict = rows.proof();
    push_freshness(rows, claims.as_ref(), now_s, verdict);
    claims
}

enum Authenticity {
    Proven(QuoteClaims),
    /// Everything verifies, but at another time than now.
    Stale(QuoteClaims),
    Refused(String),
}

fn authenticity(
    policy: &Policy,
    quote: &ParsedQuote<'_>,
    collateral: &dcap_qvl::QuoteCollateralV3,
    now_s: u64,
) -> Authenticity {
    let reason = match quote.verify(policy.root(), collateral, now_s) {
        Ok(claims) => return Authenticity::Proven(claims),
        Err(reason) => reason,
    };
    let at_issue = endorsements::claimed_issue_s(collateral)
        .and_then(|issue_s| quote.verify(policy.root(), collateral, issue_s).ok());
    match at_issue {
        Some(claims) => Authenticity::Stale(claims),
        None => Authenticity::Refused(reason),
    }
}

/// `reason`: why it does not verify.
fn push_signature(rows: &mut Rows, policy: &Policy, reason: Option<String>) {
    let verdict = match (&reason, rows.simulated) {
        (Some(_), _) => Verdict::Fail,
        (None, true) => Verdict::Simulated,
        (None, false) => Verdict::Pass,
    };
    let (class, fault) = reason
        .as_deref()
        .map_or((RefusalClass::Signature, Fault::Host), class_of);
    let row = Row {
        name: "quote signature".into(),
        expected: policy.root().label(),
        actual: reason.unwrap_or_else(|| "verified up to that root".into()),
        fault,
        class,
    };
    rows.push(row, verdict);
}

/// dcap-qvl judges security versions and attributes after the signatures, but reports all in one error. Its
/// version is pinned, and the texts only choose the class of a refusal.
fn class_of(reason: &str) -> (RefusalClass, Fault) {
    const TCB: [&str; 2] = ["No matching TCB level found", "TCB status is invalid: Revoked"];
    const ATTRIBUTES: [&str; 7] = [
        "Debug mode is enabled",
        "TD profiling is enabled",
        "Reserved bits in TD attributes are set",
        "TD migration is enabled",
        "SERVTD_EXT is enabled",
        "SEPT_VE_DISABLE is not enabled",
        "Invalid MR service TD",
    ];
    if TCB.contains(&reason) {
        (RefusalClass::Tcb, Fault::Platform)
    } else if ATTRIBUTES.contains(&reason) {
        (RefusalClass::Policy, Fault::Host)
    } else {
        (RefusalClass::Signature, Fault::Host)
    }
}

fn push_freshness(rows: &mut Rows, claims: Option<&QuoteClaims>, now_s: u64, verdict: Verdict) {
    let row = Row {
        name: "endorsement freshness".into(),
        expected: claims.map_or_else(
            || "issued by the platform root and not expired".into(),
            |claims| {
                format!(
                    "{} to {}",
                    date_text(claims.latest_issue_date),
                    date_text(claims.earliest_expiration_date)
                )
            },
        ),
        actual: date_text(now_s),
        fault: Fault::Host,
        class: RefusalClass::Freshness,
    };
    rows.push(row, verdict);
}

fn check_tcb(rows: &mut Rows, tdx: &TdxExpectations, floors: Floors, claims: Option<&QuoteClaims>) {
    let terms = &tdx.tcb;
    let number_min = terms.evaluation_number_min.max(floors.tcb_evaluation_number);
    let status = Row {
        name: "TCB status".into(),
        expected: any_of(&terms.accepted),
        actual: claims.map_or_else(unproven, |claims| {
            let mut text = claims.tcb.status.to_string();
            if !claims.tcb.advisory_ids.is_empty() {
                text += &format!(" ({})", claims.tcb.advisory_ids.join(", "));
            }
            text
        }),
        fault: Fault::Platform,
        class: RefusalClass::Tcb,
    };
    let number = Row {
        name: "TCB evaluation number".into(),
        expected: format!("at least {number_min}"),
        actual: claims.map_or_else(unproven, |claims| claims.tcb.eval_data_number.to_string()),
        fault: Fault::Host,
        class: RefusalClass::Tcb,
    };
    let Some(claims) = claims else {
        rows.push(status, Verdict::Skip);
        rows.push(number, Verdict::Skip);
        return;
    };
    let accepted = terms.accepted.iter().any(|name| name.0 == claims.tcb.status);
    rows.proven(status, accepted);
    rows.proven(number, claims.tcb.eval_data_number >= number_min);
}

fn check_report_data(rows: &mut Rows, expected: &ReportData, claimed: Option<&TDReport10>) {
    let row = |actual| Row {
        name: "report data".into(),
        expected: hex::encode(expected.0),
        actual,
        fault: Fault::Network,
        class: RefusalClass::Channel,
    };
    match claimed {
        Some(report) => rows.proven(
            row(hex::encode(report.report_data)),
            report.report_data == expected.0,
        ),
        None => rows.push(row(unproven()), Verdict::Skip),
    }
}

fn check_td(rows: &mut Rows, tdx: &TdxExpectations, claimed: Option<&TDReport10>) {
    let bits = |bytes| Bits64(u64::from_le_bytes(bytes));
    let attributes = claimed.map(|report| bits(report.td_attributes));
    compare(rows, "TD attributes", Fault::Host, &tdx.td.attributes, attributes);
    let xfam = claimed.map(|report| bits(report.xfam));
    compare(rows, "XFAM", Fault::Host, &tdx.td.xfam, xfam);
}

fn check_registers(rows: &mut Rows, tdx: &TdxExpectations, claimed: Option<&TDReport10>) {
    type Field = fn(&TDReport10) -> [u8; 48];
    let terms = &tdx.registers;
    let registers: [(_, _, &Expect<Digest48>, Field); 7] = [
        ("MRTD", Fault::GuestImage, &terms.mrtd, |report| report.mr_td),
        ("RTMR0", Fault::Host, &terms.rtmr0, |report| report.rt_mr0),
        ("RTMR1", Fault::GuestImage, &terms.rtmr1, |report| report.rt_mr1),
        ("RTMR2", Fault::GuestImage, &terms.rtmr2, |report| report.rt_mr2),
        ("MRCONFIGID", Fault::Host, &terms.mr_config_id, |report| {
            report.mr_config_id
        }),
        ("MROWNER", Fault::Host, &terms.mr_owner, |report| report.mr_owner),
        ("MROWNERCONFIG", Fault::Host, &terms.mr_owner_config, |report| {
            report.mr_owner_config
        }),
    ];
    for (name, fault, expected, field) in registers {
        let actual = claimed.map(|report| Digest48(field(report)));
        compare(rows, name, fault, expected, actual);
    }
}

/// A row about a value that the policy lists. One that the policy does not compare is SKIP, which refuses the
/// guest: such a policy is for looking, not for trusting.
fn compare<T: PartialEq + std::fmt::Display>(
    rows: &mut Rows,
    name: impl Into<Cow<'static, str>>,
    fault: Fault,
    expected: &Expect<T>,
    actual: Option<T>,
) {
    let mut row = Row {
        name: name.into(),
        expected: expected.to_string(),
        actual: actual.as_ref().map_or_else(unproven, ToString::to_string),
        fault,
        class: RefusalClass::Policy,
    };
    match actual.as_ref().map(|actual| expected.compare(actual)) {
        Some(Comparison::Equal(profile)) => {
            if let Some(profile) = profile {
                row.actual += &format!(" ({profile})");
            }
            rows.proven(row, true);
        }
        Some(Comparison::Different) => rows.proven(row, false),
        Some(Comparison::NotCompared) => not_compared(rows, row),
        None => rows.push(row, Verdict::Skip),
    }
}

fn not_compared(rows: &mut Rows, row: Row) {
    let row = Row {
        fault: Fault::Policy,
        ..row
    };
    rows.push(row, Verdict::Skip);
}

fn any_of<T: std::fmt::Display>(values: &[T]) -> String {
    values
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" or ")
}

fn unproven() -> String {
    "not known".into()
}
