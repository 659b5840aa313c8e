//! A guest on a simulated platform, and the policy that was written for it.

use cocoon_evidence::{
    Digest48, Endorsements, EventKind, EventLog, EvidenceBundle, Platform, ReportData, Role, Rtmr,
    RuntimeEvent, TlsBinding,
};
use cocoon_protocol::simulated::{FromPlatform, ToPlatform};
use cocoon_simulator::{
    InitialRegisters, SIMULATED_TCB_EVALUATION_NUMBER, SIMULATED_TD_ATTRIBUTES, SIMULATED_XFAM,
    SimulatedPlatform, SimulatedTd,
};
use cocoon_verify::{
    Appraisal, Appraiser, Bits64, DocumentTerms, EventTerms, Expect, Floors, GpuEvidenceRule, HardwareTerms,
    POLICY_VERSION, PlatformTerms, Policy, PolicyRole, PolicyTerms, ReadyRule, Refusal, RefusalClass,
    RegisterTerms, Report, TcbStatusName, TcbTerms, TdTerms, TdxExpectations, TrustedGuest, UsageKeyRule,
    VendorRoots, Verdict, danger,
};

pub(crate) const NOW_S: u64 = 1_800_000_000;
pub(crate) const USAGE_KEY: [u8; 32] = [5; 32];
pub(crate) const SPKI: &[u8] = b"SubjectPublicKeyInfo of the TLS key";
pub(crate) const DOCUMENT: &[u8] = b"launch document";
pub(crate) const MODEL: &[u8] = b"0 16 verity 1 ...";

/// A guest on a simulated platform, and the policy that was written for it.
pub(crate) struct World {
    pub(crate) state: tempfile::TempDir,
    pub(crate) platform: SimulatedPlatform,
    pub(crate) terms: PolicyTerms,
    pub(crate) floors: Floors,
    pub(crate) roots: VendorRoots,
}

impl World {
    pub(crate) fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let platform = SimulatedPlatform::open_or_create(state.path(), NOW_S).unwrap();
        let terms = terms(&platform);
        Self {
            state,
            platform,
            terms,
            floors: Floors::default(),
            roots: VendorRoots::default(),
        }
    }

    pub(crate) fn policy(&self) -> Policy {
        Policy::new(self.terms.clone()).unwrap()
    }

    pub(crate) fn endorsements(&self) -> Vec<u8> {
        Endorsements::of_tdx(self.platform.collateral(NOW_S).unwrap()).encode()
    }

    /// A bundle as the honest guest makes it, for its certificate.
    pub(crate) fn bundle(&self) -> EvidenceBundle {
        let mut td = self.platform.start_td(registers());
        let events = boot(&mut td, &honest_events());
        let report_data = tls_report_data(&events);
        quoted(&mut td, events, report_data)
    }

    pub(crate) fn judge(&self, bundle: &EvidenceBundle) -> (Report, Result<TrustedGuest, Refusal>) {
        self.judge_with(
            bundle,
            &self.endorsements(),
            &tls_report_data(&bundle.events),
            NOW_S,
        )
    }

    pub(crate) fn judge_with(
        &self,
        bundle: &EvidenceBundle,
        endorsements: &[u8],
        report_data: &ReportData,
        now_s: u64,
    ) -> (Report, Result<TrustedGuest, Refusal>) {
        let policy = self.policy();
        outcome(
            self.appraiser(&policy, endorsements, now_s)
                .appraise(bundle, report_data),
        )
    }

    /// By `policy`, which is mostly this world's, and with this world's floors and roots.
    pub(crate) fn appraiser<'a>(&self, policy: &'a Policy, endorsements: &[u8], now_s: u64) -> Appraiser<'a> {
        danger::appraiser_with_roots(policy, self.floors, endorsements, now_s, self.roots.clone())
    }

    /// The guest is trusted at `now_s`, and a verdict of that moment is forgotten before this second; from then on it
    /// would not be trusted.
    #[track_caller]
    pub(crate) fn assert_trusted_until(
        &self,
        bundle: &EvidenceBundle,
        endorsements: &[u8],
        now_s: u64,
        until_s: u64,
    ) {
        let judge_at = |now_s| {
            let report_data = tls_report_data(&bundle.events);
            self.judge_with(bundle, endorsements, &report_data, now_s).1
        };
        assert_eq!(judge_at(now_s).unwrap().valid_until_s(), until_s);
        assert!(judge_at(until_s - 1).is_ok(), "trusted until {until_s}");
        assert!(judge_at(until_s).is_err(), "trusted at {until_s}");
    }

    /// The guest is refused, because of exactly these rows.
    #[track_caller]
    pub(crate) fn assert_refused(&self, bundle: &EvidenceBundle, class: RefusalClass, rows: &[&str]) {
        assert_refused(self.judge(bundle), class, rows);
    }
}

pub(crate) fn outcome(appraisal: Appraisal) -> (Report, Result<TrustedGuest, Refusal>) {
    (appraisal.report.clone(), appraisal.into_trusted())
}

