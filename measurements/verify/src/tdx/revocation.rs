//! Revocation lists of the root CA and of the PCK CA (RFC 5280, section 5; Intel's profile 1.5, section 2).

use x509_parser::prelude::{CertificateRevocationList, FromDer as _, ParsedExtension};

use super::{certificate::Certificate, der};

/// Intel's longest has 4 KiB; it grows with every leaked platform key.
pub(crate) const REVOCATION_LIST_BYTES_MAX: usize = 128 * 1024;

/// Why bytes are not a revocation list of a CA.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RevocationListError {
    /// Over the limit.
    #[error("{0} bytes, at most {REVOCATION_LIST_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// Not X.509.
    #[error("not an X.509 revocation list: {0}")]
    Malformed(String),
    /// Bytes outside the signed part that could be other ones.
    #[error("the envelope around its signed part is not exact DER with ecdsa-with-SHA256")]
    Envelope,
    /// Somebody else's.
    #[error("not the list of \"{0}\", or not signed by it")]
    Issuer(String),
    /// Without an end it would be valid forever.
    #[error("it has no nextUpdate")]
    NoNextUpdate,
    /// It means something that is not understood.
    #[error("it has the unknown critical extension {0}")]
    CriticalExtension(String),
}

/// A list that its CA signed.
#[derive(Debug, Clone)]
pub(crate) struct RevocationList {
    /// Sorted.
    serials: Vec<Vec<u8>>,
    /// RFC 5280, 5.2.3; 0 if the list has none.
    pub(crate) number: u64,
    pub(crate) this_update_s: u64,
    /// Exclusive.
    pub(crate) next_update_s: u64,
}

impl RevocationList {
    /// One P-256 check.
    pub(crate) fn verify(der: &[u8], ca: &Certificate) -> Result<Self, RevocationListError> {
        if der.len() > REVOCATION_LIST_BYTES_MAX {
            return Err(RevocationListError::TooLarge(der.len()));
        }
        let (rest, list) = CertificateRevocationList::from_der(der)
            .map_err(|error| RevocationListError::Malformed(error.to_string()))?;
        let signed = list.tbs_cert_list.as_ref();
        let signature = &list.signature_value.data;
        if !rest.is_empty()
            || !der::is_exact_envelope(der, signed, signature)
            || list.tbs_cert_list.signature != list.signature_algorithm
        {
            return Err(RevocationListError::Envelope);
        }
        if !ca.is_ca() || list.issuer().as_raw() != ca.subject() || !ca.key().signed_der(signed, signature) {
            return Err(RevocationListError::Issuer(ca.name()));
        }
        check_extensions(&list)?;
        let next_update = list.next_update().ok_or(RevocationListError::NoNextUpdate)?;
        let mut serials: Vec<_> = list
            .iter_revoked_certificates()
            .map(|entry| entry.raw_serial().to_vec())
            .collect();
        serials.sort_unstable();
        Ok(Self {
            serials,
            number: list
                .crl_number()
                .and_then(|number| number.try_into().ok())
                .unwrap_or_default(),
            this_update_s: u64::try_from(list.last_update().timestamp()).unwrap_or(u64::MAX),
            next_update_s: u64::try_from(next_update.timestamp()).unwrap_or_default(),
        })
    }

    pub(crate) fn revokes(&self, certificate: &Certificate) -> bool {
        self.serials
            .binary_search_by(|serial| serial.as_slice().cmp(certificate.serial()))
            .is_ok()
    }
}

/// A critical extension that is skipped could say that the list is about other certificates than it seems.
fn check_extensions(list: &CertificateRevocationList<'_>) -> Result<(), RevocationListError> {
    let of_entries = list
        .iter_revoked_certificates()
        .flat_map(|entry| entry.extensions().iter());
    let unknown = list
        .extensions()
        .iter()
        .chain(of_entries)
        .filter(|extension| extension.critical)
        .find(|extension| {
            !matches!(
                extension.parsed_extension(),
                ParsedExtension::CRLNumber(_) | ParsedExtension::ReasonCode(_)
            )
        });
    match unknown {
        Some(extension) => Err(RevocationListError::CriticalExtension(
            extension.oid.to_id_string(),
        )),
        None => Ok(()),
    }
}
