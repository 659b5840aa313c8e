//! The DSSE envelope (Dead Simple Signing Envelope, protocol v1.0.2) around one payload.
//!
//! Trusts nothing that it reads: the payload is handed out only by [`Envelope::verified`]. A signature covers the
//! payload's type as well, so that a document signed for another purpose is none here.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use super::key::key_id;

/// What the payload is: an in-toto statement.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// A longer envelope is not read: a statement of an image with 1,000 inputs needs about 300 KB.
pub const ENVELOPE_BYTES_MAX: u64 = 1024 * 1024;

/// Each costs a verification; a release has a handful of signers.
const SIGNATURES_MAX: usize = 16;

/// A payload with its signatures. Members that the protocol does not know are ignored, as it demands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct EnvelopeSignature {
    /// A hint for people; nothing is decided by it.
    #[serde(default)]
    keyid: String,
    sig: String,
}

/// Why an envelope proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Not JSON of this form.
    #[error("it is no DSSE envelope")]
    Malformed(#[source] serde_json::Error),
    /// The payload is something else.
    #[error("its payload is not an in-toto statement ({PAYLOAD_TYPE})")]
    PayloadType,
    /// Over the bound, or none.
    #[error("it has {0} signatures; 1 to {SIGNATURES_MAX} are looked at")]
    SignatureCount(usize),
    /// Over [`ENVELOPE_BYTES_MAX`].
    #[error("it is longer than {ENVELOPE_BYTES_MAX} bytes")]
    TooLarge,
    /// Not base64.
    #[error("its {0} is not base64")]
    Base64(&'static str),
    /// None of the signatures is by the key.
    #[error("no signature in it is by the key {key}: either another key signed, or it was altered")]
    NotSigned {
        /// The key's name.
        key: String,
    },
}

impl Envelope {
    /// An envelope that nobody signed yet.
    pub fn new(payload: &[u8]) -> Self {
        Self {
            payload: STANDARD.encode(payload),
            payload_type: PAYLOAD_TYPE.into(),
            signatures: Vec::new(),
        }
    }

    /// Reads an envelope. Nothing in it is verified by that.
    ///
    /// # Errors
    /// See [`EnvelopeError`].
    pub fn parse(json: &[u8]) -> Result<Self, EnvelopeError> {
        if json.len() as u64 > ENVELOPE_BYTES_MAX {
            return Err(EnvelopeError::TooLarge);
        }
        let envelope: Self = serde_json::from_slice(json).map_err(EnvelopeError::Malformed)?;
        if envelope.payload_type != PAYLOAD_TYPE {
            return Err(EnvelopeError::PayloadType);
        }
        let count = envelope.signatures.len();
        if count == 0 || count > SIGNATURES_MAX {
            return Err(EnvelopeError::SignatureCount(count));
        }
        Ok(envelope)
    }

    /// The envelope as it is stored.
    ///
    /// # Errors
    /// No reader would take it.
    pub fn to_json(&self) -> Result<Vec<u8>, EnvelopeError> {
        let json = serde_json::to_string_pretty(self).expect("plain data") + "\n";
        Self::parse(json.as_bytes())?;
        Ok(json.into_bytes())
    }

    /// Whether these are the bytes in it, whoever signed them.
    pub fn holds(&self, payload: &[u8]) -> bool {
        decode("payload", &self.payload).is_ok_and(|held| held == payload)
    }

    /// Adds the key's signature, in place of what claims to be one; those of other keys stay.
    ///
    /// # Errors
    /// The payload is not base64.
    pub fn sign(&mut self, key: &SigningKey) -> Result<(), EnvelopeError> {
        let payload = decode("payload", &self.payload)?;
        let keyid = key_id(&key.verifying_key());
        let signature = key.sign(&pre_authentication(&self.payload_type, &payload));
        self.signatures.retain(|other| other.keyid != keyid);
        self.signatures.push(EnvelopeSignature {
            keyid,
            sig: STANDARD.encode(signature.to_bytes()),
        });
        Ok(())
    }

    /// How many signatures there are, true or not.
    pub fn signature_count(&self) -> usize {
        self.signatures.len()
    }

    /// The payload, if the key signed it.
    ///
    /// # Errors
    /// See [`EnvelopeError`].
    pub fn verified(&self, key: &VerifyingKey) -> Result<Vec<u8>, EnvelopeError> {
        let payload = decode("payload", &self.payload)?;
        let message = pre_authentication(&self.payload_type, &payload);
        // Every signature is tried: the key's name beside it is not authenticated. A broken one of another key does
        // not stop ours.
        let by_key = |signature: &EnvelopeSignature| {
            let bytes = decode("sig", &signature.sig).ok();
            let signature = bytes.and_then(|bytes| Signature::from_slice(&bytes).ok());
            signature.is_some_and(|signature| key.verify_strict(&message, &signature).is_ok())
        };
        if self.signatures.iter().any(by_key) {
            return Ok(payload);
        }
        Err(EnvelopeError::NotSigned { key: key_id(key) })
    }
}

/// PAE of DSSE v1.0.2: what is signed. The lengths make type and payload inseparable.
pub fn pre_authentication(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

/// The protocol leaves the alphabet to the writer.
fn decode(field: &'static str, text: &str) -> Result<Vec<u8>, EnvelopeError> {
    let decoded = STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text));
    decoded.map_err(|_| EnvelopeError::Base64(field))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYLOAD: &[u8] = br#"{"a":"??>>"}"#;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn signed() -> Envelope {
        let mut envelope = Envelope::new(PAYLOAD);
        envelope.sign(&key(1)).unwrap();
        envelope
    }

    fn assert_not_signed(envelope: &Envelope) {
        let error = envelope.verified(&key(1).verifying_key()).unwrap_err();
        assert!(matches!(error, EnvelopeError::NotSigned { .. }), "{error}");
    }

    #[test]
    fn what_is_signed_is_the_protocols_own_example() {
        assert_eq!(
            pre_authentication("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn an_altered_payload_or_signature_is_refused() {
        let honest = signed();
        assert_eq!(honest.verified(&key(1).verifying_key()).unwrap(), PAYLOAD);
        let mut altered = honest.clone();
        altered.payload = STANDARD.encode(br#"{"a":"??>?"}"#);
        assert_not_signed(&altered);
        for sig in ["", "AAAA", "!", &STANDARD.encode([0; 64])] {
            let mut altered = honest.clone();
            altered.signatures[0].sig = sig.into();
            assert_not_signed(&altered);
        }
    }

    #[test]
    fn another_key_that_borrows_the_name_of_ours_is_refused() {
        let mut envelope = Envelope::new(PAYLOAD);
        envelope.sign(&key(2)).unwrap();
        envelope.signatures[0].keyid = key_id(&key(1).verifying_key());
        assert_not_signed(&envelope);
    }

    #[test]
    fn a_signature_for_another_payload_type_is_refused() {
        // Signed as another kind of document, presented as a statement.
        let other = "application/vnd.other+json";
        let mut envelope = signed();
        let signature = key(1).sign(&pre_authentication(other, PAYLOAD));
        envelope.signatures[0].sig = STANDARD.encode(signature.to_bytes());
        assert_not_signed(&envelope);
        // The bytes alone, without their type.
        envelope.signatures[0].sig = STANDARD.encode(key(1).sign(PAYLOAD).to_bytes());
        assert_not_signed(&envelope);
        // Honestly signed, but of that type.
        envelope.payload_type = other.into();
        envelope.sign(&key(1)).unwrap();
        let json = serde_json::to_vec(&envelope).unwrap();
        assert!(matches!(Envelope::parse(&json), Err(EnvelopeError::PayloadType)));
    }

    #[test]
    fn two_keys_sign_beside_each_other_and_one_key_once() {
        let mut envelope = signed();
        envelope.sign(&key(2)).unwrap();
        let both = envelope.to_json().unwrap();
        envelope.sign(&key(2)).unwrap();
        assert_eq!(envelope.to_json().unwrap(), both);
        // A stranger's broken signature in front hides neither.
        envelope.signatures.insert(
            0,
            EnvelopeSignature {
                keyid: String::new(),
                sig: "?".into(),
            },
        );
        for signer in [1, 2] {
            envelope.verified(&key(signer).verifying_key()).unwrap();
        }
        assert!(envelope.verified(&key(3).verifying_key()).is_err());
    }

    #[test]
    fn a_key_whose_every_signature_holds_is_none() {
        // The neutral point: R = neutral, s = 0 satisfies the lax equation for every message.
        let mut point = [0; 32];
        point[0] = 1;
        let weak = VerifyingKey::from_bytes(&point).unwrap();
        let mut sig = [0; 64];
        sig[0] = 1;
        let mut envelope = signed();
        envelope.signatures[0].sig = STANDARD.encode(sig);
        assert!(envelope.verified(&weak).is_err());
    }

    #[test]
    fn other_writers_alphabet_and_members_are_read() {
        let mut value = serde_json::to_value(signed()).unwrap();
        value["payload"] = URL_SAFE.encode(PAYLOAD).into();
        assert_ne!(value["payload"], STANDARD.encode(PAYLOAD));
        value["extra"] = 1.into();
        value["signatures"][0].as_object_mut().unwrap().remove("keyid");
        let envelope = Envelope::parse(value.to_string().as_bytes()).unwrap();
        assert_eq!(envelope.verified(&key(1).verifying_key()).unwrap(), PAYLOAD);
    }

    #[test]
    fn giants_crowds_and_garbage_are_refused() {
        let giant = vec![b' '; ENVELOPE_BYTES_MAX as usize + 1];
        assert!(matches!(Envelope::parse(&giant), Err(EnvelopeError::TooLarge)));
        let mut crowd = signed();
        for count in [17, 0] {
            crowd.signatures.resize(count, signed().signatures[0].clone());
            let json = serde_json::to_vec(&crowd).unwrap();
            let error = Envelope::parse(&json).unwrap_err();
            assert!(matches!(error, EnvelopeError::SignatureCount(_)), "{error}");
        }
        for garbage in ["", "[]", "{}", r#"{"payload":"","payload":""}"#] {
            let error = Envelope::parse(garbage.as_bytes()).unwrap_err();
            assert!(matches!(error, EnvelopeError::Malformed(_)), "{garbage}");
        }
    }
}
