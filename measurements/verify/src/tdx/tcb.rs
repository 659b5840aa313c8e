//! Which security version a platform has, by Intel's lists: the rules of Intel's quote verification library
//! (`getMatchingTcbLevel`, `convergeTcbStatuses`, `checkForRelaunch`), as dcap-qvl has them too.

use super::{
    pck::PckExtension,
    report::{EnclaveReport, TdField, TdReport},
    status::TcbStatus,
    tcb_info::{EnclaveLevel, LevelVerdict, ModuleTerms, QeIdentity, TcbInfo},
};
use crate::judgement::FailureClass;

/// Why a platform, TDX module or quoting enclave has no status at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TcbError {
    /// TCB info or QE identity for SGX where TDX is quoted, or the other way around, or of an unknown version.
    #[error("{document} is for {id} version {version}, which does not fit the quote")]
    Kind {
        /// Which document.
        document: &'static str,
        /// What it is for.
        id: String,
        /// Its version.
        version: u8,
    },
    /// TCB info of another platform model.
    #[error("TCB info is for {field} {listed}, the PCK certificate says {certified}")]
    OtherPlatform {
        /// FMSPC, PCE-ID or TCB type.
        field: &'static str,
        /// What TCB info says.
        listed: String,
        /// What the platform has.
        certified: String,
    },
    /// Older than anything listed.
    #[error("no matching TCB level: {of} is below every level of the TCB info")]
    NoLevel {
        /// What is appraised.
        of: &'static str,
    },
    /// A status that Intel does not use there.
    #[error("{of} has the status {status}, which is not one of those that Intel gives to it")]
    Status {
        /// What is appraised.
        of: &'static str,
        /// What stands there.
        status: TcbStatus,
    },
    /// The TDX module's major version is not listed.
    #[error("TCB info does not know TDX module {0}")]
    UnknownModule(String),
    /// TCB info without `tdxModule` or without TDX components.
    #[error("TCB info says nothing about {0}")]
    Missing(&'static str),
    /// Signed by somebody else.
    #[error("the {of}'s {field} is {found}, expected {expected}")]
    Identity {
        /// TDX module or quoting enclave.
        of: &'static str,
        /// Which field.
        field: &'static str,
        /// What it is.
        found: String,
        /// What it has to be.
        expected: String,
    },
    /// The quoting enclave runs in debug mode: its keys are not secret.
    #[error("the quoting enclave runs in debug mode")]
    QeDebug,
    /// The platform's keys are known to others. No policy accepts that.
    #[error("the TCB status is Revoked")]
    Revoked,
}

impl TcbError {
    /// What the failure means. Another signer is no question of versions.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Identity { .. } | Self::QeDebug | Self::Kind { .. } => FailureClass::Signature,
            _ => FailureClass::Tcb,
        }
    }
}

/// How one component was appraised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcbLevel {
    /// Its status.
    pub status: TcbStatus,
    /// When Intel made the level that it meets, seconds since 1970.
    pub date_s: u64,
    /// Intel's security advisories that apply to it.
    pub advisories: Vec<String>,
}

impl From<&LevelVerdict> for TcbLevel {
    fn from(verdict: &LevelVerdict) -> Self {
        Self {
            status: verdict.status,
            date_s: verdict.date_s,
            advisories: verdict.advisories.clone(),
        }
    }
}

impl TcbLevel {
    /// Together with a component of it: the worse status, the older date, all advisories.
    fn with_component(mut self, component: &LevelVerdict) -> Self {
        self.status = self.status.with_component(component.status);
        self.date_s = self.date_s.min(component.date_s);
        add(&mut self.advisories, &component.advisories);
        self
    }
}

fn add(all: &mut Vec<String>, more: &[String]) {
    for id in more {
        if !all.contains(id) {
            all.push(id.clone());
        }
    }
}

/// The statuses of everything that stands below a quote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcbVerdict {
    /// Platform, TDX module and quoting enclave together.
    pub status: TcbStatus,
    /// All that apply to the platform at launch, to the module or to the quoting enclave.
    pub advisories: Vec<String>,
    /// Platform and TDX module, when the TD was started.
    pub platform: TcbLevel,
    /// Platform and TDX module now; a 1.5 report tells.
    pub current: Option<TcbLevel>,
    /// The quoting enclave.
    pub qe: TcbLevel,
}

