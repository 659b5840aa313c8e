//! Single machines, whatever their vendor says of them. A key that somebody drew out of one machine signs what he
//! likes, and looks current until its vendor revokes it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{HardwareTerms, PolicyError};
use crate::snp::SnpSigningKeyTerm;

/// `[machines]`: at least one of the lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineTerms {
    /// Only these, if stated.
    pub accepted: Option<Vec<MachineId>>,
    /// None of these.
    pub refused: Option<Vec<MachineId>>,
}

/// A machine as its vendor certifies it, in hexadecimal digits. For TDX the PPID in the PCK certificate (Intel SGX PCK
/// Certificate and Certificate Revocation List Profile Specification 1.5, section 1.3.5), 16 bytes; for SEV-SNP the
/// report's CHIP_ID (AMD 56860, ATTESTATION_REPORT), 64 bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MachineId(#[serde(with = "hex::serde")] pub Vec<u8>);

impl MachineTerms {
    /// # Errors
    /// A list is empty, or both are missing, or something in them is no machine's; or keys are accepted that are not a
    /// single machine's.
    pub(super) fn check(&self, hardware: &HardwareTerms) -> Result<(), PolicyError> {
        let (accepted, refused) = (self.accepted.as_deref(), self.refused.as_deref());
        for (name, list) in [("machines.accepted", accepted), ("machines.refused", refused)] {
            if list.is_some_and(<[_]>::is_empty) {
                return Err(PolicyError::Empty(name));
            }
        }
        if accepted.or(refused).is_none() {
            return Err(PolicyError::Empty("machines"));
        }
        let bytes = match hardware {
            HardwareTerms::Tdx(_) => 16,
            HardwareTerms::Snp(snp) if snp.signing_key != [SnpSigningKeyTerm::Vcek] => {
                return Err(PolicyError::MachineKey);
            }
            HardwareTerms::Snp(_) => 64,
        };
        let unusable = |id: &&MachineId| id.0.len() != bytes || id.is_masked();
        match accepted.into_iter().chain(refused).flatten().find(unusable) {
            Some(id) => Err(PolicyError::Machine {
                id: id.clone(),
                bytes,
            }),
            None => Ok(()),
        }
    }

    /// A host can have its chip's number masked; then the machine may be any.
    pub(crate) fn accepts(&self, id: &MachineId) -> bool {
        let is_in = |list: &Option<Vec<_>>| list.as_ref().map(|list| list.contains(id));
        !id.is_masked() && is_in(&self.accepted).unwrap_or(true) && !is_in(&self.refused).unwrap_or(false)
    }
}

impl MachineId {
    fn is_masked(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }
}

/// As reports print it; the lists can be long.
impl fmt::Display for MachineTerms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.accepted {
            Some(accepted) => write!(f, "one of the {} that the policy accepts", accepted.len())?,
            None => f.write_str("any")?,
        }
        match &self.refused {
            Some(refused) => write!(f, ", none of the {} that it refuses", refused.len()),
            None => Ok(()),
        }
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_masked() {
            true => f.write_str("masked by its host"),
            false => f.write_str(&hex::encode(&self.0)),
        }
    }
}

impl fmt::Debug for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