#[track_caller]
pub(crate) fn assert_refused(
    (report, trusted): (Report, Result<TrustedGuest, Refusal>),
    class: RefusalClass,
    rows: &[&str],
) {
    let failed: Vec<_> = report
        .checks
        .iter()
        .filter(|check| check.verdict == Verdict::Fail)
        .map(|check| check.name.as_ref())
        .collect();
    assert_eq!(failed, rows, "{report:#?}");
    assert_eq!(trusted.unwrap_err().class, class);
}

pub(crate) fn registers() -> InitialRegisters {
    InitialRegisters {
        mrtd: Digest48::of(b"firmware"),
        rtmr0: Digest48::of(b"hardware"),
        rtmr1: Digest48::of(b"kernel"),
        rtmr2: Digest48::of(b"command line"),
    }
}

pub(crate) fn terms(platform: &SimulatedPlatform) -> PolicyTerms {
    PolicyTerms {
        version: POLICY_VERSION,
        number: 1,
        expires_s: NOW_S + 1000,
        role: PolicyRole::Inference,
        platform: PlatformTerms {
            simulated: true,
            root_pem: platform.root_pem().into(),
        },
        machines: None,
        hardware: HardwareTerms::Tdx(TdxExpectations {
            registers: RegisterTerms {
                mrtd: Expect::exact(registers().mrtd),
                rtmr0: Expect::one_of([Digest48::of(b"other hardware"), registers().rtmr0]),
                rtmr1: Expect::exact(registers().rtmr1),
                rtmr2: Expect::exact(registers().rtmr2),
                mr_config_id: Expect::exact(Digest48::ZERO),
                mr_owner: Expect::exact(Digest48::ZERO),
                mr_owner_config: Expect::exact(Digest48::ZERO),
            },
            td: TdTerms {
                attributes: Expect::exact(Bits64(SIMULATED_TD_ATTRIBUTES)),
                xfam: Expect::exact(Bits64(SIMULATED_XFAM)),
            },
            tcb: TcbTerms {
                accepted: vec![TcbStatusName::UP_TO_DATE],
                evaluation_number_min: SIMULATED_TCB_EVALUATION_NUMBER,
                platform_grace_s: 0,
                qe_grace_s: 0,
            },
        }),
        events: EventTerms {
            launch_document: DocumentTerms::exact(Digest48::of(DOCUMENT)),
            model: Expect::exact(Digest48::of(MODEL)),
            usage_key: UsageKeyRule::Bound,
            gpu_evidence: GpuEvidenceRule::None,
            ready: ReadyRule::Empty,
        },
        nvidia: None,
    }
}

pub(crate) fn honest_events() -> Vec<(EventKind, Vec<u8>)> {
    vec![
        (EventKind::LaunchDocument, DOCUMENT.to_vec()),
        (EventKind::Model, MODEL.to_vec()),
        (EventKind::UsageKey, USAGE_KEY.to_vec()),
        (EventKind::GpuEvidence, vec![]),
        (EventKind::Ready, vec![]),
    ]
}

/// Extends RTMR3 with any events, also with those that an honest log would not take.
pub(crate) fn boot(td: &mut SimulatedTd, events: &[(EventKind, Vec<u8>)]) -> EventLog {
    for (kind, payload) in events {
        let event = RuntimeEvent {
            kind: *kind,
            payload: payload.clone(),
        };
        extend(td, event.digest());
    }
    log(events)
}

pub(crate) fn extend(td: &mut SimulatedTd, digest: Digest48) {
    let register = Rtmr::Rtmr3;
    assert_eq!(
        td.handle(ToPlatform::Extend { register, digest }),
        FromPlatform::Extended
    );
}

/// A log with any events, as it would come from the network.
pub(crate) fn log(events: &[(EventKind, Vec<u8>)]) -> EventLog {
    let array: Vec<_> = events
        .iter()
        .map(|(kind, payload)| RuntimeEvent {
            kind: *kind,
            payload: payload.clone(),
        })
        .collect();
    minicbor::decode(&minicbor::to_vec(&array).unwrap()).unwrap()
}

pub(crate) fn quoted(td: &mut SimulatedTd, events: EventLog, report_data: ReportData) -> EvidenceBundle {
    let request = ToPlatform::Quote {
        report_data: report_data.0,
    };
    let FromPlatform::Quote { quote } = td.handle(request) else {
        panic!("the platform does not quote");
    };
    EvidenceBundle {
        platform: Platform::Tdx { quote },
        events,
        gpu: vec![],
    }
}

pub(crate) fn tls_binding(events: &EventLog) -> TlsBinding<'static> {
    TlsBinding {
        spki: SPKI,
        usage_key: &USAGE_KEY,
        not_before_s: 1,
        not_after_s: 2,
        role: Role::Inference,
        log: events.replay(),
    }
}

pub(crate) fn tls_report_data(events: &EventLog) -> ReportData {
    tls_binding(events).report_data()
}

pub(crate) fn quote_bytes(bundle: &mut EvidenceBundle) -> &mut Vec<u8> {
    match &mut bundle.platform {
        Platform::Tdx { quote } => quote,
        Platform::Snp { report } => report,
    }
}
