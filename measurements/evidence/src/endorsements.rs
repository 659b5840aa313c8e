//! Endorsements: what vendors publish about a platform and its devices, carried by the host and passed on by the
//! guest unread. Every item is signed by a vendor, so it does not matter who carries it; see
//! docs/decisions/0005-collateral-travels-with-the-node.md.

use minicbor::{Decode, Encode, bytes::ByteVec};

/// Longer endorsements are refused before they are parsed. Intel's collateral has about 20 KiB, a GPU's two RIM
/// files and OCSP responses about 100 KiB.
pub const ENDORSEMENTS_BYTES_MAX: usize = 512 * 1024;

/// Most items of one kind.
const ITEMS_MAX: usize = 64;

/// The media type of [`Endorsements::encode`].
pub const ENDORSEMENTS_MEDIA_TYPE: &str = "application/vnd.cocoon.endorsements+cbor";

/// What a verifier needs beside a guest's evidence. A kind that the platform does not have is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Endorsements {
    /// Intel TDX: TCB info, QE identity and revocation lists with their chains, in the JSON of dcap-qvl's
    /// `QuoteCollateralV3`; empty on other platforms.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub tdx: Vec<u8>,
    /// AMD SEV-SNP: certificates (VCEK or VLEK, ASK or ASVK, ARK) and revocation lists, each PEM or DER.
    #[n(1)]
    pub snp: Vec<ByteVec>,
    /// NVIDIA: RIM files of driver and VBIOS, or of the switches.
    #[n(2)]
    pub rims: Vec<ByteVec>,
    /// NVIDIA: OCSP responses, DER.
    #[n(3)]
    pub ocsp: Vec<ByteVec>,
}

/// Why bytes are not endorsements.
#[derive(Debug, thiserror::Error)]
pub enum EndorsementsError {
    /// Over [`ENDORSEMENTS_BYTES_MAX`].
    #[error("the endorsements have {bytes} bytes, at most {ENDORSEMENTS_BYTES_MAX} are allowed")]
    TooLarge {
        /// Their length.
        bytes: usize,
    },
    /// Not the CBOR that [`Endorsements::encode`] writes.
    #[error("the endorsements are not well formed")]
    Malformed(#[source] minicbor::decode::Error),
    /// More items than any machine has.
    #[error("the endorsements have {items} items of one kind, at most {ITEMS_MAX} are allowed")]
    TooMany {
        /// How many.
        items: usize,
    },
    /// The same value in another encoding, or bytes after the end.
    #[error("the endorsements are not in their one canonical encoding")]
    NotCanonical,
}

impl Endorsements {
    /// Those of a TDX platform without GPU.
    pub fn of_tdx(collateral: Vec<u8>) -> Self {
        Self {
            tdx: collateral,
            ..Self::default()
        }
    }

    /// The canonical encoding.
    pub fn encode(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("encoding into memory cannot fail")
    }

    /// Parses bytes from the network.
    ///
    /// # Errors
    /// The bytes are too many, not well formed, or not exactly what [`Self::encode`] would write.
    pub fn decode(bytes: &[u8]) -> Result<Self, EndorsementsError> {
        if bytes.len() > ENDORSEMENTS_BYTES_MAX {
            return Err(EndorsementsError::TooLarge { bytes: bytes.len() });
        }
        let decoded: Self = minicbor::decode(bytes).map_err(EndorsementsError::Malformed)?;
        for items in [&decoded.snp, &decoded.rims, &decoded.ocsp].map(Vec::len) {
            if items > ITEMS_MAX {
                return Err(EndorsementsError::TooMany { items });
            }
        }
        if decoded.encode() != bytes {
            return Err(EndorsementsError::NotCanonical);
        }
        Ok(decoded)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn items() -> impl Strategy<Value = Vec<ByteVec>> {
        let item = prop::collection::vec(any::<u8>(), 0..80).prop_map(ByteVec::from);
        prop::collection::vec(item, 0..4)
    }

    proptest! {
        #[test]
        fn round_trips(tdx in prop::collection::vec(any::<u8>(), 0..600), snp in items(), rims in items(),
                       ocsp in items()) {
            let endorsements = Endorsements { tdx, snp, rims, ocsp };
            prop_assert_eq!(Endorsements::decode(&endorsements.encode()).unwrap(), endorsements);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Endorsements::decode(&bytes);
        }
    }

    #[test]
    fn truncation_trailing_bytes_and_too_much_are_refused() {
        let bytes = Endorsements::of_tdx(vec![1; 40]).encode();
        for cut in 0..bytes.len() {
            assert!(Endorsements::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        assert!(Endorsements::decode(&[bytes, vec![0]].concat()).is_err());
        let error = Endorsements::decode(&vec![0; ENDORSEMENTS_BYTES_MAX + 1]).unwrap_err();
        assert!(matches!(error, EndorsementsError::TooLarge { .. }), "{error}");
        let many = Endorsements {
            ocsp: vec![ByteVec::from(vec![]); ITEMS_MAX + 1],
            ..Endorsements::default()
        };
        let error = Endorsements::decode(&many.encode()).unwrap_err();
        assert!(matches!(error, EndorsementsError::TooMany { .. }), "{error}");
    }
}
