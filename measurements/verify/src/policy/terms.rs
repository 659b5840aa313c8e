//! The rules that a policy states, one type for each table of its file.

use std::fmt;

use cocoon_evidence::{Digest48, Role};
use serde::{Deserialize, Serialize};

use super::{Bits64, Expect, FieldRule, MachineTerms, file::PolicyFile};
use crate::{
    nvidia::NvidiaTerms,
    snp::SnpTerms,
    tdx::{TcbStatus, TcbVerdict, TdxTerms},
};

/// The rules of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PolicyFile", into = "PolicyFile")]
pub struct PolicyTerms {
    /// [`POLICY_VERSION`](super::POLICY_VERSION).
    pub version: u32,
    /// Grows with every policy that replaces another.
    pub number: u64,
    /// Not accepted from then on; seconds since 1970.
    pub expires_s: u64,
    /// What the guest is for.
    pub role: PolicyRole,
    /// Who vouches for the evidence.
    pub platform: PlatformTerms,
    /// Which single machines, where that is limited.
    pub machines: Option<MachineTerms>,
    /// What the platform measured.
    pub hardware: HardwareTerms,
    /// The events of RTMR3.
    pub events: EventTerms,
    /// What is expected of NVIDIA devices, where `events.gpu_evidence` is `nvidia` or raw evidence is judged.
    pub nvidia: Option<NvidiaTerms>,
}

impl PolicyTerms {
    /// The rules for TDX, if it is TDX.
    pub fn tdx(&self) -> Option<&TdxExpectations> {
        match &self.hardware {
            HardwareTerms::Tdx(tdx) => Some(tdx),
            HardwareTerms::Snp(_) => None,
        }
    }

    /// The same, to be changed.
    pub fn tdx_mut(&mut self) -> Option<&mut TdxExpectations> {
        match &mut self.hardware {
            HardwareTerms::Tdx(tdx) => Some(tdx),
            HardwareTerms::Snp(_) => None,
        }
    }

    /// The rules for SEV-SNP, if it is SEV-SNP.
    pub fn snp(&self) -> Option<&SnpTerms> {
        match &self.hardware {
            HardwareTerms::Tdx(_) => None,
            HardwareTerms::Snp(snp) => Some(snp),
        }
    }
}

/// `platform.kind`, and the tables that go with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HardwareTerms {
    /// Intel TDX: `[registers]`, `[td]` and `[tcb]`.
    Tdx(TdxExpectations),
    /// AMD SEV-SNP: `[snp]`. HOST_DATA and the report data take the place of run-time registers.
    Snp(SnpTerms),
}

impl HardwareTerms {
    /// `platform.kind`.
    pub fn kind(&self) -> PlatformKind {
        match self {
            Self::Tdx(_) => PlatformKind::Tdx,
            Self::Snp(_) => PlatformKind::Snp,
        }
    }
}

/// What is expected of a TDX guest and its platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdxExpectations {
    /// The measured values.
    pub registers: RegisterTerms,
    /// How the TD was configured.
    pub td: TdTerms,
    /// How current the platform must be.
    pub tcb: TcbTerms,
}

/// `role`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyRole {
    /// [`Role::Inference`].
    Inference,
}

impl From<PolicyRole> for Role {
    fn from(role: PolicyRole) -> Self {
        match role {
            PolicyRole::Inference => Self::Inference,
        }
    }
}

/// `platform.kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlatformKind {
    /// Intel TDX.
    Tdx,
    /// AMD SEV-SNP.
    Snp,
}

impl PlatformKind {
    /// As policies write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tdx => "tdx",
            Self::Snp => "snp",
        }
    }
}

/// `[platform]`, apart from its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformTerms {
    /// Whether `root_pem` is a simulator's root. Must be stated either way.
    pub simulated: bool,
    /// The root certificate: [`crate::INTEL_SGX_ROOT_CA_PEM`], or that of one simulated platform; for SEV-SNP
    /// [`AMD_ROOTS`].
    pub root_pem: String,
}

/// `platform.root_pem` of a policy for SEV-SNP: AMD's roots, which this library knows.
pub const AMD_ROOTS: &str = "amd";

