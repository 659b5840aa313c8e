//! Revocation: OCSP responses that the caller hands in (RFC 6960). A response counts for a certificate if it names
//! it, is signed by its issuer or by a responder that the issuer certified, and is fresh. A nonce is not asked for,
//! because the responses may come from a cache.

use aws_lc_rs::digest::{Algorithm, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA384, digest};
use der::oid::ObjectIdentifier;
use der::{Decode as _, Encode as _};
use x509_ocsp::{
    BasicOcspResponse, CertId, CertStatus, OcspGeneralizedTime, OcspResponse, OcspResponseStatus,
    ResponderId, SingleResponse,
};

use super::certificate::{Certificate, SignatureDigest};
use super::window::Window;

/// Most bytes of one response; NVIDIA's have about 2 KiB.
pub const OCSP_BYTES_MAX: usize = 64 << 10;
/// How long a response without nextUpdate is taken.
const WITHOUT_NEXT_UPDATE_S: u64 = 24 * 3600;

const ID_PKIX_OCSP_BASIC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.1");
const ECDSA_WITH_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const ECDSA_WITH_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
const ID_SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
const ID_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const ID_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");

/// CRLReason of RFC 5280, 5.3.1.
const REASONS: [&str; 11] = [
    "unspecified",
    "keyCompromise",
    "cACompromise",
    "affiliationChanged",
    "superseded",
    "cessationOfOperation",
    "certificateHold",
    "(7)",
    "removeFromCRL",
    "privilegeWithdrawn",
    "aACompromise",
];
const CERTIFICATE_HOLD: usize = 6;

/// Why bytes are not a response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OcspError {
    /// More than [`OCSP_BYTES_MAX`].
    #[error("{bytes} bytes, but an OCSP response has at most {OCSP_BYTES_MAX}")]
    TooLong {
        /// How many there are.
        bytes: usize,
    },
    /// Not DER of an OCSP response.
    #[error("is not DER of an OCSP response: {0}")]
    Der(String),
    /// The responder refused to answer.
    #[error("holds no answer: the responder said {0}")]
    NoAnswer(String),
}

/// One response, decoded; nothing in it is true until its signature is verified.
#[derive(Debug, Clone)]
pub struct Revocations {
    response: BasicOcspResponse,
    signed: Vec<u8>,
    responders: Vec<Vec<u8>>,
}

/// What the responses say about one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Revocation {
    /// Signed, fresh, and not revoked.
    Good,
    /// None of the responses names it.
    Unnamed,
    /// Revoked for good, with the reason.
    Revoked(&'static str),
    /// Revoked until further notice (certificateHold).
    OnHold,
    /// The issuer does not know it.
    Unknown,
    /// A response about it is not yet or no longer valid; the window.
    Stale(String),
    /// A response about it is not signed by the issuer or its responder.
    Unsigned,
}

impl Revocations {
    /// Decodes one response.
    pub fn parse(bytes: &[u8]) -> Result<Self, OcspError> {
        if bytes.len() > OCSP_BYTES_MAX {
            return Err(OcspError::TooLong { bytes: bytes.len() });
        }
        let not_der = |error: der::Error| OcspError::Der(error.to_string());
        let outer = OcspResponse::from_der(bytes).map_err(not_der)?;
        if outer.response_status != OcspResponseStatus::Successful {
            return Err(OcspError::NoAnswer(format!("{:?}", outer.response_status)));
        }
        let basic = outer
            .response_bytes
            .filter(|inner| inner.response_type == ID_PKIX_OCSP_BASIC);
        let basic = basic.ok_or_else(|| OcspError::NoAnswer("nothing of the basic type".to_owned()))?;
        let response = BasicOcspResponse::from_der(basic.response.as_bytes()).map_err(not_der)?;
        let signed = response.tbs_response_data.to_der().map_err(not_der)?;
        let responders = response
            .certs
            .iter()
            .flatten()
            .map(der::Encode::to_der)
            .collect::<Result<_, _>>();
        Ok(Self {
            signed,
            responders: responders.map_err(not_der)?,
            response,
        })
    }

    /// What this response says about `subject`, or `None` if it does not name it.
    fn about(&self, subject: &Certificate<'_>, issuer: &Certificate<'_>, now_s: u64) -> Option<Revocation> {
        let all = &self.response.tbs_response_data.responses;
        let about = all
            .iter()
            .find(|single| names(&single.cert_id, subject, issuer))?;
        if !self.is_signed_for(issuer, now_s) {
            return Some(Revocation::Unsigned);
        }
        Some(
            staleness(about, now_s).unwrap_or_else(|| match &about.cert_status {
                CertStatus::Good(_) => Revocation::Good,
                CertStatus::Unknown(_) => Revocation::Unknown,
                CertStatus::Revoked(revoked) => {
                    match revoked.revocation_reason.map_or(0, |reason| reason as usize) {
                        CERTIFICATE_HOLD => Revocation::OnHold,
                        reason => Revocation::Revoked(REASONS.get(reason).copied().unwrap_or(REASONS[0])),
                    }
                }
            }),
        )
    }

