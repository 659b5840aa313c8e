//! The appraisal itself: evidence and endorsements against a policy, row by row.
//!
//! The order of the rows is the order in which failures matter: first whether the evidence is authentic and
//! fresh, then whether it belongs to this connection, then what it says.

mod events;

use std::borrow::Cow;

use cocoon_evidence::{Digest48, EventKind, EventLog, EvidenceBundle, Platform, ReportData};

use crate::{
    endorsements::date_text,
    judgement::FailureClass,
    policy::{Bits64, Comparison, Expect, Floors, Policy, TdxExpectations},
    report::{Check, Fault, Refusal, RefusalClass, Report, Verdict},
    root::Root,
    tdx::{self, Collateral, Quote, TdField, TdReport, VerifiedQuote, VerifyError},
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
    let Platform::Tdx { quote } = &bundle.platform;
    let mut rows = Rows::new(policy.is_simulated());
    check_policy_number(&mut rows, policy, floors);
    check_policy_expiry(&mut rows, policy, now_s);
    let Some((tdx, root)) = policy.tdx() else {
        return refuse_platform(rows, policy);
    };
    let parsed = check_format(&mut rows, quote);
    let verified = check_authenticity(&mut rows, root, parsed.as_ref(), endorsements, now_s);
    check_tcb(&mut rows, tdx, floors, verified.as_ref(), now_s);
    let claimed = parsed.as_ref().and_then(Quote::td_report);
    let claimed = claimed.as_ref();
    check_report_data(&mut rows, report_data, claimed);
    check_td(&mut rows, tdx, claimed);
    check_registers(&mut rows, tdx, claimed);
    events::check(&mut rows, policy, bundle, claimed);

    let report = rows.into_report(policy);
    let outcome = match report.refusal() {
        Some(refusal) => Err(refusal),
        None => trusted(policy, bundle, verified.as_ref()).ok_or_else(|| Refusal {
            class: RefusalClass::Signature,
            checks: vec![],
        }),
    };
    Appraisal { report, outcome }
}

/// The report is the proof; what is missing here would have failed a row.
fn trusted(
    policy: &Policy,
    bundle: &EvidenceBundle,
    verified: Option<&VerifiedQuote<'_>>,
) -> Option<TrustedGuest> {
    let platform = verified?.pck().platform();
    Some(TrustedGuest {
        events: bundle.events.clone(),
        usage_key: bundle.events.payload(EventKind::UsageKey)?.try_into().ok()?,
        platform: PlatformId {
            fmspc: platform.fmspc,
            ppid: platform.ppid.to_vec(),
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

/// The bundle holds a TDX quote, the policy is for another platform.
fn refuse_platform(mut rows: Rows, policy: &Policy) -> Appraisal {
    let row = Row {
        name: "platform".into(),
        expected: policy.terms().hardware.kind().name().to_owned(),
        actual: "tdx".to_owned(),
        fault: Fault::Host,
        class: RefusalClass::Policy,
    };
    rows.local(row, false);
    let report = rows.into_report(policy);
    let failed = |check: &&Check| check.verdict == Verdict::Fail;
    let refusal = Refusal {
        class: RefusalClass::Policy,
        checks: report.checks.iter().filter(failed).cloned().collect(),
    };
    Appraisal {
        outcome: Err(refusal),
        report,
    }
}

/// The guest's agent takes the platform's padding away, so nothing at all may follow.
fn check_format<'a>(rows: &mut Rows, quote: &'a [u8]) -> Option<Quote<'a>> {
    let parsed = Quote::parse_unpadded(quote);
    let holds = parsed.as_ref().is_ok_and(|quote| quote.td_report().is_some());
    let row = Row {
        name: "quote format".into(),
        expected: "a TDX quote, version 4 or 5, every byte accounted for".into(),
        actual: match &parsed {
            Ok(parsed) => format!("{} bytes, {}", quote.len(), parsed.kind().name()),
            Err(error) => error.to_string(),
        },
        fault: Fault::Host,
        class: RefusalClass::Signature,
    };
    rows.local(row, holds);
    parsed.ok().filter(|_| holds)
}

/// Rows "endorsements", "quote signature" and "endorsement freshness".
fn check_authenticity<'a>(
    rows: &mut Rows,
    root: &Root,
    parsed: Option<&Quote<'a>>,
    endorsements: &[u8],
    now_s: u64,
) -> Option<VerifiedQuote<'a>> {
    let collateral = Collateral::parse(endorsements);
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
        (Some(quote), Ok(collateral)) => authenticity(root, quote, collateral, now_s),
        _ => Authenticity::Refused(FailureClass::Signature, "nothing to verify".into()),
    };
    let (verified, refusal) = match authenticity {
        Authenticity::Proven(verified) => {
            rows.authentic = true;
            (Some(verified), None)
        }
        Authenticity::Stale(verified) => {
            push_signature(rows, root, None);
            push_freshness(rows, Some(&verified), now_s, Verdict::Fail);
            return None;
        }
        Authenticity::Refused(class, reason) => (None, Some((class, reason))),
    };
    push_signature(rows, root, refusal);
    let verdict = rows.proof();
    push_freshness(rows, verified.as_ref(), now_s, verdict);
    verified
}

