//! A revocation list of AMD's root: which intermediate keys (ASK, ASVK) it no longer vouches for. Endorsement keys
//! themselves are not listed; a chip is kept out by its security versions, or by its identifier in the policy.

use der::{Decode, Encode, referenced::OwnedToRef};
use rsa::{pss, signature::Verifier};
use sha2::Sha384;
use x509_cert::crl::CertificateList;

use super::certificate::SnpCertificate;
use crate::snp::CRL_BYTES_MAX;

/// CRL number, authority key identifier: these say nothing that changes what the list means.
const HARMLESS: [&str; 2] = ["2.5.29.20", "2.5.29.35"];

/// A revocation list that cannot be relied on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CrlError {
    #[error("{found} bytes, more than {CRL_BYTES_MAX}")]
    Length { found: usize },
    #[error("not a DER revocation list: {0}")]
    Der(String),
    #[error("ambiguous encoding: {0}")]
    Ambiguous(&'static str),
    #[error("critical extension {0} is not known")]
    Extension(String),
    #[error("the root did not sign it: {0}")]
    Signature(String),
}

/// A list in the one encoding that DER allows, its signature not verified yet.
#[derive(Debug, Clone)]
pub(crate) struct Crl(CertificateList);

impl Crl {
    pub(crate) fn from_der(der: &[u8]) -> Result<Self, CrlError> {
        if der.len() > CRL_BYTES_MAX {
            return Err(CrlError::Length { found: der.len() });
        }
        let list = CertificateList::from_der(der).map_err(|error| CrlError::Der(error.to_string()))?;
        if list.to_der().ok().as_deref() != Some(der) {
            return Err(CrlError::Ambiguous("not the canonical DER of what it says"));
        }
        if list.signature_algorithm != list.tbs_cert_list.signature {
            return Err(CrlError::Ambiguous(
                "the signed and the unsigned name of the signature algorithm differ",
            ));
        }
        if list.signature.as_bytes().is_none() {
            return Err(CrlError::Ambiguous("the signature has unused bits"));
        }
        let crl = Self(list);
        crl.check_extensions()?;
        Ok(crl)
    }

    /// An unknown critical extension may narrow the list, for example to another issuer's certificates
    /// (RFC 5280, section 5.2 and 5.3).
    fn check_extensions(&self) -> Result<(), CrlError> {
        let tbs = &self.0.tbs_cert_list;
        let of_entries = tbs.revoked_certificates.iter().flatten();
        let of_entries = of_entries.filter_map(|entry| entry.crl_entry_extensions.as_ref());
        let mut all = tbs.crl_extensions.iter().chain(of_entries).flatten();
        let unknown = all.find(|extension| {
            extension.critical && !HARMLESS.contains(&extension.extn_id.to_string().as_str())
        });
        match unknown {
            Some(extension) => Err(CrlError::Extension(extension.extn_id.to_string())),
            None => Ok(()),
        }
    }

    pub(crate) fn is_issued_by(&self, root: &SnpCertificate) -> bool {
        &self.0.tbs_cert_list.issuer == root.subject()
    }

    /// RSASSA-PSS with SHA-384, as for every signature of AMD's roots.
    pub(crate) fn verify(&self, root: &SnpCertificate) -> Result<(), CrlError> {
        let refused = |error: &dyn std::fmt::Display| CrlError::Signature(error.to_string());
        let key = rsa::RsaPublicKey::try_from(root.spki().owned_to_ref()).map_err(|error| refused(&error))?;
        let signed = self.0.tbs_cert_list.to_der().map_err(|error| refused(&error))?;
        let signature =
            pss::Signature::try_from(self.0.signature.raw_bytes()).map_err(|error| refused(&error))?;
        pss::VerifyingKey::<Sha384>::new(key)
            .verify(&signed, &signature)
            .map_err(|error| refused(&error))
    }

    /// First second, and the last if the list has one.
    pub(crate) fn validity_s(&self) -> (u64, Option<u64>) {
        let tbs = &self.0.tbs_cert_list;
        let next = tbs.next_update.map(|time| time.to_unix_duration().as_secs());
        (tbs.this_update.to_unix_duration().as_secs(), next)
    }

    pub(crate) fn revokes(&self, certificate: &SnpCertificate) -> bool {
        let mut entries = self.0.tbs_cert_list.revoked_certificates.iter().flatten();
        entries.any(|entry| entry.serial_number.as_bytes() == certificate.serial())
    }
}
