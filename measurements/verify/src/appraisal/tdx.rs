//! Rows about a TDX quote: format, authenticity, security version, channel, configuration and registers.

use cocoon_evidence::{Digest48, ReportData};

use super::{Input, PlatformId, ProvenPlatform, Row, Rows, any_of, compare, unproven};
use crate::{
    date::date_text,
    judgement::FailureClass,
    policy::{Bits64, Expect, Floors, TdxExpectations},
    report::{Fault, RefusalClass, Verdict},
    root::Root,
    tdx::{
        self, Collateral, CollateralFormatError, Quote, TdField, TdReport, VerifiedCollateral, VerifiedPck,
        VerifiedQuote, VerifyError,
    },
};

/// What the endorsements say about TDX platforms, and how much of it `root` is known to vouch for. That does not depend
/// on the time; whatever uses it judges the dates.
#[derive(Debug)]
pub(super) struct Endorsed<'a> {
    root: &'a Root,
    collateral_bytes: usize,
    collateral: Result<Collateral, CollateralFormatError>,
    /// Once it was needed.
    verified: Option<Result<VerifiedCollateral, Reason>>,
    /// Of the last quote, if that had a good one: the next is mostly of the same platform.
    pck: Option<VerifiedPck>,
}

impl<'a> Endorsed<'a> {
    pub(super) fn new(root: &'a Root, collateral: &[u8]) -> Self {
        Self {
            root,
            collateral_bytes: collateral.len(),
            collateral: Collateral::parse(collateral),
            verified: None,
            pck: None,
        }
    }

    /// The PCK of the platform that `quote` claims to be of.
    fn pck(&mut self, quote: &Quote<'_>) -> Result<VerifiedPck, Reason> {
        if let Some(pck) = self.pck.as_ref().filter(|pck| pck.is_named_by(quote)) {
            return Ok(pck.clone());
        }
        let pck = self.verified()?.verify_pck(quote.pck_chain());
        let pck = pck.map_err(|error| Reason::from(&error))?;
        self.pck = Some(pck.clone());
        Ok(pck)
    }

    fn verified(&mut self) -> Result<VerifiedCollateral, Reason> {
        let Ok(collateral) = &self.collateral else {
            return Err(nothing_to_verify());
        };
        let verify = || {
            let verified = collateral.verify(self.root);
            verified.map_err(|error| Reason {
                class: error.class(),
                text: error.to_string(),
            })
        };
        self.verified.get_or_insert_with(verify).clone()
    }
}

/// Why a quote does not verify.
#[derive(Debug, Clone)]
struct Reason {
    class: FailureClass,
    text: String,
}

impl From<&VerifyError> for Reason {
    fn from(error: &VerifyError) -> Self {
        Self {
            class: error.class(),
            text: error.to_string(),
        }
    }
}

fn nothing_to_verify() -> Reason {
    Reason {
        class: FailureClass::Signature,
        text: "nothing to verify".into(),
    }
}

/// Which machine it is, if the quote is authentic.
pub(super) fn check(
    rows: &mut Rows,
    tdx: &TdxExpectations,
    quote: &[u8],
    input: &Input<'_>,
    endorsed: &mut Endorsed<'_>,
) -> Option<ProvenPlatform> {
    let parsed = check_format(rows, quote);
    let verified = check_authenticity(rows, parsed.as_ref(), endorsed, input.now_s);
    check_tcb(rows, tdx, input.floors, verified.as_ref(), input.now_s);
    let claimed = parsed.as_ref().and_then(Quote::td_report);
    let claimed = claimed.as_ref();
    check_report_data(rows, input.report_data, claimed);
    check_td(rows, tdx, claimed);
    check_registers(rows, tdx, claimed);
    check_rtmr3(rows, input.bundle.events.replay(), claimed);
    let verified = verified?;
    let pck = verified.pck();
    let platform = pck.platform();
    Some(ProvenPlatform {
        id: PlatformId::Tdx {
            fmspc: platform.fmspc,
            ppid: platform.ppid.to_vec(),
        },
        // The last second is inclusive.
        endorsed_until_s: (pck.validity().until_s().saturating_add(1))
            .min(tdx.tcb.grace_until_s(verified.tcb(), input.now_s)),
        tcb_evaluation_number: Some(pck.collateral().evaluation_number()),
    })
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

/// Rows "collateral", "quote signature" and "endorsement freshness".
fn check_authenticity<'a>(
    rows: &mut Rows,
    parsed: Option<&Quote<'a>>,
    endorsed: &mut Endorsed<'_>,
    now_s: u64,
) -> Option<VerifiedQuote<'a>> {
    let root = endorsed.root;
    let row = Row {
        name: "collateral".into(),
        expected: "collateral for a TDX quote".into(),
        actual: match &endorsed.collateral {
            Ok(_) => format!("{} bytes", endorsed.collateral_bytes),
            Err(error) => error.to_string(),
        },
        fault: Fault::Host,
        class: RefusalClass::Signature,
    };
    rows.local(row, endorsed.collateral.is_ok());

    let authenticity = match parsed {
        Some(quote) => authenticity(quote, endorsed, now_s),
        None => nothing_to_verify().into(),
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
        Authenticity::Refused(reason) => (None, Some(reason)),
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
    Refused(Reason),
}

impl From<Reason> for Authenticity<'_> {
    fn from(reason: Reason) -> Self {
        Self::Refused(reason)
    }
}

fn authenticity<'a>(quote: &Quote<'a>, endorsed: &mut Endorsed<'_>, now_s: u64) -> Authenticity<'a> {
    let pck = match endorsed.pck(quote) {
        Ok(pck) => pck,
        Err(reason) => return reason.into(),
    };
    match pck.verify(quote, now_s) {
        Ok(verified) => Authenticity::Proven(verified),
        Err(error @ VerifyError::Validity(_)) => match pck.verify(quote, pck.validity().from_s()) {
            Ok(verified) => Authenticity::Stale(verified),
            // Parts that were never valid together.
            Err(VerifyError::Validity(_)) => Reason::from(&error).into(),
            Err(other) => Reason::from(&other).into(),
        },
        Err(error) => Reason::from(&error).into(),
    }
}

/// `refusal`: why it does not verify.
fn push_signature(rows: &mut Rows, root: &Root, refusal: Option<Reason>) {
    let verdict = match (&refusal, rows.simulated) {
        (Some(_), _) => Verdict::Fail,
        (None, true) => Verdict::Simulated,
        (None, false) => Verdict::Pass,
    };
    let (class, fault) = match refusal {
        Some(Reason {
            class: FailureClass::Tcb,
            ..
        }) => (RefusalClass::Tcb, Fault::Platform),
        _ => (RefusalClass::Signature, Fault::Host),
    };
    let row = Row {
        name: "quote signature".into(),
        expected: root.label(),
        actual: refusal.map_or_else(|| "verified up to that root".into(), |reason| reason.text),
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

/// The log comes from the network; it counts for nothing unless it replays to the register in an authentic quote.
fn check_rtmr3(rows: &mut Rows, replay: Digest48, claimed: Option<&TdReport<'_>>) {
    let rtmr3 = digest(claimed, TdField::Rtmr3);
    compare(rows, "RTMR3", Fault::Host, &Expect::exact(replay), rtmr3.as_ref());
    rows.authentic &= rtmr3 == Some(replay);
}
