//! The policy file: tables as they stand in TOML. Which of them must be there depends on `platform.kind`.

use cocoon_evidence::Digest48;
use serde::{Deserialize, Serialize};

use super::{
    DocumentTerms, EventTerms, Expect, FieldRule, GpuEvidenceRule, HardwareTerms, MachineTerms, PlatformKind,
    PlatformTerms, PolicyRole, PolicyTerms, ReadyRule, RegisterTerms, TcbTerms, TdTerms, TdxExpectations,
    UsageKeyRule,
};
use crate::{nvidia::NvidiaTerms, snp::SnpTerms};

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PolicyFile {
    version: u32,
    number: u64,
    expires_s: u64,
    role: PolicyRole,
    platform: PlatformTable,
    machines: Option<MachineTerms>,
    registers: Option<RegisterTerms>,
    td: Option<TdTerms>,
    tcb: Option<TcbTerms>,
    snp: Option<SnpTerms>,
    nvidia: Option<NvidiaTerms>,
    events: EventsTable,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlatformTable {
    kind: PlatformKind,
    simulated: bool,
    root_pem: String,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsTable {
    launch_document: Option<Expect<Digest48>>,
    model: Expect<Digest48>,
    usage_key: UsageKeyRule,
    gpu_evidence: GpuEvidenceRule,
    ready: ReadyRule,
    launch_document_fields: Option<Vec<FieldRule>>,
}

/// Tables that do not go together.
#[derive(Debug, thiserror::Error)]
pub(super) enum TableError {
    #[error("platform.kind = \"tdx\" needs the tables [registers], [td] and [tcb]")]
    Tdx,
    #[error("platform.kind = \"snp\" needs the table [snp]")]
    Snp,
    #[error("the tables [registers], [td] and [tcb] are for platform.kind = \"tdx\", [snp] is for \"snp\"")]
    Foreign,
    #[error("exactly one of events.launch_document and events.launch_document_fields must be there")]
    LaunchDocument,
}

impl TryFrom<PolicyFile> for PolicyTerms {
    type Error = TableError;

    fn try_from(file: PolicyFile) -> Result<Self, TableError> {
        let tdx = (file.registers, file.td, file.tcb);
        let hardware = match (file.platform.kind, tdx, file.snp) {
            (PlatformKind::Tdx, (Some(registers), Some(td), Some(tcb)), None) => {
                HardwareTerms::Tdx(TdxExpectations { registers, td, tcb })
            }
            (PlatformKind::Snp, (None, None, None), Some(snp)) => HardwareTerms::Snp(snp),
            (PlatformKind::Tdx, _, None) => return Err(TableError::Tdx),
            (PlatformKind::Snp, _, None) => return Err(TableError::Snp),
            _ => return Err(TableError::Foreign),
        };
        Ok(Self {
            version: file.version,
            number: file.number,
            expires_s: file.expires_s,
            role: file.role,
            platform: PlatformTerms {
                simulated: file.platform.simulated,
                root_pem: file.platform.root_pem,
            },
            machines: file.machines,
            hardware,
            events: file.events.try_into()?,
            nvidia: file.nvidia,
        })
    }
}

impl TryFrom<EventsTable> for EventTerms {
    type Error = TableError;

    fn try_from(table: EventsTable) -> Result<Self, TableError> {
        let launch_document = match (table.launch_document, table.launch_document_fields) {
            (Some(digests), None) => DocumentTerms::Digest(digests),
            (None, Some(rules)) => DocumentTerms::Fields(rules),
            _ => return Err(TableError::LaunchDocument),
        };
        Ok(Self {
            launch_document,
            model: table.model,
            usage_key: table.usage_key,
            gpu_evidence: table.gpu_evidence,
            ready: table.ready,
        })
    }
}

impl From<PolicyTerms> for PolicyFile {
    fn from(terms: PolicyTerms) -> Self {
        let kind = terms.hardware.kind();
        let (tdx, snp) = match terms.hardware {
            HardwareTerms::Tdx(tdx) => (Some(tdx), None),
            HardwareTerms::Snp(snp) => (None, Some(snp)),
        };
        let (registers, td, tcb) = match tdx {
            Some(TdxExpectations { registers, td, tcb }) => (Some(registers), Some(td), Some(tcb)),
            None => (None, None, None),
        };
        Self {
            version: terms.version,
            number: terms.number,
            expires_s: terms.expires_s,
            role: terms.role,
            platform: PlatformTable {
                kind,
                simulated: terms.platform.simulated,
                root_pem: terms.platform.root_pem,
            },
            machines: terms.machines,
            registers,
            td,
            tcb,
            snp,
            nvidia: terms.nvidia,
            events: terms.events.into(),
        }
    }
}

impl From<EventTerms> for EventsTable {
    fn from(terms: EventTerms) -> Self {
        let (launch_document, launch_document_fields) = match terms.launch_document {
            DocumentTerms::Digest(digests) => (Some(digests), None),
            DocumentTerms::Fields(rules) => (None, Some(rules)),
        };
        Self {
            launch_document,
            model: terms.model,
            usage_key: terms.usage_key,
            gpu_evidence: terms.gpu_evidence,
            ready: terms.ready,
            launch_document_fields,
        }
    }
}
