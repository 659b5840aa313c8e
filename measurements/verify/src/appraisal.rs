//! The appraisal itself: evidence and endorsements against a policy, row by row.
//!
//! The order of the rows is the order in which failures matter: first whether the evidence is authentic and
//! fresh, then whether it belongs to this connection, then what it says.

mod events;
mod gpu;
mod judged;
mod snp;
mod tdx;

use std::borrow::Cow;

use cocoon_evidence::{
    Endorsements, EndorsementsError, EventKind, EventLog, EvidenceBundle, Platform, ReportData,
};

use crate::{
    date::date_text,
    nvidia::NvidiaRoots,
    policy::{Comparison, Expect, Floors, HardwareTerms, MachineId, Policy},
    report::{Check, Fault, Refusal, RefusalClass, Report, Verdict},
    snp::SnpRoot,
};

/// Which machine it is, as the platform root says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlatformId {
    /// Intel TDX, from the certificate of the quote's signer.
    Tdx {
        /// Family, model, stepping, platform and custom SKU.
        fmspc: [u8; 6],
        /// Platform provisioning id: the same for all guests on one processor package.
        ppid: Vec<u8>,
    },
    /// AMD SEV-SNP.
    Snp {
        /// CHIP_ID of the report; zeros where the platform masks it.
        chip_id: [u8; 64],
    },
}

impl PlatformId {
    /// As `[machines]` of a policy names it.
    fn machine(&self) -> MachineId {
        match self {
            Self::Tdx { ppid, .. } => MachineId(ppid.clone()),
            Self::Snp { chip_id } => MachineId(chip_id.to_vec()),
        }
    }
}

/// A guest that met its policy on this connection. Only [`Appraisal::into_trusted`] hands it out.
#[derive(Debug, Clone)]
pub struct TrustedGuest {
    events: EventLog,
    usage_key: [u8; 32],
    platform: PlatformId,
    simulated: bool,
    valid_until_s: u64,
    tcb_evaluation_number: Option<u32>,
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

    /// From this second on (since 1970) the same appraisal can end otherwise, because the policy has expired, a grace
    /// period that it gives, or an endorsement of the platform or of a GPU: a certificate, a revocation list, a RIM
    /// file's signer, an OCSP response. Who remembers a verdict has to forget it by then.
    pub fn valid_until_s(&self) -> u64 {
        self.valid_until_s
    }

    /// Of the endorsements that it was judged by, where the vendor numbers them (TDX). Who remembers it as a floor is
    /// not shown older ones again.
    pub fn tcb_evaluation_number(&self) -> Option<u32> {
        self.tcb_evaluation_number
    }
}

/// What an [`Appraiser`] found.
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

/// Roots that no policy names.
#[derive(Debug, Clone)]
pub struct VendorRoots {
    /// AMD's.
    pub snp: SnpRoot,
    /// NVIDIA's.
    pub nvidia: NvidiaRoots,
}

impl Default for VendorRoots {
    /// The vendors' own.
    fn default() -> Self {
        Self {
            snp: SnpRoot::amd(),
            nvidia: NvidiaRoots::pinned(),
        }
    }
}

/// What is judged, and by what.
struct Input<'a> {
    policy: &'a Policy,
    floors: Floors,
    bundle: &'a EvidenceBundle,
    report_data: &'a ReportData,
    now_s: u64,
}

/// Judges evidence by one policy and one set of endorsements, as of one second.
///
/// A client judges two bundles of each guest that it meets: the certificate's and a fresh one. What the vendors say is
/// the same for both, so what was verified of it (the collateral's signatures, the PCK that it vouches for, GPUs whose
/// evidence is the same byte for byte) is verified once. Nothing here outlives policy, endorsements and second: another
/// one of these is another appraiser, and no verdict depends on what was judged before.
#[derive(Debug)]
pub struct Appraiser<'a> {
    policy: &'a Policy,
    floors: Floors,
    now_s: u64,
    roots: VendorRoots,
    endorsements_bytes: usize,
    endorsements: Result<Endorsements, EndorsementsError>,
    /// Where the policy is for TDX.
    tdx: Option<tdx::Endorsed<'a>>,
    gpus: gpu::Judged,
}

impl<'a> Appraiser<'a> {
    /// `policy` must not be older than the caller's `floors`. `endorsements` are [`Endorsements`], encoded, from whoever
    /// carries them. `now_s` is the caller's clock, seconds since 1970.
    pub fn new(policy: &'a Policy, floors: Floors, endorsements: &[u8], now_s: u64) -> Self {
        danger::appraiser_with_roots(policy, floors, endorsements, now_s, VendorRoots::default())
    }