enum Authenticity<'a> {
    Proven(VerifiedQuote<'a>),
    /// Everything verifies, but at another time than now.
    Stale(VerifiedQuote<'a>),
    Refused(FailureClass, String),
}

fn authenticity<'a>(root: &Root, quote: &Quote<'a>, collateral: &Collateral, now_s: u64) -> Authenticity<'a> {
    let collateral = match collateral.verify(root) {
        Ok(collateral) => collateral,
        Err(error) => return Authenticity::Refused(error.class(), error.to_string()),
    };
    let refused = |error: &VerifyError| Authenticity::Refused(error.class(), error.to_string());
    let pck = match collateral.verify_pck(quote.pck_chain()) {
        Ok(pck) => pck,
        Err(error) => return refused(&error),
    };
    match pck.verify(quote, now_s) {
        Ok(verified) => Authenticity::Proven(verified),
        Err(error @ VerifyError::Validity(_)) => match pck.verify(quote, pck.validity().from_s()) {
            Ok(verified) => Authenticity::Stale(verified),
            // Parts that were never valid together.
            Err(VerifyError::Validity(_)) => refused(&error),
            Err(other) => refused(&other),
        },
        Err(error) => refused(&error),
    }
}

/// `refusal`: why it does not verify.
fn push_signature(rows: &mut Rows, root: &Root, refusal: Option<(FailureClass, String)>) {
    let verdict = match (&refusal, rows.simulated) {
        (Some(_), _) => Verdict::Fail,
        (None, true) => Verdict::Simulated,
        (None, false) => Verdict::Pass,
    };
    let (class, fault) = match refusal {
        Some((FailureClass::Tcb, _)) => (RefusalClass::Tcb, Fault::Platform),
        _ => (RefusalClass::Signature, Fault::Host),
    };
    let row = Row {
        name: "quote signature".into(),
        expected: root.label(),
        actual: refusal.map_or_else(|| "verified up to that root".into(), |(_, reason)| reason),
        fault,
        class,
    };
    rows.push(row, verdict);
}

fn push_freshness(rows: &mut Rows, verified: Option<&VerifiedQuote<'_>>, now_s: u64, verdict: Verdict) {
    let row = Row {
        name: "endorsement freshness".into(),
        expected: verified.map_or_else(
            || "issued by the platform root and not expired".into(),
            |verified| {
                let validity = verified.pck().validity();
                format!(
                    "{} to {}",
                    date_text(validity.from_s()),
                    date_text(validity.until_s())
                )
            },
        ),
        actual: date_text(now_s),
        fault: Fault::Host,
        class: RefusalClass::Freshness,
    };
    rows.push(row, verdict);
}

fn check_tcb(
    rows: &mut Rows,
    tdx: &TdxExpectations,
    floors: Floors,
    verified: Option<&VerifiedQuote<'_>>,
    now_s: u64,
) {
    let terms = &tdx.tcb;
    let number_min = terms.evaluation_number_min.max(floors.tcb_evaluation_number);
    let evaluated = verified.map(|verified| verified.pck().collateral().evaluation_number());
    let judged = verified.map(|verified| terms.judge_status(verified.tcb(), now_s));
    let status = Row {
        name: "TCB status".into(),
        expected: any_of(&terms.accepted),
        actual: verified.map_or_else(unproven, |verified| {
            let tcb = verified.tcb();
            let mut text = tcb.status.to_string();
            if let Some((_, graced)) = judged.filter(|(_, graced)| *graced != tcb.status) {
                text += &format!(", with the grace period {graced}");
            }
            if !tcb.advisories.is_empty() {
                text += &format!(" ({})", tcb.advisories.join(", "));
            }
            text
        }),
        fault: Fault::Platform,
        class: RefusalClass::Tcb,
    };
    let number = Row {
        name: "TCB evaluation number".into(),
        expected: format!("at least {number_min}"),
        actual: evaluated.map_or_else(unproven, |number| number.to_string()),
        fault: Fault::Host,
        class: RefusalClass::Tcb,
    };
    let (Some((accepted, _)), Some(evaluated)) = (judged, evaluated) else {
        rows.push(status, Verdict::Skip);
        rows.push(number, Verdict::Skip);
        return;
    };
    rows.proven(status, accepted);
    rows.proven(number, evaluated >= number_min);
}

