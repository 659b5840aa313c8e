//! One certificate of AMD's hierarchy, and what AMD writes into those of the endorsement keys: product, security
//! versions and chip (AMD 57230, "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface
//! Specification", section 3).
//!
//! `sev` reads and verifies certificates but ignores which encoding it was given: an algorithm named twice that
//! differs, unused bits, another encoding of the same values. Each of these would leave a byte free that no
//! signature covers, so they are refused here.

use cocoon_evidence::Digest32;
use der::{
    Decode, Encode,
    asn1::{Ia5StringRef, ObjectIdentifier, OctetStringRef},
    oid::db::{rfc4519::CN, rfc5912::ID_EC_PUBLIC_KEY},
    referenced::OwnedToRef,
};
use x509_cert::{
    ext::pkix::{BasicConstraints, KeyUsage},
    name::Name,
};

use super::{
    product::{SnpProduct, SnpTcb},
    report::SigningKey,
};
use crate::snp::CERTIFICATE_BYTES_MAX;

/// AMD's arc; 57230, table "X.509 certificate extensions".
const AMD_ARC: &str = "1.3.6.1.4.1.3704.1.";

/// A certificate that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnpCertificateError {
    /// No certificate is that long.
    #[error("{found} bytes, more than {CERTIFICATE_BYTES_MAX}")]
    Length {
        /// Bytes given.
        found: usize,
    },
    /// Not DER, or not a certificate.
    #[error("not a DER certificate: {0}")]
    Der(String),
    /// Another encoding of the same certificate exists, which a signature does not tell from this one.
    #[error("ambiguous encoding: {0}")]
    Ambiguous(&'static str),
    /// Neither an endorsement key nor an authority.
    #[error("{0}")]
    Constraints(String),
    /// An extension of AMD's is missing, doubled or has another form.
    #[error("extension {AMD_ARC}{arc}: {reason}")]
    Extension {
        /// The arc below AMD's.
        arc: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// What an endorsement key's certificate says.
#[derive(Debug, Clone)]
pub(crate) struct VekFacts {
    pub(crate) kind: SigningKey,
    pub(crate) product_name: String,
    pub(crate) product: SnpProduct,
    pub(crate) tcb: SnpTcb,
    /// The chip, in a VCEK's certificate.
    pub(crate) chip_id: Option<Vec<u8>>,
    /// The cloud provider, in a VLEK's certificate.
    pub(crate) provider: Option<String>,
}

/// What a certificate certifies.
#[derive(Debug, Clone)]
pub(crate) enum CertificateRole {
    /// Signed by itself.
    Root,
    /// ASK or ASVK.
    Intermediate,
    /// VCEK or VLEK.
    Vek(VekFacts),
}

/// A certificate in the one encoding that DER allows.
#[derive(Debug, Clone)]
pub(crate) struct SnpCertificate {
    pub(crate) role: CertificateRole,
    pub(crate) der: Vec<u8>,
    x509: x509_cert::Certificate,
    sev: sev::certs::snp::Certificate,
}

impl SnpCertificate {
    pub(crate) fn from_der(der: &[u8]) -> Result<Self, SnpCertificateError> {
        if der.len() > CERTIFICATE_BYTES_MAX {
            return Err(SnpCertificateError::Length { found: der.len() });
        }
        let x509 = x509_cert::Certificate::from_der(der)
            .map_err(|error| SnpCertificateError::Der(error.to_string()))?;
        check_encoding(&x509, der)?;
        let role = role(&x509)?;
        check_constraints(&x509, matches!(role, CertificateRole::Vek(_)))?;
        Ok(Self {
            role,
            der: der.to_vec(),
            sev: x509.clone().into(),
            x509,
        })
    }

    /// For `sev`, which verifies.
    pub(crate) fn sev(&self) -> &sev::certs::snp::Certificate {
        &self.sev
    }

    pub(crate) fn spki(&self) -> &x509_cert::spki::SubjectPublicKeyInfoOwned {
        &self.x509.tbs_certificate.subject_public_key_info
    }

    /// SHA-256 of the public key with its algorithm.
    pub(crate) fn spki_sha256(&self) -> Result<Digest32, SnpCertificateError> {
        let spki = self.spki().to_der();
        let spki = spki.map_err(|error| SnpCertificateError::Der(error.to_string()))?;
        Ok(Digest32::of(&spki))
    }

    pub(crate) fn subject(&self) -> &Name {
        &self.x509.tbs_certificate.subject
    }

    pub(crate) fn issuer(&self) -> &Name {
        &self.x509.tbs_certificate.issuer
    }

    pub(crate) fn serial(&self) -> &[u8] {
        self.x509.tbs_certificate.serial_number.as_bytes()
    }

    pub(crate) fn common_name(&self) -> String {
        common_name(self.subject()).unwrap_or_else(|| self.subject().to_string())
    }

    /// First and last second.
    pub(crate) fn validity_s(&self) -> (u64, u64) {
        let validity = &self.x509.tbs_certificate.validity;
        (
            validity.not_before.to_unix_duration().as_secs(),
            validity.not_after.to_unix_duration().as_secs(),
        )
    }
}

/// The subject's common name, if it has exactly one.
pub(crate) fn common_name(name: &Name) -> Option<String> {
    let mut names = name
        .0
        .iter()
        .flat_map(|part| part.0.iter())
        .filter(|attribute| attribute.oid == CN)
        .filter_map(|attribute| std::str::from_utf8(attribute.value.value()).ok());
    let first = names.next()?;
    names.next().is_none().then(|| first.to_owned())
}

fn check_encoding(x509: &x509_cert::Certificate, der: &[u8]) -> Result<(), SnpCertificateError> {
    let ambiguous = |what| Err(SnpCertificateError::Ambiguous(what));
    if x509.to_der().ok().as_deref() != Some(der) {
        return ambiguous("not the canonical DER of what it says");
    }
    if x509.signature_algorithm != x509.tbs_certificate.signature {
        return ambiguous("the signed and the unsigned name of the signature algorithm differ");
    }
    if x509.signature.as_bytes().is_none() {
        return ambiguous("the signature has unused bits");
    }
    Ok(())
}

fn role(x509: &x509_cert::Certificate) -> Result<CertificateRole, SnpCertificateError> {
    let tbs = &x509.tbs_certificate;
    if tbs.subject_public_key_info.algorithm.oid == ID_EC_PUBLIC_KEY {
        return Ok(CertificateRole::Vek(vek_facts(x509)?));
    }
    Ok(if tbs.issuer == tbs.subject {
        CertificateRole::Root
    } else {
        CertificateRole::Intermediate
    })
}

/// RFC 5280, section 6.1.4, steps k and n, and section 4.2 on critical extensions.
fn check_constraints(x509: &x509_cert::Certificate, is_vek: bool) -> Result<(), SnpCertificateError> {
    let tbs = &x509.tbs_certificate;
    let refuse = |why: String| Err(SnpCertificateError::Constraints(why));
    let read = |error: der::Error| SnpCertificateError::Der(error.to_string());
    for extension in tbs.extensions.iter().flatten() {
        let known = [BASIC_CONSTRAINTS, KEY_USAGE].contains(&extension.extn_id);
        if extension.critical && !known {
            return refuse(format!("critical extension {} is not known", extension.extn_id));
        }
    }
    let authority = tbs.get::<BasicConstraints>().map_err(read)?;
    let is_authority = authority.is_some_and(|(_, constraints)| constraints.ca);
    if is_authority == is_vek {
        return refuse(match is_vek {
            true => "an endorsement key that may sign certificates".to_owned(),
            false => "signs nothing: neither an endorsement key nor an authority".to_owned(),
        });
    }
    let usage = tbs.get::<KeyUsage>().map_err(read)?;
    if !is_vek && usage.is_some_and(|(_, usage)| !usage.key_cert_sign()) {
        return refuse("an authority whose key usage does not allow signing certificates".to_owned());
    }
    Ok(())
}

const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");

fn vek_facts(x509: &x509_cert::Certificate) -> Result<VekFacts, SnpCertificateError> {
    let product_name = ia5(x509, "2")?.ok_or_else(|| wrong("2", "missing"))?;
    let product = SnpProduct::from_certificate(&product_name)
        .ok_or_else(|| wrong("2", format!("unknown product {product_name:?}")))?;
    let chip_id = chip_id(x509, product)?;
    let provider = ia5(x509, "5")?;
    let kind = match (&chip_id, &provider) {
        (Some(_), None) => SigningKey::Vcek,
        (None, Some(_)) => SigningKey::Vlek,
        (Some(_), Some(_)) => return Err(wrong("5", "a provider besides a chip")),
        (None, None) => return Err(wrong("4", "neither a chip nor a provider")),
    };
    Ok(VekFacts {
        kind,
        product_name,
        product,
        tcb: tcb(x509, product)?,
        chip_id,
        provider,
    })
}

fn tcb(x509: &x509_cert::Certificate, product: SnpProduct) -> Result<SnpTcb, SnpCertificateError> {
    let part = |arc| spl(x509, arc)?.ok_or_else(|| wrong(arc, "missing"));
    for arc in ["3.4", "3.5", "3.6", "3.7"] {
        if spl(x509, arc)?.is_some_and(|reserved| reserved != 0) {
            return Err(wrong(arc, "reserved, but not zero"));
        }
    }
    let fmc = match (product, spl(x509, "3.9")?) {
        (SnpProduct::Turin, None) => return Err(wrong("3.9", "missing")),
        (SnpProduct::Turin, fmc) => fmc,
        (_, None | Some(0)) => None,
        (_, Some(_)) => return Err(wrong("3.9", format!("{product} has no FMC"))),
    };
    Ok(SnpTcb {
        fmc,
        bootloader: part("3.1")?,
        tee: part("3.2")?,
        snp: part("3.3")?,
        microcode: part("3.8")?,
    })
}

/// Milan's and Genoa's identifiers have 64 bytes, Turin's 8. AMD writes them without a type; earlier and later
/// certificates wrap them in an OCTET STRING.
fn chip_id(
    x509: &x509_cert::Certificate,
    product: SnpProduct,
) -> Result<Option<Vec<u8>>, SnpCertificateError> {
    let Some(value) = extension(x509, "4")? else {
        return Ok(None);
    };
    let length = product.chip_id_bytes();
    if value.len() == length {
        return Ok(Some(value.to_vec()));
    }
    let inner = OctetStringRef::from_der(value).map_err(|error| wrong("4", error.to_string()))?;
    if inner.as_bytes().len() != length {
        let found = inner.as_bytes().len();
        return Err(wrong("4", format!("{found} bytes, where {product} has {length}")));
    }
    Ok(Some(inner.as_bytes().to_vec()))
}

fn spl(x509: &x509_cert::Certificate, arc: &'static str) -> Result<Option<u8>, SnpCertificateError> {
    let value = extension(x509, arc)?.map(u8::from_der).transpose();
    value.map_err(|error| wrong(arc, error.to_string()))
}

fn ia5(x509: &x509_cert::Certificate, arc: &'static str) -> Result<Option<String>, SnpCertificateError> {
    let value = extension(x509, arc)?.map(Ia5StringRef::from_der).transpose();
    let value = value.map_err(|error| wrong(arc, error.to_string()))?;
    Ok(value.map(|text| text.as_str().to_owned()))
}

/// The value of one of AMD's extensions, of which there may be only one.
fn extension<'a>(
    x509: &'a x509_cert::Certificate,
    arc: &'static str,
) -> Result<Option<&'a [u8]>, SnpCertificateError> {
    let oid =
        ObjectIdentifier::new(&format!("{AMD_ARC}{arc}")).map_err(|error| wrong(arc, error.to_string()))?;
    let extensions = x509.tbs_certificate.extensions.iter().flatten();
    let mut values = extensions.filter(|extension| extension.extn_id == oid);
    let value = values.next().map(|extension| extension.extn_value.as_bytes());
    match values.next() {
        Some(_) => Err(wrong(arc, "twice")),
        None => Ok(value),
    }
}

fn wrong(arc: &'static str, reason: impl Into<String>) -> SnpCertificateError {
    SnpCertificateError::Extension {
        arc,
        reason: reason.into(),
    }
}

/// The P-384 key of an endorsement key's certificate; `sev` would take its bytes without looking at the curve's
/// name.
pub(crate) fn p384_key(
    certificate: &SnpCertificate,
) -> Result<p384::ecdsa::VerifyingKey, SnpCertificateError> {
    let key = p384::PublicKey::try_from(certificate.spki().owned_to_ref())
        .map_err(|error| SnpCertificateError::Constraints(format!("not a key on P-384: {error}")))?;
    Ok(key.into())
}
