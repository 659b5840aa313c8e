//! The certificate extension that carries the bundle: a conceptual message wrapper (CMW) as the
//! interoperable RA-TLS profile uses it (TCG DICE Attestation Architecture 1.1, OID 2.23.133.5.4.9;
//! draft-ietf-rats-msg-wrap, CBOR record `[media type, bytes]`).

use minicbor::{Decoder, Encoder};

use crate::{BundleError, EvidenceBundle};

/// tcg-dice-conceptual-message-wrapper.
pub const EVIDENCE_EXTENSION_OID: [u64; 6] = [2, 23, 133, 5, 4, 9];

/// Media type of [`EvidenceBundle::encode`].
pub const CMW_MEDIA_TYPE: &str = "application/vnd.cocoon.evidence+cbor; version=1";

/// A longer certificate is refused before it is parsed; TLS peers commonly stop at 32 KiB as well.
pub const CERTIFICATE_BYTES_MAX: usize = 32 * 1024;

/// Why an extension holds no evidence bundle.
#[derive(Debug, thiserror::Error)]
pub enum ExtensionError {
    /// Not a CMW record, or not in its canonical encoding.
    #[error("the certificate's evidence extension is not a conceptual message wrapper")]
    NotAWrapper,
    /// A record of another kind.
    #[error("the certificate's evidence has media type {0:?}, expected {CMW_MEDIA_TYPE:?}")]
    MediaType(String),
    /// The record's content.
    #[error("the certificate's evidence cannot be read")]
    Bundle(#[from] BundleError),
}

/// The extension's value for a bundle.
pub fn encode_extension(bundle: &EvidenceBundle) -> Vec<u8> {
    wrap(&bundle.encode())
}

/// Reads the extension's value.
///
/// # Errors
/// See [`ExtensionError`].
pub fn decode_extension(value: &[u8]) -> Result<EvidenceBundle, ExtensionError> {
    let mut decoder = Decoder::new(value);
    if !matches!(decoder.array(), Ok(Some(2))) {
        return Err(ExtensionError::NotAWrapper);
    }
    let media_type = decoder.str().map_err(|_| ExtensionError::NotAWrapper)?;
    if media_type != CMW_MEDIA_TYPE {
        return Err(ExtensionError::MediaType(media_type.chars().take(80).collect()));
    }
    let content = decoder.bytes().map_err(|_| ExtensionError::NotAWrapper)?;
    if wrap(content) != value {
        return Err(ExtensionError::NotAWrapper);
    }
    Ok(EvidenceBundle::decode(content)?)
}

fn wrap(content: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::with_capacity(content.len() + 80));
    encoder
        .array(2)
        .and_then(|e| e.str(CMW_MEDIA_TYPE))
        .and_then(|e| e.bytes(content))
        .expect("encoding into memory cannot fail");
    encoder.into_writer()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EventLog, Platform};

    fn bundle() -> EvidenceBundle {
        EvidenceBundle {
            platform: Platform::Tdx { quote: vec![7; 5000] },
            events: EventLog::default(),
            gpu: vec![],
        }
    }

    #[test]
    fn round_trips() {
        assert_eq!(decode_extension(&encode_extension(&bundle())).unwrap(), bundle());
    }

    #[test]
    fn another_media_type_truncation_and_trailing_bytes_are_refused() {
        let mut value = encode_extension(&bundle());
        for cut in 0..120 {
            assert!(decode_extension(&value[..cut]).is_err());
        }
        value.push(0);
        assert!(matches!(
            decode_extension(&value),
            Err(ExtensionError::NotAWrapper)
        ));
        value.pop();
        value[10] ^= 1;
        assert!(matches!(
            decode_extension(&value),
            Err(ExtensionError::MediaType(_))
        ));
    }
}
