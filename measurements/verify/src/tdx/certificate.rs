//! X.509 certificates of Intel's PKI (Intel SGX PCK Certificate and Certificate Revocation List Profile
//! Specification 1.5; RFC 5280). The shape is fixed (root, then a CA or a signer, then a PCK), so nothing here
//! searches for a path.

use x509_parser::{
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, Oid},
    prelude::{FromDer as _, ParsedExtension, X509Certificate, X509Extension, X509Version},
};

use super::{der, signature::P256Key};

/// Intel's have at most 1.3 KiB.
pub(crate) const CERTIFICATE_BYTES_MAX: usize = 4096;

/// id-ce-sgx, 1.2.840.113741.1.13.1, DER contents.
const SGX_EXTENSION: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01];

/// Why bytes are not a certificate of this PKI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Over the limit.
    #[error("{0} bytes, at most {CERTIFICATE_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// Not X.509.
    #[error("not an X.509 certificate: {0}")]
    Malformed(String),
    /// Bytes outside the signed part that could be other ones.
    #[error("the envelope around its signed part is not exact DER with ecdsa-with-SHA256")]
    Envelope,
    /// Another algorithm, curve or point format.
    #[error("its key is not an uncompressed P-256 point")]
    Key,
    /// What the profile does not have.
    #[error("{0}")]
    Profile(&'static str),
    /// An extension that must be understood and is not.
    #[error("it has the unknown critical extension {0}")]
    CriticalExtension(String),
}

/// A certificate as it stands; nothing says yet who signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Certificate {
    der: Vec<u8>,
    signed: std::ops::Range<usize>,
    signature: Vec<u8>,
    issuer: Vec<u8>,
    subject: Vec<u8>,
    serial: Vec<u8>,
    key: P256Key,
    sgx_extension: Option<Vec<u8>>,
    uses: Uses,
    pub(crate) not_before_s: u64,
    /// Inclusive.
    pub(crate) not_after_s: u64,
}

/// What the key may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Uses {
    is_ca: bool,
    digital_signature: bool,
    certificates: bool,
    revocation_lists: bool,
}

impl Certificate {
    pub(crate) fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        if der.len() > CERTIFICATE_BYTES_MAX {
            return Err(CertificateError::TooLarge(der.len()));
        }
        let (rest, parsed) =
            X509Certificate::from_der(der).map_err(|error| CertificateError::Malformed(error.to_string()))?;
        if !rest.is_empty() {
            return Err(CertificateError::Malformed(format!(
                "{} bytes follow it",
                rest.len()
            )));
        }
        let tbs = &parsed.tbs_certificate;
        let signature = parsed.signature_value.data.to_vec();
        if der::envelope(der) != Some((tbs.as_ref(), &signature))
            || tbs.signature != parsed.signature_algorithm
        {
            return Err(CertificateError::Envelope);
        }
        if tbs.version != X509Version::V3 {
            return Err(CertificateError::Profile(
                "it is not an X.509 version 3 certificate",
            ));
        }
        let (uses, sgx_extension) = extensions(tbs.extensions())?;
        // The envelope is exact, so the signed part ends where algorithm and signature begin.
        let start = tbs.as_ref().as_ptr() as usize - der.as_ptr() as usize;
        Ok(Self {
            signed: start..start + tbs.as_ref().len(),
            signature,
            issuer: tbs.issuer.as_raw().to_vec(),
            subject: tbs.subject.as_raw().to_vec(),
            serial: tbs.raw_serial().to_vec(),
            key: key(&parsed)?,
            sgx_extension,
            uses,
            not_before_s: seconds(tbs.validity.not_before.timestamp())?,
            not_after_s: seconds(tbs.validity.not_after.timestamp())?,
            der: der.to_vec(),
        })
    }

    pub(crate) fn der(&self) -> &[u8] {
        &self.der
    }

    pub(crate) fn key(&self) -> &P256Key {
        &self.key
    }

    /// The name, DER.
    pub(crate) fn subject(&self) -> &[u8] {
        &self.subject
    }

    pub(crate) fn serial(&self) -> &[u8] {
        &self.serial
    }

    /// Contents of Intel's extension.
    pub(crate) fn sgx_extension(&self) -> Option<&[u8]> {
        self.sgx_extension.as_deref()
    }

    /// Whether it may sign certificates and revocation lists.
    pub(crate) fn is_ca(&self) -> bool {
        self.uses.is_ca && self.uses.certificates && self.uses.revocation_lists
    }

    /// Whether it may sign data, and nothing below it.
    pub(crate) fn is_signer(&self) -> bool {
        !self.uses.is_ca && self.uses.digital_signature
    }

    /// Whether `issuer`, a CA, names and signed it: one P-256 check.
    pub(crate) fn is_issued_by(&self, issuer: &Self) -> bool {
        issuer.is_ca()
            && self.issuer == issuer.subject
            && issuer
                .key
                .signed_der(&self.der[self.signed.clone()], &self.signature)
    }

    /// For messages.
    pub(crate) fn name(&self) -> String {
        X509Certificate::from_der(&self.der)
            .ok()
            .and_then(|(_, parsed)| {
                let name = parsed.subject().iter_common_name().next()?;
                name.as_str().ok().map(str::to_owned)
            })
            .unwrap_or_else(|| "(without common name)".to_owned())
    }
}

fn key(parsed: &X509Certificate<'_>) -> Result<P256Key, CertificateError> {
    let spki = parsed.public_key();
    let curve = spki
        .algorithm
        .parameters
        .as_ref()
        .and_then(|any| any.as_oid().ok());
    if spki.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY || curve != Some(OID_EC_P256) {
        return Err(CertificateError::Key);
    }
    P256Key::from_point(&spki.subject_public_key.data).ok_or(CertificateError::Key)
}

fn extensions(all: &[X509Extension<'_>]) -> Result<(Uses, Option<Vec<u8>>), CertificateError> {
    let mut uses = Uses::default();
    let mut sgx = None;
    let mut seen: Vec<&Oid<'_>> = Vec::with_capacity(all.len());
    for extension in all {
        if seen.contains(&&extension.oid) {
            return Err(CertificateError::Profile("it has an extension twice"));
        }
        seen.push(&extension.oid);
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) => uses.is_ca = constraints.ca,
            ParsedExtension::KeyUsage(usage) => {
                uses.digital_signature = usage.digital_signature();
                uses.certificates = usage.key_cert_sign();
                uses.revocation_lists = usage.crl_sign();
            }
            _ if extension.oid.as_bytes() == SGX_EXTENSION => sgx = Some(extension.value.to_vec()),
            _ if extension.critical => {
                return Err(CertificateError::CriticalExtension(extension.oid.to_id_string()));
            }
            _ => {}
        }
    }
    Ok((uses, sgx))
}

fn seconds(timestamp: i64) -> Result<u64, CertificateError> {
    u64::try_from(timestamp).map_err(|_| CertificateError::Profile("a date before 1970"))
}
