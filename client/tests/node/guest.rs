//! A guest that has booted on the simulated platform, and a policy that accepts it.

use std::time::{SystemTime, UNIX_EPOCH};

use cocoon_evidence::{
    Digest32, Digest48, EventKind, EventLog, EvidenceBundle, FreshBinding, FreshEvidence, FreshTree,
    Platform, ReportData,
};
use cocoon_protocol::{
    AccountAddress, LaunchDocument, Limits, ModelVolume, NetworkId, NumericProfile, Prices, Settlement,
    VerityVolume,
    simulated::{FromPlatform, ToPlatform},
};
use cocoon_simulator::{
    InitialRegisters, SIMULATED_TCB_EVALUATION_NUMBER, SIMULATED_TD_ATTRIBUTES, SIMULATED_XFAM,
    SimulatedPlatform, SimulatedTd,
};
use cocoon_verify::{
    Bits64, DocumentTerms, EventTerms, Expect, GpuEvidenceRule, HardwareTerms, POLICY_VERSION, PlatformTerms,
    Policy, PolicyRole, PolicyTerms, ReadyRule, RegisterTerms, TcbStatusName, TcbTerms, TdTerms,
    TdxExpectations, UsageKeyRule,
};
use ed25519_dalek::SigningKey;

pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A new one, with its own root.
pub(crate) fn platform() -> SimulatedPlatform {
    let dir = tempfile::tempdir().unwrap();
    SimulatedPlatform::open_or_create(dir.path(), now_s()).unwrap()
}

pub(crate) fn launch_document() -> LaunchDocument {
    LaunchDocument {
        version: 1,
        model: ModelVolume {
            name: "cocoon-demo".into(),
            verity: VerityVolume {
                data_blocks: 10,
                salt: Digest32::ZERO,
                root_hash: Digest32::of(b"model"),
            },
        },
        numeric_profile: NumericProfile::F32,
        prices: Prices {
            input_nano_per_kilotoken: 1_000_000_000,
            output_nano_per_kilotoken: 3_000_000_000,
        },
        limits: Limits {
            context_tokens_max: 64,
            output_tokens_max: 16,
            requests_max: 1,
        },
        settlement: Settlement {
            network: NetworkId::LOCAL,
            payout_address: AccountAddress(Digest32::of(b"provider")),
            contract_code: cocoon_settlement::deposit_code(),
        },
    }
}

/// A guest that has booted.
pub(crate) struct Guest {
    pub(crate) platform: SimulatedPlatform,
    pub(crate) launch: LaunchDocument,
    pub(crate) usage_key: SigningKey,
    td: SimulatedTd,
    pub(super) log: EventLog,
    registers: InitialRegisters,
}

impl Guest {
    /// `boot` stands for the randomness of one boot.
    pub(crate) fn boot(platform: &SimulatedPlatform, boot: u8) -> Self {
        Self::boot_with(platform, boot, |_| ())
    }

    /// One that measured evidence of a GPU, and does not show it.
    pub(crate) fn boot_with_hidden_gpu(platform: &SimulatedPlatform) -> Self {
        Self::boot_measuring(platform, 1, launch_document(), b"evidence".to_vec())
    }

    /// With another launch document.
    pub(crate) fn boot_with(
        platform: &SimulatedPlatform,
        boot: u8,
        change: impl FnOnce(&mut LaunchDocument),
    ) -> Self {
        let mut launch = launch_document();
        change(&mut launch);
        Self::boot_measuring(platform, boot, launch, vec![])
    }

    fn boot_measuring(
        platform: &SimulatedPlatform,
        boot: u8,
        launch: LaunchDocument,
        gpu_evidence: Vec<u8>,
    ) -> Self {
        let registers = InitialRegisters {
            mrtd: Digest48::of(b"firmware"),
            rtmr0: Digest48::of(b"machine"),
            rtmr1: Digest48::of(b"kernel"),
            rtmr2: Digest48::of(b"command line"),
        };
        let mut guest = Self {
            platform: platform.clone(),
            launch,
            usage_key: SigningKey::from_bytes(&[boot; 32]),
            td: platform.start_td(registers),
            log: EventLog::default(),
            registers,
        };
        let payloads = [
            (
                EventKind::LaunchDocument,
                serde_json::to_vec(&guest.launch).unwrap(),
            ),
            (
                EventKind::Model,
                guest.launch.model.verity.table("/dev/vdb").into_bytes(),
            ),
            (
                EventKind::UsageKey,
                guest.usage_key.verifying_key().to_bytes().to_vec(),
            ),
            (EventKind::GpuEvidence, gpu_evidence),
            (EventKind::Ready, vec![]),
        ];
        for (kind, payload) in payloads {
            let digest = guest.log.push(kind, payload).unwrap();
            let register = cocoon_evidence::Rtmr::Rtmr3;
            let done = guest.td.handle(ToPlatform::Extend { register, digest });
            assert_eq!(done, FromPlatform::Extended);
        }
        guest
    }

    pub(crate) fn bundle(&mut self, report_data: ReportData) -> EvidenceBundle {
        let request = ToPlatform::Quote {
            report_data: report_data.0,
        };
        let FromPlatform::Quote { quote } = self.td.handle(request) else {
            panic!("no quote");
        };
        EvidenceBundle {
            platform: Platform::Tdx { quote },
            events: self.log.clone(),
            gpu: vec![],
        }
    }

    /// A quote over this.
    pub(crate) fn fresh(&mut self, binding: &FreshBinding<'_>) -> FreshEvidence {
        // Somebody else asks at the same time.
        let beside = FreshBinding {
            nonce: &[0; 32],
            ..binding.clone()
        };
        let tree = FreshTree::new(&[beside.leaf(), binding.leaf()]).unwrap();
        tree.answer(1, self.bundle(tree.report_data()))
    }

    pub(crate) fn policy_terms(&self) -> PolicyTerms {
        let digest = |kind| Digest48::of(self.log.payload(kind).unwrap());
        PolicyTerms {
            version: POLICY_VERSION,
            number: 1,
            expires_s: now_s() + 3600,
            role: PolicyRole::Inference,
            platform: PlatformTerms {
                simulated: true,
                root_pem: self.platform.root_pem().to_owned(),
            },
            machines: None,
            hardware: HardwareTerms::Tdx(TdxExpectations {
                registers: RegisterTerms {
                    mrtd: Expect::exact(self.registers.mrtd),
                    rtmr0: Expect::exact(self.registers.rtmr0),
                    rtmr1: Expect::exact(self.registers.rtmr1),
                    rtmr2: Expect::exact(self.registers.rtmr2),
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
                launch_document: DocumentTerms::exact(digest(EventKind::LaunchDocument)),
                model: Expect::exact(digest(EventKind::Model)),
                usage_key: UsageKeyRule::Bound,
                gpu_evidence: GpuEvidenceRule::None,
                ready: ReadyRule::Empty,
            },
            nvidia: None,
        }
    }

    pub(crate) fn policy(&self) -> Policy {
        Policy::new(self.policy_terms()).unwrap()
    }
}
