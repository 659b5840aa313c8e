//! The certificate extension that carries the evidence: a conceptual message wrapper (CMW) as the
//! interoperable RA-TLS profile uses it (TCG DICE Attestation Architecture 1.1, OID 2.23.133.5.4.9;
//! draft-ietf-rats-msg-wrap, CBOR record `[media type, bytes]`).
//!
//! The record holds the bundle itself or, where that would make the certificate too long (several GPUs), the
//! bundle's SHA-256: the verifier then fetches the bundle over the same connection and holds it against the digest.
//! What ties the evidence to the certificate is the quote's report data either way; the digest only says which
//! bundle the guest means.

use minicbor::{Decoder, Encoder};

use crate::{BundleError, Digest32, EvidenceBundle};

/// tcg-dice-conceptual-message-wrapper.
pub const EVIDENCE_EXTENSION_OID: [u64; 6] = [2, 23, 133, 5, 4, 9];

/// Media type of [`EvidenceBundle::encode`].
pub const CMW_MEDIA_TYPE: &str = "application/vnd.cocoon.evidence+cbor; version=1";

/// Media type of a bundle's SHA-256, 32 bytes.
pub const CMW_DIGEST_MEDIA_TYPE: &str = "application/vnd.cocoon.evidence-sha256; version=1";

/// A longer certificate is refused before it is parsed; TLS peers commonly stop at 32 KiB as well.
pub const CERTIFICATE_BYTES_MAX: usize = 32 * 1024;

/// A longer bundle goes by digest. What is left of the certificate is for its key, names, signature and wrapping.
const CARRIED_BYTES_MAX: usize = CERTIFICATE_BYTES_MAX - 2 * 1024;

/// What a certificate says of its evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertifiedEvidence {
    /// All of it.
    Carried(EvidenceBundle),
    /// SHA-256 of [`EvidenceBundle::encode`]; the bundle is to be fetched.
    ByDigest(Digest32),
}

/// Why an extension holds no evidence.
#[derive(Debug, thiserror::Error)]
pub enum ExtensionError {
    /// Not a CMW record, or not in its canonical encoding.
    #[error("the certificate's evidence extension is not a conceptual message wrapper")]
    NotAWrapper,
    /// A record of another kind.
    #[error(
        "the certificate's evidence has media type {0:?}, expected {CMW_MEDIA_TYPE:?} or {CMW_DIGEST_MEDIA_TYPE:?}"
    )]
    MediaType(String),
    /// A digest of another length.
    #[error("the digest of the certificate's evidence has {bytes} bytes, expected 32")]
    Digest {
        /// Its length.
        bytes: usize,
    },
    /// The record's content.
    #[error("the certificate's evidence cannot be read")]
    Bundle(#[from] BundleError),
}

impl CertifiedEvidence {
    /// The bundle itself if it fits into a certificate, else its digest.
    pub fn of(bundle: EvidenceBundle) -> Self {
        let encoded = bundle.encode();
        if encoded.len() <= CARRIED_BYTES_MAX {
            Self::Carried(bundle)
        } else {
            Self::ByDigest(Digest32::of(&encoded))
        }
    }

    /// The extension's value.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Carried(bundle) => wrap(CMW_MEDIA_TYPE, &bundle.encode()),
            Self::ByDigest(digest) => wrap(CMW_DIGEST_MEDIA_TYPE, digest.as_bytes()),
        }
    }

    /// Reads the extension's value.
    ///
    /// # Errors
    /// See [`ExtensionError`].
    pub fn decode(value: &[u8]) -> Result<Self, ExtensionError> {
        let mut decoder = Decoder::new(value);
        if !matches!(decoder.array(), Ok(Some(2))) {
            return Err(ExtensionError::NotAWrapper);
        }
        let media_type = decoder.str().map_err(|_| ExtensionError::NotAWrapper)?;
        if ![CMW_MEDIA_TYPE, CMW_DIGEST_MEDIA_TYPE].contains(&media_type) {
            return Err(ExtensionError::MediaType(media_type.chars().take(80).collect()));
        }
        let content = decoder.bytes().map_err(|_| ExtensionError::NotAWrapper)?;
        if wrap(media_type, content) != value {
            return Err(ExtensionError::NotAWrapper);
        }
        if media_type == CMW_MEDIA_TYPE {
            return Ok(Self::Carried(EvidenceBundle::decode(content)?));
        }
        let digest = content
            .try_into()
            .map_err(|_| ExtensionError::Digest { bytes: content.len() })?;
        Ok(Self::ByDigest(Digest32(digest)))
    }
}

fn wrap(media_type: &str, content: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::with_capacity(content.len() + 80));
    encoder
        .array(2)
        .and_then(|e| e.str(media_type))
        .and_then(|e| e.bytes(content))
        .expect("encoding into memory cannot fail");
    encoder.into_writer()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EventLog, Platform};

    fn bundle(quote_bytes: usize) -> EvidenceBundle {
        EvidenceBundle {
            platform: Platform::Tdx {
                quote: vec![7; quote_bytes],
            },
            events: EventLog::default(),
            gpu: vec![],
        }
    }

    #[test]
    fn a_bundle_is_carried_as_long_as_it_fits_and_named_by_digest_beyond() {
        let around = bundle(30_000).encode().len() - 30_000;
        let largest = bundle(CARRIED_BYTES_MAX - around);
        let carried = CertifiedEvidence::of(largest.clone()).encode();
        assert!(carried.len() < CERTIFICATE_BYTES_MAX);
        let read = CertifiedEvidence::decode(&carried).unwrap();
        assert_eq!(read, CertifiedEvidence::Carried(largest));

        let larger = bundle(CARRIED_BYTES_MAX - around + 1);
        let digest = Digest32::of(&larger.encode());
        let named = CertifiedEvidence::of(larger).encode();
        assert!(named.len() < 120);
        let read = CertifiedEvidence::decode(&named).unwrap();
        assert_eq!(read, CertifiedEvidence::ByDigest(digest));
    }

    #[test]
    fn another_media_type_truncation_and_trailing_bytes_are_refused() {
        for quote_bytes in [5_000, 40_000] {
            let mut value = CertifiedEvidence::of(bundle(quote_bytes)).encode();
            for cut in 0..value.len().min(120) {
                assert!(CertifiedEvidence::decode(&value[..cut]).is_err());
            }
            value.push(0);
            let refused = CertifiedEvidence::decode(&value);
            assert!(matches!(refused, Err(ExtensionError::NotAWrapper)));
            value.pop();
            value[10] ^= 1;
            let refused = CertifiedEvidence::decode(&value);
            assert!(matches!(refused, Err(ExtensionError::MediaType(_))));
        }
    }

    #[test]
    fn a_digest_of_another_length_is_refused() {
        for length in [0, 31, 33, 64] {
            let value = wrap(CMW_DIGEST_MEDIA_TYPE, &vec![1; length]);
            let refused = CertifiedEvidence::decode(&value);
            assert!(matches!(refused, Err(ExtensionError::Digest { bytes }) if bytes == length));
        }
    }
}