    fn is_signed_for(&self, issuer: &Certificate<'_>, now_s: u64) -> bool {
        if self.is_signed_by(issuer) {
            return true;
        }
        self.responders
            .iter()
            .filter_map(|der| Certificate::parse(der).ok())
            .any(|responder| {
                responder.is_ocsp_responder()
                    && responder.is_valid_at(now_s)
                    && responder.is_issued_by(issuer)
                    && self.is_signed_by(&responder)
            })
    }

    fn is_signed_by(&self, signer: &Certificate<'_>) -> bool {
        let named = match &self.response.tbs_response_data.responder_id {
            ResponderId::ByName(name) => name
                .to_der()
                .is_ok_and(|name| name == signer.x509.subject().as_raw()),
            ResponderId::ByKey(key) => key.as_bytes() == hash(&SHA1_FOR_LEGACY_USE_ONLY, signer.key_bits()),
        };
        let algorithm = &self.response.signature_algorithm;
        let digest = match algorithm.oid {
            ECDSA_WITH_SHA384 => SignatureDigest::Sha384,
            ECDSA_WITH_SHA256 => SignatureDigest::Sha256,
            _ => return false,
        };
        let signature = self.response.signature.as_bytes();
        named
            && algorithm.parameters.is_none()
            && signature.is_some_and(|signature| signer.verify_asn1(digest, &self.signed, signature))
    }
}

/// The worst that a signed response says about `subject`; what is unsigned or stale only counts if nothing else
/// is said.
pub(super) fn revocation(
    responses: &[Revocations],
    subject: &Certificate<'_>,
    issuer: &Certificate<'_>,
    now_s: u64,
) -> Revocation {
    let answers = responses
        .iter()
        .filter_map(|response| response.about(subject, issuer, now_s));
    let rank = |answer: &Revocation| match answer {
        Revocation::Revoked(_) => 0,
        Revocation::OnHold => 1,
        Revocation::Unknown => 2,
        Revocation::Good => 3,
        Revocation::Stale(_) => 4,
        Revocation::Unsigned => 5,
        Revocation::Unnamed => 6,
    };
    answers.min_by_key(rank).unwrap_or(Revocation::Unnamed)
}

/// When [`revocation`] may say something else next: a response, or the certificate of who signed it, ends or begins
/// to be valid.
pub(super) fn revocation_changes_s(
    responses: &[Revocations],
    subject: &Certificate<'_>,
    issuer: &Certificate<'_>,
    now_s: u64,
) -> u64 {
    let changes = responses.iter().flat_map(|response| {
        let all = response.response.tbs_response_data.responses.iter();
        let about = all.filter(|single| names(&single.cert_id, subject, issuer));
        let responders = response.responders.iter();
        let responders = responders.filter_map(|der| Certificate::parse(der).ok());
        about
            .map(|single| window(single).changes_s(now_s))
            .chain(responders.map(|responder| responder.changes_s(now_s)))
            .collect::<Vec<_>>()
    });
    changes.min().unwrap_or(u64::MAX)
}

/// The window of validity, if `now_s` is outside of it.
fn staleness(single: &SingleResponse, now_s: u64) -> Option<Revocation> {
    let Window { from_s, to_s } = window(single);
    let fresh = window(single).contains(now_s);
    (!fresh).then(|| Revocation::Stale(format!("valid from {from_s} to {to_s}")))
}

fn window(single: &SingleResponse) -> Window {
    let seconds = |time: &OcspGeneralizedTime| time.0.to_unix_duration().as_secs();
    let from_s = seconds(&single.this_update);
    let to_s = single
        .next_update
        .as_ref()
        .map_or(from_s.saturating_add(WITHOUT_NEXT_UPDATE_S), seconds);
    Window { from_s, to_s }
}

/// Whether the identifier is of this certificate of this issuer (RFC 6960, 4.1.1).
fn names(id: &CertId, subject: &Certificate<'_>, issuer: &Certificate<'_>) -> bool {
    let algorithm = match id.hash_algorithm.oid {
        ID_SHA1 => &SHA1_FOR_LEGACY_USE_ONLY,
        ID_SHA256 => &SHA256,
        ID_SHA384 => &SHA384,
        _ => return false,
    };
    id.serial_number.as_bytes() == subject.x509.raw_serial()
        && id.issuer_name_hash.as_bytes() == hash(algorithm, issuer.x509.subject().as_raw())
        && id.issuer_key_hash.as_bytes() == hash(algorithm, issuer.key_bits())
}

fn hash(algorithm: &'static Algorithm, bytes: &[u8]) -> Vec<u8> {
    digest(algorithm, bytes).as_ref().to_vec()
}
