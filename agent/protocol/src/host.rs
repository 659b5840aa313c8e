//! Messages between the agent and the host over vsock, framed as in [`crate::read_frame`].
//!
//! The agent dials [`HOST_CID`]; nothing the host answers is trusted beyond what the design allows: it can
//! refuse service, and cheat itself.

use std::time::Duration;

use cocoon_evidence::Digest32;
use serde::{Deserialize, Serialize};

use crate::{SignedGrant, SignedVoucher, TokenCounts};

/// The host's address on vsock.
pub const HOST_CID: u32 = 2;

/// The host listens here for [`ToHost`].
pub const HOST_PORT: u32 = 7000;

/// The guest serves attested TLS here.
pub const GUEST_TLS_PORT: u32 = 443;

/// The guest takes [`ToGuest`] here.
pub const GUEST_CONTROL_PORT: u32 = 7001;

/// Once running requests have ended, or the grace of [`ToGuest::Shutdown`] has, the guest waits at most so long until
/// the host has stored its last records. A host that ends it earlier loses them.
pub const LAST_RECORDS_LIMIT: Duration = Duration::from_secs(8);

/// So long before its grant expires the host has to have a voucher at the latest: time for two attempts at settling it.
/// An answer that is not finished by then is cut off.
pub const SETTLEMENT_LEAD: Duration = Duration::from_secs(180);

/// Agent to host. Each request is answered by one [`FromHost`] on the same connection, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToHost {
    /// Asks for the launch document: [`FromHost::Launch`].
    Launch,
    /// Asks for endorsements anew, because they age: [`FromHost::Endorsements`].
    Endorsements,
    /// Tells how far the boot is: [`FromHost::Ok`].
    Stage {
        /// What was just reached.
        stage: Stage,
        /// Milliseconds since the kernel started.
        uptime_ms: u64,
    },
    /// The boot failed for this reason, and the guest is about to power off: [`FromHost::Ok`].
    BootFailed {
        /// What was attempted, why it failed, what to do.
        reason: String,
    },
    /// Asks how much of a grant the host is willing to have served: [`FromHost::Credit`].
    Credit {
        /// Checked by the agent against its own key and launch document.
        grant: SignedGrant,
    },
    /// Hands over a usage record: [`FromHost::Stored`], sent once the record is on disk.
    Record {
        /// The record.
        record: UsageRecord,
    },
}

/// How far the guest's boot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// PID 1 runs.
    Agent,
    /// The model volume is mounted.
    Model,
    /// The engine's process runs and libtorch is loaded.
    Engine,
    /// The model is loaded and `ready` is in RTMR3.
    Ready,
    /// The TLS endpoint listens.
    Serving,
}

/// Host to agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromHost {
    /// The launch document and the endorsements to pass on.
    Launch {
        /// Raw bytes, measured before they are parsed.
        #[serde(with = "base64_bytes")]
        document: Vec<u8>,
        /// Collateral for the platform's evidence (JSON). Signed by the platform's vendor and checked by
        /// clients; to the agent it is opaque.
        #[serde(with = "base64_bytes")]
        endorsements: Vec<u8>,
    },
    /// The endorsements to pass on from now on.
    Endorsements {
        /// As in [`FromHost::Launch`].
        #[serde(with = "base64_bytes")]
        endorsements: Vec<u8>,
    },
    /// Done.
    Ok,
    /// The line of credit on a grant.
    Credit {
        /// Serve up to this in all, nanoTON; 0 if the grant is not on chain.
        nano: u64,
        /// Why it is less than the cap, in words for the client; empty if it is not.
        reason: String,
    },
    /// The record with this number is on disk.
    Stored {
        /// [`UsageRecord::number`].
        number: u64,
    },
    /// The request was understood and could not be carried out.
    Failed {
        /// Why.
        reason: String,
    },
}

/// One finished request, without its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageRecord {
    /// Counts from 1 at each boot of the agent (that is, for each agent key).
    pub number: u64,
    /// This request's tokens.
    pub tokens: TokenCounts,
    /// HMAC of the receipt under a salt that the host is not given.
    pub commitment: Digest32,
    /// The cumulative claim, this request included.
    pub voucher: SignedVoucher,
}

/// Host to guest, on [`GUEST_CONTROL_PORT`]; answered by [`FromGuest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToGuest {
    /// Finish running requests, deliver their records and power off.
    Shutdown {
        /// How long running requests may still take.
        grace_ms: u64,
    },
}

/// Guest to host, on [`GUEST_CONTROL_PORT`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromGuest {
    /// The request was taken.
    Ok,
}

mod base64_bytes {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(|_| de::Error::custom("not base64"))
    }
}