fn check_report_data(rows: &mut Rows, expected: &ReportData, claimed: Option<&TdReport<'_>>) {
    let row = |actual| Row {
        name: "report data".into(),
        expected: hex::encode(expected.0),
        actual,
        fault: Fault::Network,
        class: RefusalClass::Channel,
    };
    match claimed.and_then(|report| report.field(TdField::ReportData)) {
        Some(found) => rows.proven(row(hex::encode(found)), found == expected.0),
        None => rows.push(row(unproven()), Verdict::Skip),
    }
}

fn check_td(rows: &mut Rows, tdx: &TdxExpectations, claimed: Option<&TdReport<'_>>) {
    let attributes = claimed.map(|report| Bits64(report.attributes()));
    match claimed.map(tdx::never_accepted) {
        // Whatever the policy states.
        Some(reasons) if !reasons.is_empty() => {
            let row = Row {
                name: "TD attributes".into(),
                expected: tdx.td.attributes.to_string(),
                actual: format!(
                    "{}: {}",
                    attributes.map_or_else(unproven, |bits| bits.to_string()),
                    reasons.join(", ")
                ),
                fault: Fault::Host,
                class: RefusalClass::Policy,
            };
            rows.proven(row, false);
        }
        _ => compare(
            rows,
            "TD attributes",
            Fault::Host,
            &tdx.td.attributes,
            attributes.as_ref(),
        ),
    }
    let xfam = claimed.map(|report| Bits64(report.xfam()));
    compare(rows, "XFAM", Fault::Host, &tdx.td.xfam, xfam.as_ref());
}

fn check_registers(rows: &mut Rows, tdx: &TdxExpectations, claimed: Option<&TdReport<'_>>) {
    let terms = &tdx.registers;
    let registers: [(_, _, &Expect<Digest48>, TdField); 7] = [
        ("MRTD", Fault::GuestImage, &terms.mrtd, TdField::MrTd),
        ("RTMR0", Fault::Host, &terms.rtmr0, TdField::Rtmr0),
        ("RTMR1", Fault::GuestImage, &terms.rtmr1, TdField::Rtmr1),
        ("RTMR2", Fault::GuestImage, &terms.rtmr2, TdField::Rtmr2),
        (
            "MRCONFIGID",
            Fault::Host,
            &terms.mr_config_id,
            TdField::MrConfigId,
        ),
        ("MROWNER", Fault::Host, &terms.mr_owner, TdField::MrOwner),
        (
            "MROWNERCONFIG",
            Fault::Host,
            &terms.mr_owner_config,
            TdField::MrOwnerConfig,
        ),
    ];
    for (name, fault, expected, field) in registers {
        compare(rows, name, fault, expected, digest(claimed, field).as_ref());
    }
}

fn digest(claimed: Option<&TdReport<'_>>, field: TdField) -> Option<Digest48> {
    let bytes = claimed?.field(field)?;
    bytes.try_into().ok().map(Digest48)
}

/// A row about a value that the policy lists. One that the policy does not compare is SKIP, which refuses the
/// guest: such a policy is for looking, not for trusting.
fn compare<T: PartialEq + std::fmt::Display>(
    rows: &mut Rows,
    name: impl Into<Cow<'static, str>>,
    fault: Fault,
    expected: &Expect<T>,
    actual: Option<&T>,
) {
    let mut row = Row {
        name: name.into(),
        expected: expected.to_string(),
        actual: actual.map_or_else(unproven, ToString::to_string),
        fault,
        class: RefusalClass::Policy,
    };
    match actual.map(|actual| expected.compare(actual)) {
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
