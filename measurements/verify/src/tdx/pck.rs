//! What Intel writes about a platform into its PCK certificate (Intel SGX PCK Certificate and Certificate
//! Revocation List Profile Specification 1.5, section 1.3.5, extension 1.2.840.113741.1.13.1).

use super::der::{self, BOOLEAN, ENUMERATED, INTEGER, OBJECT_IDENTIFIER, OCTET_STRING, SEQUENCE};

/// DER contents of 1.2.840.113741.1.13.1, which all object identifiers in here start with.
const PREFIX: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01];

const PPID: &[u8] = &[1];
const TCB: &[u8] = &[2];
const PCE_SVN: &[u8] = &[2, 17];
const CPU_SVN: &[u8] = &[2, 18];
const PCE_ID: &[u8] = &[3];
const FMSPC: &[u8] = &[4];
const SGX_TYPE: &[u8] = &[5];
const PLATFORM_INSTANCE_ID: &[u8] = &[6];
const CONFIGURATION: &[u8] = &[7];
const DYNAMIC_PLATFORM: &[u8] = &[7, 1];
const CACHED_KEYS: &[u8] = &[7, 2];
const SMT_ENABLED: &[u8] = &[7, 3];

/// A field of the extension is missing, has another type or another length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its SGX extension has no usable {0}")]
pub struct PckExtensionError(&'static str);

/// The platform, as Intel certified it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PckExtension {
    /// Platform provisioning id: the same for all guests on one processor package.
    pub ppid: [u8; 16],
    /// Security versions of the 16 components of the processor's TCB.
    pub cpu_svn: [u8; 16],
    /// Security version of the provisioning certification enclave.
    pub pce_svn: u16,
    /// Which provisioning certification enclave.
    pub pce_id: [u8; 2],
    /// Family, model, stepping, platform and custom SKU.
    pub fmspc: [u8; 6],
    /// 0 standard, 1 scalable, 2 scalable with integrity.
    pub sgx_type: u8,
    /// Which platform, if a platform CA signed.
    pub platform_instance_id: Option<[u8; 16]>,
    /// Whether processor packages can be added.
    pub dynamic_platform: Option<bool>,
    /// Whether Intel's registration service holds the platform's root keys.
    pub cached_keys: Option<bool>,
    /// Whether simultaneous multithreading is on.
    pub smt_enabled: Option<bool>,
}

impl PckExtension {
    /// `contents`: the extension's value, SEQUENCE OF SEQUENCE { OBJECT IDENTIFIER, ANY }.
    pub(crate) fn parse(contents: &[u8]) -> Result<Self, PckExtensionError> {
        let all = der::only(SEQUENCE, contents).ok_or(PckExtensionError("sequence"))?;
        let tcb = required(all, TCB, SEQUENCE, "TCB")?;
        let configuration = find(all, CONFIGURATION, SEQUENCE, "configuration")?;
        let flag = |path, name| match configuration {
            Some(fields) => boolean(fields, path, name),
            None => Ok(None),
        };
        Ok(Self {
            ppid: octets(all, PPID, "PPID")?,
            cpu_svn: octets(tcb, CPU_SVN, "CPUSVN")?,
            pce_svn: svn(required(tcb, PCE_SVN, INTEGER, "PCESVN")?)?,
            pce_id: octets(all, PCE_ID, "PCE-ID")?,
            fmspc: octets(all, FMSPC, "FMSPC")?,
            sgx_type: match required(all, SGX_TYPE, ENUMERATED, "SGX type")? {
                [kind] => *kind,
                _ => return Err(PckExtensionError("SGX type")),
            },
            platform_instance_id: find(all, PLATFORM_INSTANCE_ID, OCTET_STRING, "platform instance id")?
                .map(|id| {
                    id.try_into()
                        .map_err(|_| PckExtensionError("platform instance id"))
                })
                .transpose()?,
            dynamic_platform: flag(DYNAMIC_PLATFORM, "dynamic platform")?,
            cached_keys: flag(CACHED_KEYS, "cached keys")?,
            smt_enabled: flag(SMT_ENABLED, "SMT enabled")?,
        })
    }
}

/// The value under `path`, which stands at most once.
fn find<'a>(
    mut fields: &'a [u8],
    path: &[u8],
    tag: u8,
    name: &'static str,
) -> Result<Option<&'a [u8]>, PckExtensionError> {
    let error = || PckExtensionError(name);
    let mut found = None;
    while !fields.is_empty() {
        let entry = der::take(&mut fields).filter(|entry| entry.tag == SEQUENCE);
        let mut entry = entry.ok_or_else(error)?.value;
        let id = der::take(&mut entry).filter(|id| id.tag == OBJECT_IDENTIFIER);
        let value = der::take(&mut entry)
            .filter(|_| entry.is_empty())
            .ok_or_else(error)?;
        if id.ok_or_else(error)?.value.strip_prefix(&PREFIX) == Some(path) {
            if value.tag != tag || found.is_some() {
                return Err(error());
            }
            found = Some(value.value);
        }
    }
    Ok(found)
}

fn required<'a>(
    fields: &'a [u8],
    path: &[u8],
    tag: u8,
    name: &'static str,
) -> Result<&'a [u8], PckExtensionError> {
    find(fields, path, tag, name)?.ok_or(PckExtensionError(name))
}

fn octets<const N: usize>(
    fields: &[u8],
    path: &[u8],
    name: &'static str,
) -> Result<[u8; N], PckExtensionError> {
    let value = required(fields, path, OCTET_STRING, name)?;
    value.try_into().map_err(|_| PckExtensionError(name))
}

fn boolean(fields: &[u8], path: &[u8], name: &'static str) -> Result<Option<bool>, PckExtensionError> {
    match find(fields, path, BOOLEAN, name)? {
        None => Ok(None),
        Some([0]) => Ok(Some(false)),
        Some([_]) => Ok(Some(true)),
        Some(_) => Err(PckExtensionError(name)),
    }
}

/// Two bytes without a sign.
fn svn(integer: &[u8]) -> Result<u16, PckExtensionError> {
    match integer {
        [low] => Ok(u16::from(*low)),
        [high, low] | [0, high, low] => Ok(u16::from_be_bytes([*high, *low])),
        _ => Err(PckExtensionError("PCESVN")),
    }
}
