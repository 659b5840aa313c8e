//! The evidence bundle: everything a verifier needs from the guest, as one CBOR item.

use minicbor::{Decode, Encode};

use crate::{EventLog, GpuEvidence};

/// A longer bundle is refused before it is parsed. It holds a quote (at most 32 KiB), the log (a launch document of
/// 8 KiB and little more) and, for each of at most 16 GPUs, a report of 8 KiB and certificates of 5 KiB, the sizes of
/// NVML's buffers.
pub const BUNDLE_BYTES_MAX: usize = 256 * 1024;

/// Hardware evidence. Which variant it is decides how it is verified, never the bytes inside.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Platform {
    /// An Intel TDX quote (Intel TDX DCAP Quote Generation Library, quote format version 4 or 5).
    #[n(0)]
    Tdx {
        /// The raw quote.
        #[cbor(n(0), with = "minicbor::bytes")]
        quote: Vec<u8>,
    },
    /// An AMD SEV-SNP attestation report (AMD 56860, SEV-SNP Firmware ABI, chapter 7, `ATTESTATION_REPORT`).
    #[n(1)]
    Snp {
        /// The raw report, without the table that MSG_REPORT_RSP puts before it.
        #[cbor(n(0), with = "minicbor::bytes")]
        report: Vec<u8>,
    },
}

impl Platform {
    /// As policies write it (`platform.kind`).
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tdx { .. } => "tdx",
            Self::Snp { .. } => "snp",
        }
    }
}

/// What a guest presents: the platform's evidence, the RTMR3 log and GPU evidence.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct EvidenceBundle {
    /// Signed by the platform.
    #[n(0)]
    pub platform: Platform,
    /// On TDX it replays to RTMR3 of the quote; on SNP, which has no such register, the report data binds it.
    #[n(1)]
    pub events: EventLog,
    /// One item for each GPU; their digest is in the log.
    #[n(2)]
    pub gpu: Vec<GpuEvidence>,
}

/// Why bytes are not an evidence bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Over [`BUNDLE_BYTES_MAX`].
    #[error("the evidence bundle has {bytes} bytes, at most {BUNDLE_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Not the CBOR that [`EvidenceBundle::encode`] writes.
    #[error("the evidence bundle is not well formed")]
    Malformed(#[source] minicbor::decode::Error),
    /// The same value in another encoding, or bytes after the end.
    #[error("the evidence bundle is not in its one canonical encoding")]
    NotCanonical,
}

impl EvidenceBundle {
    /// The canonical encoding.
    pub fn encode(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("encoding into memory cannot fail")
    }

    /// Parses bytes from the network.
    ///
    /// # Errors
    /// The bytes are too many, not well formed, or not exactly what [`Self::encode`] would write.
    pub fn decode(bytes: &[u8]) -> Result<Self, BundleError> {
        if bytes.len() > BUNDLE_BYTES_MAX {
            return Err(BundleError::TooLarge { bytes: bytes.len() });
        }
        let bundle: Self = minicbor::decode(bytes).map_err(BundleError::Malformed)?;
        if bundle.encode() != bytes {
            return Err(BundleError::NotCanonical);
        }
        Ok(bundle)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::EventKind;

    fn bundle(quote: Vec<u8>, document: Vec<u8>) -> EvidenceBundle {
        let mut events = EventLog::default();
        events.push(EventKind::LaunchDocument, document).unwrap();
        EvidenceBundle {
            platform: Platform::Tdx { quote },
            events,
            gpu: vec![],
        }
    }

    proptest! {
        #[test]
        fn round_trips(quote in prop::collection::vec(any::<u8>(), 0..600),
                       document in prop::collection::vec(any::<u8>(), 0..600)) {
            let bundle = bundle(quote, document);
            prop_assert_eq!(EvidenceBundle::decode(&bundle.encode()).unwrap(), bundle);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = EvidenceBundle::decode(&bytes);
        }
    }

    #[test]
    fn truncation_and_trailing_bytes_are_refused() {
        let bytes = bundle(vec![1; 40], vec![2; 40]).encode();
        for cut in 0..bytes.len() {
            assert!(EvidenceBundle::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(EvidenceBundle::decode(&longer).is_err());
    }

    #[test]
    fn a_lying_length_does_not_allocate() {
        // An array head that announces 2^32 events.
        let bytes = [0x83, 0x82, 0x00, 0x81, 0x40, 0x9a, 0xff, 0xff, 0xff, 0xff];
        assert!(EvidenceBundle::decode(&bytes).is_err());
    }
}