/// `[registers]`: for each the accepted values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterTerms {
    /// Firmware, as it was loaded.
    pub mrtd: Expect<Digest48>,
    /// Firmware configuration and virtual hardware.
    pub rtmr0: Expect<Digest48>,
    /// What the firmware started: the kernel.
    pub rtmr1: Expect<Digest48>,
    /// What the kernel was told: the command line.
    pub rtmr2: Expect<Digest48>,
    /// MRCONFIGID, set by the host when it makes the TD.
    pub mr_config_id: Expect<Digest48>,
    /// MROWNER, likewise.
    pub mr_owner: Expect<Digest48>,
    /// MROWNERCONFIG, likewise.
    pub mr_owner_config: Expect<Digest48>,
}

/// `[td]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TdTerms {
    /// TD attributes, exactly: debug, migration and unknown bits are refused unless they are stated here, and
    /// the quote verifier refuses most of them even then.
    pub attributes: Expect<Bits64>,
    /// Extended features that the TD may use, exactly.
    pub xfam: Expect<Bits64>,
}

/// `[tcb]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcbTerms {
    /// Accepted statuses of platform, TDX module and quoting enclave together, by Intel's names; usually
    /// `["UpToDate"]`.
    pub accepted: Vec<TcbStatusName>,
    /// `tcbEvaluationDataNumber` of TCB info and QE identity must be at least this.
    pub evaluation_number_min: u32,
    /// How long after the date of the TCB level that it meets an outdated platform or TDX module counts as up to
    /// date, seconds; 0 if not stated.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub platform_grace_s: u64,
    /// Likewise for the quoting enclave.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub qe_grace_s: u64,
}

impl TcbTerms {
    /// Whether a platform's status is accepted, and which it is after the grace periods.
    pub(crate) fn judge_status(&self, tcb: &TcbVerdict, now_s: u64) -> (bool, TcbStatus) {
        self.judged().judge_status(tcb, now_s)
    }

    /// From this second on the status is judged otherwise, because a grace period has ended.
    pub(crate) fn grace_until_s(&self, tcb: &TcbVerdict, now_s: u64) -> u64 {
        self.judged().grace_until_s(tcb, now_s)
    }

    /// The same rules in the form of the judge of quotes; nothing about the TD.
    pub(crate) fn judged(&self) -> TdxTerms {
        TdxTerms {
            tcb_accepted: self.accepted.iter().map(|name| name.0).collect(),
            evaluation_number_min: self.evaluation_number_min,
            platform_grace_s: self.platform_grace_s,
            qe_grace_s: self.qe_grace_s,
            ..TdxTerms::default()
        }
    }
}

fn is_zero(seconds: &u64) -> bool {
    *seconds == 0
}

/// `[events]`: what RTMR3 must record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventTerms {
    /// What the host may ask the guest to run.
    pub launch_document: DocumentTerms,
    /// SHA-384 of the accepted payloads of the model event.
    pub model: Expect<Digest48>,
    /// The key is new at every boot.
    pub usage_key: UsageKeyRule,
    /// What the guest measured of its GPUs.
    pub gpu_evidence: GpuEvidenceRule,
    /// The last event.
    pub ready: ReadyRule,
}

/// `events.launch_document`, or `[[events.launch_document_fields]]` in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DocumentTerms {
    /// SHA-384 of the accepted documents.
    Digest(Expect<Digest48>),
    /// A rule for every value in the document.
    Fields(Vec<FieldRule>),
}

impl DocumentTerms {
    /// This document and no other.
    pub fn exact(digest: Digest48) -> Self {
        Self::Digest(Expect::exact(digest))
    }
}

/// `events.usage_key`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UsageKeyRule {
    /// An Ed25519 key (32 bytes) that the log in the bundle holds; RTMR3 and the report data bind that log.
    Bound,
}

/// `events.gpu_evidence`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GpuEvidenceRule {
    /// A machine without GPU: empty payload, no evidence in the bundle.
    None,
    /// The payload is the digest of the GPU evidence in the bundle, and NVIDIA's devices in it are what `[nvidia]`
    /// states, asked by this guest in this boot.
    Nvidia,
}

/// `events.ready`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadyRule {
    /// The event is there with an empty payload, and nothing follows it.
    Empty,
}

/// A TCB status by Intel's name (Intel PCS API, "TCB info", `tcbStatus`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TcbStatusName(pub(crate) TcbStatus);

impl TcbStatusName {
    /// Everything that Intel publishes is applied.
    pub const UP_TO_DATE: Self = Self(TcbStatus::UpToDate);

    /// Intel's name.
    pub fn name(self) -> String {
        self.0.to_string()
    }
}

impl fmt::Display for TcbStatusName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
