//! The evidence bundle: everything a verifier needs from the guest, as one CBOR item.

use minicbor::{Decode, Encode};

use crate::{Digest48, EventLog};

/// A longer bundle is refused before it is parsed.
pub const BUNDLE_BYTES_MAX: usize = 64 * 1024;

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
}

/// What a guest presents: the platform's evidence, the RTMR3 log and GPU evidence.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct EvidenceBundle {
    /// Signed by the platform.
    #[n(0)]
    pub platform: Platform,
    /// Replays to RTMR3 of the platform's evidence.
    #[n(1)]
    pub events: EventLog,
    /// Raw GPU evidence, one item for each GPU; its digest is in the log.
    #[n(2)]
    pub gpu: Vec<minicbor::bytes::ByteVec>,
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

    /// SHA-384 over the length-prefixed GPU evidence items; `None` when there is no GPU. The payload of the
    /// GPU event is this digest, or empty.
    pub fn gpu_digest(gpu: &[minicbor::bytes::ByteVec]) -> Option<Digest48> {
        if gpu.is_empty() {
            return None;
        }
        let lengths: Vec<_> = gpu.iter().map(|item| (item.len() as u64).to_le_bytes()).collect();
        let parts = lengths
            .iter()
            .zip(gpu)
            .flat_map(|(length, item)| [length.as_slice(), item.as_slice()]);
        Some(Digest48::of_parts(parts))
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