    /// Judges `bundle`. `report_data` is what the platform's evidence must bind on this connection:
    /// [`cocoon_evidence::TlsBinding`] or [`cocoon_evidence::FreshBinding`] over [`Policy::role`] and the bundle's own
    /// log.
    pub fn appraise(&mut self, bundle: &EvidenceBundle, report_data: &ReportData) -> Appraisal {
        let policy = self.policy;
        let input = Input {
            policy,
            floors: self.floors,
            bundle,
            report_data,
            now_s: self.now_s,
        };
        let mut rows = Rows::new(policy.is_simulated());
        check_policy_number(&mut rows, policy, input.floors);
        check_policy_expiry(&mut rows, policy, input.now_s);
        check_endorsements(&mut rows, self.endorsements_bytes, &self.endorsements);
        let none = Endorsements::default();
        let endorsements = self.endorsements.as_ref().unwrap_or(&none);
        let platform = match (&policy.terms().hardware, &bundle.platform) {
            (HardwareTerms::Tdx(terms), Platform::Tdx { quote }) => {
                let endorsed = self.tdx.as_mut().expect("a policy for TDX has a root");
                tdx::check(&mut rows, terms, quote, &input, endorsed)
            }
            (HardwareTerms::Snp(terms), Platform::Snp { report }) => {
                snp::check(&mut rows, terms, report, &input, (endorsements, &self.roots.snp))
            }
            _ => {
                refuse_platform(&mut rows, policy, &bundle.platform);
                None
            }
        };
        check_machine(&mut rows, policy, platform.as_ref());
        events::check(&mut rows, policy, bundle);
        let vendor = (endorsements, &self.roots.nvidia);
        let gpu_until_s = gpu::check(&mut rows, &input, vendor, &mut self.gpus);

        let report = rows.into_report(policy);
        let outcome = match report.refusal() {
            Some(refusal) => Err(refusal),
            None => trusted(policy, bundle, platform, gpu_until_s).ok_or_else(|| Refusal {
                class: RefusalClass::Signature,
                checks: vec![],
            }),
        };
        Appraisal { report, outcome }
    }
}

/// What makes a guest trusted that no vendor vouches for.
pub mod danger {
    use super::{Appraiser, Endorsements, Floors, Policy, VendorRoots, gpu, tdx};

    /// [`Appraiser::new`] with other roots than the vendors', for tests with a vendor of their own.
    pub fn appraiser_with_roots<'a>(
        policy: &'a Policy,
        floors: Floors,
        endorsements: &[u8],
        now_s: u64,
        roots: VendorRoots,
    ) -> Appraiser<'a> {
        let decoded = Endorsements::decode(endorsements);
        let collateral = decoded.as_ref().map_or(&[][..], |decoded| &decoded.tdx);
        Appraiser {
            policy,
            floors,
            now_s,
            roots,
            endorsements_bytes: endorsements.len(),
            tdx: policy.root().map(|root| tdx::Endorsed::new(root, collateral)),
            endorsements: decoded,
            gpus: gpu::Judged::default(),
        }
    }
}

/// The report is the proof; what is missing here would have failed a row.
fn trusted(
    policy: &Policy,
    bundle: &EvidenceBundle,
    platform: Option<ProvenPlatform>,
    gpu_until_s: u64,
) -> Option<TrustedGuest> {
    let platform = platform?;
    Some(TrustedGuest {
        events: bundle.events.clone(),
        usage_key: bundle.events.payload(EventKind::UsageKey)?.try_into().ok()?,
        simulated: policy.is_simulated(),
        valid_until_s: policy
            .terms()
            .expires_s
            .min(platform.endorsed_until_s)
            .min(gpu_until_s),
        tcb_evaluation_number: platform.tcb_evaluation_number,
        platform: platform.id,
    })
}

/// What is known of a platform whose evidence is authentic.
struct ProvenPlatform {
    id: PlatformId,
    /// The first second at which an endorsement, or a grace period for it, has ended.
    endorsed_until_s: u64,
    tcb_evaluation_number: Option<u32>,
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

/// Without endorsements everything that needs them fails after this row.
fn check_endorsements(rows: &mut Rows, bytes: usize, decoded: &Result<Endorsements, EndorsementsError>) {
    let row = Row {
        name: "endorsements".into(),
        expected: "what the vendors publish about the platform".into(),
        actual: match decoded {
            Ok(_) => format!("{bytes} bytes"),
            Err(error) => error.to_string(),
        },
        fault: Fault::Host,
        class: RefusalClass::Signature,
    };
    rows.local(row, decoded.is_ok());
}

fn refuse_platform(rows: &mut Rows, policy: &Policy, presented: &Platform) {
    let row = Row {
        name: "platform".into(),
        expected: policy.terms().hardware.kind().name().to_owned(),
        actual: presented.name().to_owned(),
        fault: Fault::Host,
        class: RefusalClass::Policy,
    };
    rows.local(row, false);
}

fn check_machine(rows: &mut Rows, policy: &Policy, platform: Option<&ProvenPlatform>) {
    let Some(terms) = &policy.terms().machines else {
        return;
    };
    let id = platform.map(|platform| platform.id.machine());
    let row = Row {
        name: "machine".into(),
        expected: terms.to_string(),
        actual: id.as_ref().map_or_else(unproven, ToString::to_string),
        fault: Fault::Platform,
        class: RefusalClass::Policy,
    };
    match id {
        Some(id) => rows.proven(row, terms.accepts(&id)),
        None => rows.push(row, Verdict::Skip),
    }
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
