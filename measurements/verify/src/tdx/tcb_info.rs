//! What Intel signs about a platform model and about its quoting enclave (Intel PCS API version 4, "Get TDX TCB
//! Info", "Get SGX TCB Info", "Get (TD) Quoting Enclave Identity"). Keys that are not known are skipped: Intel adds
//! some from time to time, and its signature covers them.

use serde::{Deserialize, Deserializer, de};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::status::TcbStatus;

/// Which TEE a document is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tee {
    Sgx,
    Tdx,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TcbInfo {
    pub(crate) id: String,
    pub(crate) version: u8,
    #[serde(rename = "issueDate", deserialize_with = "seconds")]
    pub(crate) issued_s: u64,
    /// Inclusive.
    #[serde(rename = "nextUpdate", deserialize_with = "seconds")]
    pub(crate) next_update_s: u64,
    #[serde(with = "hex::serde")]
    pub(crate) fmspc: [u8; 6],
    #[serde(with = "hex::serde")]
    pub(crate) pce_id: [u8; 2],
    pub(crate) tcb_type: u32,
    #[serde(rename = "tcbEvaluationDataNumber")]
    pub(crate) evaluation_number: u32,
    #[serde(default)]
    pub(crate) tdx_module: Option<ModuleTerms>,
    #[serde(default)]
    pub(crate) tdx_module_identities: Vec<ModuleIdentity>,
    #[serde(deserialize_with = "highest_first")]
    pub(crate) tcb_levels: Vec<TcbLevel>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "LevelKeys<Tcb>")]
pub(crate) struct TcbLevel {
    pub(crate) tcb: Tcb,
    pub(crate) verdict: LevelVerdict,
}

/// What a level means for whoever meets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LevelVerdict {
    pub(crate) date_s: u64,
    pub(crate) status: TcbStatus,
    pub(crate) advisories: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Tcb {
    #[serde(rename = "sgxtcbcomponents", deserialize_with = "svns")]
    pub(crate) sgx: [u8; 16],
    #[serde(rename = "pcesvn")]
    pub(crate) pce_svn: u16,
    #[serde(rename = "tdxtcbcomponents", default, deserialize_with = "some_svns")]
    pub(crate) tdx: Option<[u8; 16]>,
}

/// `tdxModule`: how the TDX module has to be signed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ModuleTerms {
    #[serde(with = "hex::serde")]
    pub(crate) mrsigner: [u8; 48],
    #[serde(with = "hex::serde")]
    pub(crate) attributes: [u8; 8],
    #[serde(with = "hex::serde")]
    pub(crate) attributes_mask: [u8; 8],
}

/// `tdxModuleIdentities`: one for each major version of the module.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ModuleIdentity {
    pub(crate) id: String,
    #[serde(flatten)]
    pub(crate) terms: ModuleTerms,
    pub(crate) tcb_levels: Vec<EnclaveLevel>,
}

/// A level of a module or of the quoting enclave, in the order in which they are to be tried.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "LevelKeys<EnclaveTcb>")]
pub(crate) struct EnclaveLevel {
    pub(crate) tcb: EnclaveTcb,
    pub(crate) verdict: LevelVerdict,
}

/// The keys of a level, as they stand beside each other. `flatten` would keep each value in a tree of its own first.
#[derive(Deserialize)]
struct LevelKeys<T> {
    tcb: T,
    #[serde(rename = "tcbDate", deserialize_with = "seconds")]
    date_s: u64,
    #[serde(rename = "tcbStatus")]
    status: TcbStatus,
    #[serde(rename = "advisoryIDs", default)]
    advisories: Vec<String>,
}

impl<T> LevelKeys<T> {
    fn split(self) -> (T, LevelVerdict) {
        let Self {
            tcb,
            date_s,
            status,
            advisories,
        } = self;
        (
            tcb,
            LevelVerdict {
                date_s,
                status,
                advisories,
            },
        )
    }
}

impl From<LevelKeys<Tcb>> for TcbLevel {
    fn from(keys: LevelKeys<Tcb>) -> Self {
        let (tcb, verdict) = keys.split();
        Self { tcb, verdict }
    }
}

