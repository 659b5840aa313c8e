//! X.509 certificates of NVIDIA's two hierarchies: devices' identities and RIM signers. All of them have ECDSA
//! P-384 keys and SHA-384 signatures (RFC 5280, RFC 5758 3.2).

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_FIXED,
    UnparsedPublicKey,
};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, Oid};
use x509_parser::prelude::{
    ASN1Time, FromDer as _, ParsedExtension, Pem, X509Certificate, X509Extension, X509Version,
};

use super::window::Window;

/// Most bytes of one certificate; NVIDIA's have less than 1 KiB.
const CERTIFICATE_BYTES_MAX: usize = 8 << 10;
/// Most certificates that are read from one input.
const CERTIFICATES_MAX: usize = 16;

/// The algorithm of every certificate: the identifier 1.2.840.10045.4.3.3 without parameters.
const ECDSA_WITH_SHA384: [u8; 12] = [0x30, 10, 0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];

/// Why bytes are not a certificate of NVIDIA's form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// More than a certificate or a list of them may have.
    #[error("{actual} {what}, but at most {limit} are read")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        actual: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Neither PEM blocks nor DER.
    #[error("byte {offset} starts neither a PEM certificate nor a DER one")]
    Encoding {
        /// Where.
        offset: usize,
    },
    /// Not DER of an X.509 certificate.
    #[error("is not DER of an X.509 certificate: {0}")]
    Der(String),
    /// Bytes after the certificate.
    #[error("{0} bytes follow the certificate")]
    Trailing(usize),
    /// An algorithm, a version or an encoding that NVIDIA's certificates do not have.
    #[error("{0}")]
    Form(String),
}

/// Splits PEM blocks or DER certificates, one after the other, into single DER certificates.
pub fn read_certificates(bytes: &[u8]) -> Result<Vec<Vec<u8>>, CertificateError> {
    let limit = CERTIFICATES_MAX * CERTIFICATE_BYTES_MAX;
    if bytes.len() > limit {
        return Err(CertificateError::TooMany {
            what: "bytes",
            actual: bytes.len(),
            limit,
        });
    }
    let start = bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    let certificates = match bytes.get(start) {
        Some(b'-') => read_pem(bytes)?,
        Some(0x30) if start == 0 => read_der(bytes)?,
        _ => return Err(CertificateError::Encoding { offset: start }),
    };
    match certificates.len() {
        actual if actual > CERTIFICATES_MAX => Err(CertificateError::TooMany {
            what: "certificates",
            actual,
            limit: CERTIFICATES_MAX,
        }),
        _ => Ok(certificates),
    }
}

fn read_pem(bytes: &[u8]) -> Result<Vec<Vec<u8>>, CertificateError> {
    let mut certificates = Vec::new();
    for block in Pem::iter_from_buffer(bytes) {
        let block = block.map_err(|error| CertificateError::Der(error.to_string()))?;
        if block.label != "CERTIFICATE" {
            return Err(CertificateError::Form(format!(
                "holds a PEM block \"{}\"",
                block.label
            )));
        }
        certificates.push(block.contents);
    }
    Ok(certificates)
}

fn read_der(bytes: &[u8]) -> Result<Vec<Vec<u8>>, CertificateError> {
    let mut certificates = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let parsed = X509Certificate::from_der(rest);
        let (after, _) = parsed.map_err(|error| CertificateError::Der(error.to_string()))?;
        certificates.push(rest[..rest.len() - after.len()].to_vec());
        rest = after;
    }
    Ok(certificates)
}

/// The digest of an ECDSA signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignatureDigest {
    Sha256,
    Sha384,
}

/// One certificate that has the right form; nothing in it is true until its chain is verified.
#[derive(Debug, Clone)]
pub(super) struct Certificate<'a> {
    pub(super) der: &'a [u8],
    pub(super) x509: X509Certificate<'a>,
}

impl<'a> Certificate<'a> {
    pub(super) fn parse(der: &'a [u8]) -> Result<Self, CertificateError> {
        if der.len() > CERTIFICATE_BYTES_MAX {
            let (what, actual, limit) = ("bytes", der.len(), CERTIFICATE_BYTES_MAX);
            return Err(CertificateError::TooMany { what, actual, limit });
        }
        let parsed = X509Certificate::from_der(der);
        let (rest, x509) = parsed.map_err(|error| CertificateError::Der(error.to_string()))?;
        if !rest.is_empty() {
            return Err(CertificateError::Trailing(rest.len()));
        }
        let certificate = Self { der, x509 };
        certificate.check_form()?;
        Ok(certificate)
    }

    fn check_form(&self) -> Result<(), CertificateError> {
        let form = |what: &str| Err(CertificateError::Form(what.to_owned()));
        let tbs = &self.x509.tbs_certificate;
        if tbs.version != X509Version::V3 {
            return form("is not version 3");
        }
        // What is around the signed part is not signed, and the parser takes more than one encoding of it; so it
        // has to be byte for byte what the signed part implies (RFC 5280, 4.1.1.2: the algorithm is repeated).
        let signature = [&[0][..], &self.x509.signature_value.data].concat();
        let content = [tbs.as_ref(), &ECDSA_WITH_SHA384, &element(0x03, &signature)].concat();
        if element(0x30, &content) != self.der || tbs.signature != self.x509.signature_algorithm {
            return form("is not DER of a certificate that is signed with ECDSA and SHA-384");
        }
        if tbs.extensions_map().is_err() {
            return form("has an extension twice");
        }
        let unread = |extension: &&X509Extension| extension.critical && !is_understood(extension);
        if let Some(extension) = tbs.extensions().iter().find(unread) {
            return Err(CertificateError::Form(format!(
                "has the critical extension {}",
                extension.oid
            )));
        }
        Ok(())
    }