const PLATFORM_STATUSES: &[TcbStatus] = &[
    TcbStatus::UpToDate,
    TcbStatus::SWHardeningNeeded,
    TcbStatus::ConfigurationNeeded,
    TcbStatus::ConfigurationAndSWHardeningNeeded,
    TcbStatus::OutOfDate,
    TcbStatus::OutOfDateConfigurationNeeded,
    TcbStatus::Revoked,
];
/// Of TDX modules and quoting enclaves. Any other that stood there would change nothing in
/// [`TcbStatus::with_component`]; Intel's library counts a quoting enclave with it as OutOfDate, dcap-qvl as UpToDate.
const COMPONENT_STATUSES: &[TcbStatus] = &[TcbStatus::UpToDate, TcbStatus::OutOfDate, TcbStatus::Revoked];

/// Appraises platform, TDX module (`report`: of a TDX quote) and quoting enclave (`qe`: its level) together.
pub(crate) fn appraise(
    tcb_info: &TcbInfo,
    pck: &PckExtension,
    report: Option<&TdReport<'_>>,
    qe: TcbLevel,
) -> Result<TcbVerdict, TcbError> {
    check_platform(tcb_info, pck)?;
    let (platform, current) = match report {
        None => (level(tcb_info, pck, None, "the platform")?.into(), None),
        Some(report) => {
            let (at_launch, now) = report.tee_tcb_svns();
            let platform = tdx_level(tcb_info, pck, &at_launch, "the platform at the TD's launch")?;
            check_module(tcb_info, &at_launch, report)?;
            let current = now.map(|now| tdx_level(tcb_info, pck, &now, "the platform now"));
            (platform, current.transpose()?)
        }
    };
    let at_launch = platform.status.with_component(qe.status);
    let now = current
        .as_ref()
        .map(|level| level.status.with_component(qe.status));
    if at_launch == TcbStatus::Revoked || now == Some(TcbStatus::Revoked) {
        return Err(TcbError::Revoked);
    }
    let mut advisories = platform.advisories.clone();
    add(&mut advisories, &qe.advisories);
    Ok(TcbVerdict {
        status: now.map_or(at_launch, |now| at_launch.with_current(now)),
        advisories,
        platform,
        current,
        qe,
    })
}

/// TCB info is about one model only.
fn check_platform(tcb_info: &TcbInfo, pck: &PckExtension) -> Result<(), TcbError> {
    let fields: [(_, &[u8], &[u8]); 3] = [
        ("FMSPC", &tcb_info.fmspc, &pck.fmspc),
        ("PCE-ID", &tcb_info.pce_id, &pck.pce_id),
        // Type 0 is the only one that says how its components compare.
        ("TCB type", &tcb_info.tcb_type.to_be_bytes(), &[0; 4]),
    ];
    match fields.iter().find(|(_, listed, certified)| listed != certified) {
        None => Ok(()),
        Some((field, listed, certified)) => Err(TcbError::OtherPlatform {
            field,
            listed: hex::encode_upper(listed),
            certified: hex::encode_upper(certified),
        }),
    }
}

/// The highest level that the platform meets. With a module version (`tee_tcb_svn[1]`), the module's own levels
/// judge the first two components.
fn level<'a>(
    tcb_info: &'a TcbInfo,
    pck: &PckExtension,
    tee_tcb_svn: Option<&[u8; 16]>,
    of: &'static str,
) -> Result<&'a LevelVerdict, TcbError> {
    let meets = |have: &[u8], needs: &[u8]| have.iter().zip(needs).all(|(have, needs)| have >= needs);
    for level in &tcb_info.tcb_levels {
        let mut met = meets(&pck.cpu_svn, &level.tcb.sgx) && pck.pce_svn >= level.tcb.pce_svn;
        if let Some(have) = tee_tcb_svn {
            let needs = level
                .tcb
                .tdx
                .as_ref()
                .ok_or(TcbError::Missing("TDX components"))?;
            let skipped = if have[1] > 0 { 2 } else { 0 };
            met &= meets(&have[skipped..], &needs[skipped..]);
        }
        if met {
            return usual(&level.verdict, PLATFORM_STATUSES, of);
        }
    }
    Err(TcbError::NoLevel { of })
}

fn tdx_level(
    tcb_info: &TcbInfo,
    pck: &PckExtension,
    tee_tcb_svn: &[u8; 16],
    of: &'static str,
) -> Result<TcbLevel, TcbError> {
    let platform = TcbLevel::from(level(tcb_info, pck, Some(tee_tcb_svn), of)?);
    let Some((_, levels)) = module(tcb_info, tee_tcb_svn)? else {
        return Ok(platform);
    };
    let module = enclave_level(
        levels,
        u16::from(tee_tcb_svn[0]),
        COMPONENT_STATUSES,
        "the TDX module",
    )?;
    Ok(platform.with_component(module))
}