impl From<LevelKeys<EnclaveTcb>> for EnclaveLevel {
    fn from(keys: LevelKeys<EnclaveTcb>) -> Self {
        let (tcb, verdict) = keys.split();
        Self { tcb, verdict }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct EnclaveTcb {
    pub(crate) isvsvn: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct QeIdentity {
    pub(crate) id: String,
    pub(crate) version: u8,
    #[serde(rename = "issueDate", deserialize_with = "seconds")]
    pub(crate) issued_s: u64,
    /// Inclusive.
    #[serde(rename = "nextUpdate", deserialize_with = "seconds")]
    pub(crate) next_update_s: u64,
    #[serde(rename = "tcbEvaluationDataNumber")]
    pub(crate) evaluation_number: u32,
    #[serde(with = "hex::serde")]
    pub(crate) miscselect: [u8; 4],
    #[serde(with = "hex::serde")]
    pub(crate) miscselect_mask: [u8; 4],
    #[serde(with = "hex::serde")]
    pub(crate) attributes: [u8; 16],
    #[serde(with = "hex::serde")]
    pub(crate) attributes_mask: [u8; 16],
    #[serde(with = "hex::serde")]
    pub(crate) mrsigner: [u8; 32],
    pub(crate) isvprodid: u16,
    pub(crate) tcb_levels: Vec<EnclaveLevel>,
}

impl TcbInfo {
    /// Whether it is the kind of document that this TEE needs.
    pub(crate) fn is_for(&self, tee: Tee) -> bool {
        match tee {
            Tee::Sgx => self.id == "SGX" && matches!(self.version, 2 | 3),
            Tee::Tdx => self.id == "TDX" && self.version >= 3,
        }
    }
}

impl QeIdentity {
    /// Whether it is the kind of document that this TEE needs.
    pub(crate) fn is_for(&self, tee: Tee) -> bool {
        match tee {
            Tee::Sgx => self.id == "QE" && self.version == 2,
            Tee::Tdx => self.id == "TD_QE" && matches!(self.version, 2 | 3),
        }
    }
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
    let date = OffsetDateTime::parse(&text, &Rfc3339).map_err(de::Error::custom)?;
    date.unix_timestamp()
        .try_into()
        .map_err(|_| de::Error::custom("a date before 1970"))
}

/// Intel's verification library tries the highest components first, in whatever order the document has them.
fn highest_first<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<TcbLevel>, D::Error> {
    let mut levels = Vec::<TcbLevel>::deserialize(deserializer)?;
    levels.sort_by(|a, b| {
        let key = |level: &TcbLevel| (level.tcb.sgx, level.tcb.pce_svn, level.tcb.tdx);
        key(b).cmp(&key(a))
    });
    Ok(levels)
}

#[derive(Deserialize)]
struct Component {
    svn: u16,
}

impl Component {
    /// A byte; Intel's own samples spell those above 127 as negative 16-bit numbers (0xFFC1 for 0xC1).
    fn byte<E: de::Error>(&self) -> Result<u8, E> {
        match self.svn.to_be_bytes() {
            [0, low] | [0xff, low @ 0x80..=0xff] => Ok(low),
            _ => Err(E::custom(format_args!(
                "svn {} does not fit into a byte",
                self.svn
            ))),
        }
    }
}

fn svns<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 16], D::Error> {
    let components = <[Component; 16]>::deserialize(deserializer)?;
    let mut bytes = [0; 16];
    for (byte, component) in bytes.iter_mut().zip(&components) {
        *byte = component.byte()?;
    }
    Ok(bytes)
}

fn some_svns<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<[u8; 16]>, D::Error> {
    svns(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_bytes() {
        let read = |svn: u32| serde_json::from_str::<Component>(&format!("{{\"svn\":{svn}}}"));
        let byte = |svn: u32| {
            read(svn)
                .and_then(|component| component.byte::<serde_json::Error>())
                .ok()
        };
        assert_eq!(byte(0), Some(0));
        assert_eq!(byte(255), Some(255));
        assert_eq!(byte(0xffc1), Some(0xc1));
        assert_eq!(byte(256), None);
        assert_eq!(byte(0xff7f), None);
        assert_eq!(byte(0x1_0000), None);
    }
}
