//! What a policy expects of NVIDIA devices: the table `[nvidia]` of the policy file.

use serde::{Deserialize, Serialize};

use super::identity::Architecture;
use super::opaque::GpuMode;

/// Expectations; every fact of a report has one, and what is not listed is refused.
///
/// ```toml
/// [nvidia]
/// architectures = ["hopper"]
/// count = 1
/// driver_versions = ["570.124.06"]
/// firmware_versions = ["96.00.A5.00.01"]
/// modes = ["single-gpu", "unreported"]
/// rims = "required"
/// revocation = "required"
/// certificate_hold = "refused"
/// confidential_compute = "reported-by-guest"
/// dev_tools = "reported-by-guest"
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NvidiaTerms {
    /// Families that are accepted.
    pub architectures: Vec<Architecture>,
    /// How many different devices have to present evidence.
    pub count: u32,
    /// Versions of the driver that are accepted. NVSwitches have none.
    pub driver_versions: Vec<String>,
    /// Versions of the VBIOS or the switch's firmware that are accepted, as in the RIM files.
    pub firmware_versions: Vec<String>,
    /// How GPUs may be joined.
    pub modes: Vec<GpuMode>,
    /// Whether all RIM files have to be at hand.
    pub rims: Demand,
    /// Whether OCSP responses for all certificates have to be at hand.
    pub revocation: Demand,
    /// Whether a RIM signer's certificate on hold is accepted. A GPU's never is.
    pub certificate_hold: Hold,
    /// Who says that confidential computing is on; a report does not.
    pub confidential_compute: GuestFact,
    /// Who says that the driver's developer tools are off; a report does not.
    pub dev_tools: GuestFact,
}

/// Whether something has to be handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Demand {
    /// Without it the device is refused.
    Required,
    /// It is judged if it is there.
    IfGiven,
}

/// What a certificate on hold (OCSP reason certificateHold) means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hold {
    /// As much as a revoked one.
    Refused,
    /// NVIDIA puts signers of new RIM files on hold until they are released; their files are taken.
    Accepted,
}

/// A fact that only the guest's software can tell, from NVML.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestFact {
    /// The guest has to report it, and it has to be as it should. It is as true as the guest's measurements.
    ReportedByGuest,
    /// It need not be reported: the policy relies on the measured guest, which refuses to start otherwise.
    EnforcedByGuest,
}

/// Why terms are none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NvidiaTermsError {
    /// A list without entries accepts nothing and is a mistake.
    #[error("nvidia.{0} is empty: list what is accepted")]
    EmptyList(&'static str),
    /// No device at all.
    #[error("nvidia.count is 0: leave out [nvidia] instead")]
    NoDevices,
    /// More devices than evidence may have.
    #[error("nvidia.count is {0}, more than the {max} devices that evidence may have", max = super::DEVICES_MAX)]
    TooManyDevices(u32),
}

impl NvidiaTerms {
    /// Refuses lists without entries and counts that no evidence meets.
    pub fn check(&self) -> Result<(), NvidiaTermsError> {
        let has_gpu = self
            .architectures
            .iter()
            .any(|architecture| architecture.is_gpu());
        let empty = [
            ("architectures", self.architectures.is_empty()),
            ("driver_versions", has_gpu && self.driver_versions.is_empty()),
            ("firmware_versions", self.firmware_versions.is_empty()),
            ("modes", has_gpu && self.modes.is_empty()),
        ];
        if let Some((name, _)) = empty.iter().find(|(_, is_empty)| *is_empty) {
            return Err(NvidiaTermsError::EmptyList(name));
        }
        match self.count {
            0 => Err(NvidiaTermsError::NoDevices),
            count if count as usize > super::DEVICES_MAX => Err(NvidiaTermsError::TooManyDevices(count)),
            _ => Ok(()),
        }
    }
}

/// What the guest's software read from NVML about the whole machine (`nvmlSystemGetConfComputeState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GuestReport {
    /// Confidential computing is on.
    pub confidential_compute: bool,
    /// The developer tools are on, with which the driver's user can read the GPU's memory.
    pub dev_tools: bool,
}