/// Terms and levels of the module's major version; `None` for version 0, which only `tdxModule` describes.
fn module<'a>(
    tcb_info: &'a TcbInfo,
    tee_tcb_svn: &[u8; 16],
) -> Result<Option<(&'a ModuleTerms, &'a [EnclaveLevel])>, TcbError> {
    let version = tee_tcb_svn[1];
    if version == 0 {
        return Ok(None);
    }
    let id = format!("TDX_{version:02X}");
    let identity = tcb_info
        .tdx_module_identities
        .iter()
        .find(|identity| identity.id.eq_ignore_ascii_case(&id));
    match identity {
        Some(identity) => Ok(Some((&identity.terms, &identity.tcb_levels))),
        None => Err(TcbError::UnknownModule(id)),
    }
}

/// Who signed the TDX module, and with which attributes. Bits outside the mask have to be zero.
fn check_module(tcb_info: &TcbInfo, tee_tcb_svn: &[u8; 16], report: &TdReport<'_>) -> Result<(), TcbError> {
    let base = tcb_info
        .tdx_module
        .as_ref()
        .ok_or(TcbError::Missing("the TDX module"))?;
    let terms = module(tcb_info, tee_tcb_svn)?.map_or(base, |(terms, _)| terms);
    let signer = report.field(TdField::MrSignerSeam).unwrap_or_default();
    let attributes = report.field(TdField::SeamAttributes).unwrap_or_default();
    let identity = |field, found: &[u8], expected: &[u8]| TcbError::Identity {
        of: "TDX module",
        field,
        found: hex::encode(found),
        expected: hex::encode(expected),
    };
    if signer != terms.mrsigner {
        return Err(identity("MRSIGNERSEAM", signer, &terms.mrsigner));
    }
    let expected: Vec<u8> = masked(&terms.attributes, &terms.attributes_mask).collect();
    if attributes != expected {
        return Err(identity("SEAMATTRIBUTES", attributes, &expected));
    }
    Ok(())
}

fn masked<'a>(value: &'a [u8], mask: &'a [u8]) -> impl Iterator<Item = u8> + 'a {
    value.iter().zip(mask).map(|(value, mask)| value & mask)
}

/// Whether it is Intel's quoting enclave, and its level.
pub(crate) fn quoting_enclave(
    identity: &QeIdentity,
    report: &EnclaveReport<'_>,
) -> Result<TcbLevel, TcbError> {
    const DEBUG: u8 = 0x02;
    let attributes = report.attributes();
    if attributes[0] & DEBUG != 0 {
        return Err(TcbError::QeDebug);
    }
    let fields: [(_, Vec<u8>, Vec<u8>); 4] = [
        (
            "MRSIGNER",
            report.mr_signer().to_vec(),
            identity.mrsigner.to_vec(),
        ),
        (
            "ISVPRODID",
            report.isv_prod_id().to_be_bytes().to_vec(),
            identity.isvprodid.to_be_bytes().to_vec(),
        ),
        (
            "MISCSELECT",
            // The identity's hex has the bytes in the enclave's order.
            masked(&report.misc_select(), &identity.miscselect_mask).collect(),
            masked(&identity.miscselect, &identity.miscselect_mask).collect(),
        ),
        (
            "ATTRIBUTES",
            masked(&attributes, &identity.attributes_mask).collect(),
            masked(&identity.attributes, &identity.attributes_mask).collect(),
        ),
    ];
    for (field, found, expected) in fields {
        if found != expected {
            return Err(TcbError::Identity {
                of: "quoting enclave",
                field,
                found: hex::encode(found),
                expected: hex::encode(expected),
            });
        }
    }
    enclave_level(
        &identity.tcb_levels,
        report.isv_svn(),
        COMPONENT_STATUSES,
        "the quoting enclave",
    )
    .map(TcbLevel::from)
}

fn enclave_level<'a>(
    levels: &'a [EnclaveLevel],
    isv_svn: u16,
    statuses: &[TcbStatus],
    of: &'static str,
) -> Result<&'a LevelVerdict, TcbError> {
    let level = levels.iter().find(|level| isv_svn >= level.tcb.isvsvn);
    usual(&level.ok_or(TcbError::NoLevel { of })?.verdict, statuses, of)
}

fn usual<'a>(
    verdict: &'a LevelVerdict,
    statuses: &[TcbStatus],
    of: &'static str,
) -> Result<&'a LevelVerdict, TcbError> {
    if statuses.contains(&verdict.status) {
        Ok(verdict)
    } else {
        Err(TcbError::Status {
            of,
            status: verdict.status,
        })
    }
}
