//! Messages between the agent and `cocoon-gpu`, its child that speaks to the GPUs' driver, over a socketpair, framed
//! as in [`crate::read_frame`].
//!
//! The child loads NVIDIA's library, which the agent, a static program that holds keys, does not. Once it has told
//! evidence and set the GPUs ready it watches them, and its end means that they are lost.

use cocoon_evidence::{GpuEvidence, NONCE_BYTES};
use serde::{Deserialize, Serialize};

/// The descriptor on which the child finds its end of the socketpair.
pub const GPU_SOCKET_FD: i32 = 3;

/// Agent to child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToGpu {
    /// First message, once.
    Collect {
        /// [`GpuEvidence::nonce`].
        nonce: [u8; NONCE_BYTES],
    },
    /// After the evidence was measured: the GPUs may take work.
    SetReady,
}

/// Child to agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromGpu {
    /// There is no GPU in this machine, or no driver for one; the child exits.
    Nothing {
        /// What was found missing.
        reason: String,
    },
    /// Of every GPU, in the driver's order; at least one.
    Evidence {
        /// One for each.
        items: Vec<GpuEvidence>,
    },
    /// The GPUs take work now, and are watched.
    Ready,
    /// It does not work, or it did and a GPU was reset or is gone; the child exits.
    Failed {
        /// What was attempted, and the driver's words.
        reason: String,
    },
}
