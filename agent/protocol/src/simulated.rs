//! The simulated platform: on a machine without TDX the launcher plays the TDX module and the quoting
//! enclave, and the agent of a `dev` image asks it over vsock for what the processor would do.

use std::collections::BTreeMap;

use cocoon_evidence::{Digest48, Rtmr};
use serde::{Deserialize, Serialize};

/// The launcher listens here for [`ToPlatform`], on simulated platforms only.
pub const PLATFORM_PORT: u32 = 7002;

/// The guest of a `dev` image takes one [`InjectFault`] a connection here, and closes it once that is done.
pub const FAULT_PORT: u32 = 7003;

/// What a test breaks in a booted guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InjectFault {
    /// SIGKILL for the engine.
    KillEngine,
    /// An end of the engine for which a core is dumped where dumps are made.
    CrashEngine,
    /// The same of the agent, and so of the guest.
    CrashAgent,
}

/// The guest of a `dev` image with a TPM sends one [`FirmwareMeasurements`] here to whoever connects.
pub const FIRMWARE_LOG_PORT: u32 = 7004;

/// What firmware and kernel measured into the TPM, for a test that holds a prediction against it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirmwareMeasurements {
    /// The TCG2 event log, the events after GetEventLog included.
    #[serde(with = "hex::serde")]
    pub log: Vec<u8>,
    /// The TPM's registers, in its SHA-384 bank.
    pub registers: BTreeMap<u32, Digest48>,
}

/// Agent to simulated platform; each answered by one [`FromPlatform`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToPlatform {
    /// TDG.MR.RTMR.EXTEND: [`FromPlatform::Extended`].
    Extend {
        /// Only RTMR2 and RTMR3 can be extended by software in a real guest; here only RTMR3.
        register: Rtmr,
        /// The event's digest.
        digest: Digest48,
    },
    /// TDG.MR.REPORT and the quoting enclave: [`FromPlatform::Quote`].
    Quote {
        /// 64 bytes.
        #[serde(with = "hex::serde")]
        report_data: [u8; 64],
    },
}

/// Simulated platform to agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromPlatform {
    /// The register was extended.
    Extended,
    /// A TDX quote, version 4, signed under the launcher's test root.
    Quote {
        /// Raw bytes.
        #[serde(with = "hex::serde")]
        quote: Vec<u8>,
    },
    /// Refused.
    Failed {
        /// Why.
        reason: String,
    },
}