    pub(super) fn subject(&self) -> String {
        self.x509.subject().to_string()
    }

    /// The subject's only common name.
    pub(super) fn common_name(&self) -> Option<&str> {
        let mut names = self.x509.subject().iter_common_name();
        let name = names.next()?.as_str().ok()?;
        names.next().is_none().then_some(name)
    }

    /// Serial number in lower-case hexadecimal.
    pub(super) fn serial(&self) -> String {
        hex::encode(self.x509.raw_serial())
    }

    pub(super) fn is_valid_at(&self, now_s: u64) -> bool {
        let validity = self.x509.validity();
        let now_s = i64::try_from(now_s).unwrap_or(i64::MAX);
        (validity.not_before.timestamp()..=validity.not_after.timestamp()).contains(&now_s)
    }

    /// When [`Self::is_valid_at`] says something else next.
    pub(super) fn changes_s(&self, now_s: u64) -> u64 {
        // What was before 1970 does not change any more.
        let seconds = |time: ASN1Time| u64::try_from(time.timestamp()).unwrap_or_default();
        let validity = self.x509.validity();
        let window = Window {
            from_s: seconds(validity.not_before),
            to_s: seconds(validity.not_after),
        };
        window.changes_s(now_s)
    }

    /// "2023-06-23 to 2025-06-22".
    pub(super) fn validity(&self) -> String {
        let validity = self.x509.validity();
        format!("{} to {}", validity.not_before, validity.not_after)
    }

    /// Whether `issuer`'s key signed this certificate and its name is the issuer's.
    pub(super) fn is_issued_by(&self, issuer: &Certificate<'_>) -> bool {
        self.x509.issuer().as_raw() == issuer.x509.subject().as_raw()
            && issuer.verify_asn1(
                SignatureDigest::Sha384,
                self.x509.tbs_certificate.as_ref(),
                &self.x509.signature_value.data,
            )
    }

    /// ECDSA P-384 with SHA-384 over `message`; the signature is r and s, 48 bytes each.
    pub(super) fn verify_fixed(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = self
            .p384_key()
            .map(|point| UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point));
        key.is_some_and(|key| key.verify(message, signature).is_ok())
    }

    /// ECDSA over `message`; the signature is DER.
    pub(super) fn verify_asn1(&self, digest: SignatureDigest, message: &[u8], signature: &[u8]) -> bool {
        let (verification, point) = match (self.p384_key(), self.p256_key(), digest) {
            (Some(point), _, SignatureDigest::Sha384) => (&ECDSA_P384_SHA384_ASN1, point),
            (Some(point), _, SignatureDigest::Sha256) => (&ECDSA_P384_SHA256_ASN1, point),
            (None, Some(point), SignatureDigest::Sha256) => (&ECDSA_P256_SHA256_ASN1, point),
            _ => return false,
        };
        UnparsedPublicKey::new(verification, point)
            .verify(message, signature)
            .is_ok()
    }

    /// All bits of the public key's point.
    pub(super) fn key_bits(&self) -> &[u8] {
        &self.x509.public_key().subject_public_key.data
    }

    fn p384_key(&self) -> Option<&[u8]> {
        self.key_on(&OID_NIST_EC_P384)
    }

    fn p256_key(&self) -> Option<&[u8]> {
        self.key_on(&OID_EC_P256)
    }

    fn key_on(&self, curve: &Oid<'_>) -> Option<&[u8]> {
        let key = self.x509.public_key();
        let parameters = key.algorithm.parameters.as_ref()?;
        let fits =
            key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && parameters.as_oid().ok()? == *curve;
        fits.then_some(&key.subject_public_key.data)
    }

    /// Signs for what it is used for: a leaf signs data, not certificates.
    pub(super) fn is_signing_leaf(&self) -> bool {
        let authority = self
            .x509
            .basic_constraints()
            .ok()
            .flatten()
            .is_some_and(|basic| basic.value.ca);
        let usage = self.x509.key_usage().ok().flatten();
        !authority && usage.is_some_and(|usage| usage.value.digital_signature())
    }

    /// May answer for its issuer (RFC 6960, 4.2.2.2).
    pub(super) fn is_ocsp_responder(&self) -> bool {
        let usage = self.x509.extended_key_usage().ok().flatten();
        self.is_signing_leaf() && usage.is_some_and(|usage| usage.value.ocsp_signing)
    }

    /// May issue certificates with `below` authorities between itself and the leaf.
    pub(super) fn is_authority_over(&self, below: usize) -> bool {
        let basic = self.x509.basic_constraints().ok().flatten();
        let path = basic.is_some_and(|basic| {
            let length = basic.value.path_len_constraint;
            basic.value.ca && length.is_none_or(|length| length as usize >= below)
        });
        let usage = self.x509.key_usage().ok().flatten();
        path && usage.is_some_and(|usage| usage.value.key_cert_sign())
    }
}

/// The extensions that the checks of a chain read.
fn is_understood(extension: &X509Extension<'_>) -> bool {
    matches!(
        extension.parsed_extension(),
        ParsedExtension::BasicConstraints(_)
            | ParsedExtension::KeyUsage(_)
            | ParsedExtension::ExtendedKeyUsage(_)
    )
}

/// Tag, length and content in DER; certificates have less than 64 KiB.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = (content.len() as u16).to_be_bytes();
    let header: &[u8] = match (high, low) {
        (0, ..0x80) => &[tag, low],
        (0, _) => &[tag, 0x81, low],
        _ => &[tag, 0x82, high, low],
    };
    [header, content].concat()
}
