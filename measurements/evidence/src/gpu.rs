//! What a GPU says of itself, and what the guest saw of it before it trusted the GPU with anything.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{Digest48, NONCE_BYTES};

/// What the guest collected of one GPU before it set the GPU ready.
///
/// The report is the GPU's own word, signed by its key. The two flags are only the guest's: NVML tells them, no
/// signature covers them, so they are worth what the guest's measurements are worth.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuEvidence {
    /// The SPDM request and response as NVML returns them (`nvmlDeviceGetConfComputeGpuAttestationReport`,
    /// `attestationReport`). The request holds [`GpuEvidence::nonce`].
    #[cbor(n(0), with = "minicbor::bytes")]
    pub report: Vec<u8>,
    /// The GPU's certificate chain as NVML returns it (`nvmlDeviceGetConfComputeGpuCertificate`,
    /// `attestationCertChain`): PEM, leaf first.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub certificates: Vec<u8>,
    /// Whether confidential computing is on (`nvmlSystemGetConfComputeState`, `ccFeature`).
    #[n(2)]
    pub confidential_compute: bool,
    /// Whether the developer tools are on, with which the driver's user can read the GPU's memory (the same,
    /// `devToolsMode`).
    #[n(3)]
    pub dev_tools: bool,
}

impl GpuEvidence {
    /// The nonce under which a guest asks its GPUs: SHA-256 over a domain tag and the guest's usage key, which is
    /// new at every boot. So evidence of another guest, or of an earlier boot, has another nonce.
    pub fn nonce(usage_key: &[u8; 32]) -> [u8; NONCE_BYTES] {
        let mut hash = Sha256::new();
        hash.update(b"cocoon-gpu-nonce-v1\0");
        hash.update(usage_key);
        hash.finalize().into()
    }

    /// The payload of the GPU event: empty without a GPU, else SHA-384 over the items, each as CBOR after its
    /// length (8 bytes, little endian).
    pub fn event_payload(items: &[Self]) -> Vec<u8> {
        if items.is_empty() {
            return Vec::new();
        }
        let items: Vec<_> = items
            .iter()
            .map(|item| minicbor::to_vec(item).expect("encoding into memory cannot fail"))
            .collect();
        let lengths: Vec<_> = items
            .iter()
            .map(|item| (item.len() as u64).to_le_bytes())
            .collect();
        let parts = lengths
            .iter()
            .zip(&items)
            .flat_map(|(length, item)| [length.as_slice(), item.as_slice()]);
        Digest48::of_parts(parts).as_bytes().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence() -> GpuEvidence {
        GpuEvidence {
            report: vec![1; 40],
            certificates: vec![2; 40],
            confidential_compute: true,
            dev_tools: false,
        }
    }

    #[test]
    fn every_field_changes_the_event() {
        let base = GpuEvidence::event_payload(&[evidence()]);
        assert_eq!(base.len(), 48);
        let variants = [
            GpuEvidence {
                report: vec![1; 41],
                ..evidence()
            },
            GpuEvidence {
                certificates: vec![],
                ..evidence()
            },
            GpuEvidence {
                confidential_compute: false,
                ..evidence()
            },
            GpuEvidence {
                dev_tools: true,
                ..evidence()
            },
        ];
        for variant in variants {
            assert_ne!(
                GpuEvidence::event_payload(std::slice::from_ref(&variant)),
                base,
                "{variant:?}"
            );
        }
        assert_ne!(GpuEvidence::event_payload(&[evidence(), evidence()]), base);
        assert!(GpuEvidence::event_payload(&[]).is_empty());
    }

    #[test]
    fn the_nonce_is_this_guests() {
        assert_ne!(GpuEvidence::nonce(&[1; 32]), GpuEvidence::nonce(&[2; 32]));
    }
}
