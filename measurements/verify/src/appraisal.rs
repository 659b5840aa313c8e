//! The appraisal itself: evidence and endorsements against a policy, row by row.

use cocoon_evidence::{EventKind, EventLog, EvidenceBundle, ReportData};

use crate::{
    policy::Policy,
    report::{Refusal, Report},
};

/// Which machine it is, as the platform root says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformId {
    /// Family, model, stepping, platform and custom SKU.
    pub fmspc: [u8; 6],
    /// Platform provisioning id: the same for all guests on one processor package.
    pub ppid: Vec<u8>,
}

/// A guest that met its policy on this connection. Only [`Appraisal::into_trusted`] builds it.
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
        self.events.payload(EventKind::LaunchDocument).unwrap_or_default()
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
    guest: Option<TrustedGuest>,
}

impl Appraisal {
    /// The guest, if every check holds.
    ///
    /// # Errors
    /// Says which checks do not hold.
    pub fn into_trusted(self) -> Result<TrustedGuest, Refusal> {
        match (self.report.refusal(), self.guest) {
            (None, Some(guest)) => Ok(guest),
            (refusal, _) => Err(refusal.unwrap_or(Refusal {
                class: crate::RefusalClass::Signature,
                checks: vec![],
            })),
        }
    }
}

/// Judges `bundle` against `policy`.
///
/// `endorsements` is the JSON of dcap-qvl's `QuoteCollateralV3`, from whoever carries it. `report_data` is what
/// the quote must bind on this connection: [`cocoon_evidence::TlsBinding`] or [`cocoon_evidence::FreshBinding`]
/// over [`Policy::role`] and the bundle's own log. `now_s` is the caller's clock, seconds since 1970.
pub fn appraise(
    policy: &Policy,
    bundle: &EvidenceBundle,
    endorsements: &[u8],
    report_data: &ReportData,
    now_s: u64,
) -> Appraisal {
    let _ = (bundle, endorsements, report_data, now_s);
    Appraisal {
        report: Report {
            simulated: policy.is_simulated(),
            checks: vec![],
        },
        guest: None,
    }
}
