//! The keys at the top: AMD's, pinned by their hashes, or one that the caller names.

use std::sync::LazyLock;

use cocoon_evidence::Digest32;

use super::{
    certificate::{CertificateRole, SnpCertificate, SnpCertificateError},
    endorsements::{EndorsementError, Endorsements},
    product::SnpProduct,
};

/// SHA-256 of the public keys (SubjectPublicKeyInfo) of AMD's root keys.
const AMD_ROOT_KEYS: [(SnpProduct, Digest32); 3] = [
    (
        SnpProduct::Milan,
        Digest32([
            0x9f, 0x05, 0x6b, 0xee, 0x44, 0x37, 0x7e, 0x29, 0x30, 0x8c, 0xb5, 0xff, 0xa8, 0x95, 0xbd, 0xfb,
            0x62, 0xd1, 0x88, 0x81, 0xfa, 0x6b, 0xed, 0x8d, 0x6f, 0x07, 0x5b, 0x02, 0x04, 0x08, 0x9c, 0xb9,
        ]),
    ),
    (
        SnpProduct::Genoa,
        Digest32([
            0x42, 0x9a, 0x69, 0xc9, 0x42, 0x2a, 0xa2, 0x58, 0xee, 0x4d, 0x8d, 0xb5, 0xfc, 0xda, 0x9c, 0x64,
            0x70, 0xef, 0x15, 0xf8, 0xcd, 0x5a, 0x9c, 0xeb, 0xd6, 0xcb, 0xc7, 0xd9, 0x0b, 0x86, 0x38, 0x31,
        ]),
    ),
    (
        SnpProduct::Turin,
        Digest32([
            0x4f, 0x12, 0x54, 0x10, 0x56, 0x3a, 0x2a, 0xb9, 0xa5, 0x03, 0x56, 0xf9, 0x24, 0x3f, 0x6f, 0xe0,
            0xb6, 0xf7, 0x3d, 0xe9, 0x86, 0x03, 0xf5, 0x3f, 0x90, 0x33, 0x9c, 0x70, 0xe9, 0xd7, 0xad, 0x08,
        ]),
    ),
];

/// Not a root certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnpRootError {
    /// Not one certificate in PEM or DER.
    #[error("{0}")]
    Form(String),
    /// A certificate that cannot be used.
    #[error("{0}")]
    Certificate(#[from] SnpCertificateError),
    /// More or less than one certificate signed by itself.
    #[error("exactly one certificate that is signed by itself is needed")]
    NotARoot,
}

/// Whom to trust.
#[derive(Debug, Clone)]
pub struct SnpRoot(Trust);

#[derive(Debug, Clone)]
enum Trust {
    Amd,
    Given {
        certificate: Box<SnpCertificate>,
        key: Digest32,
    },
}

impl SnpRoot {
    /// AMD's own roots for Milan, Genoa and Turin.
    pub fn amd() -> Self {
        Self(Trust::Amd)
    }

    /// The root in this PEM or DER file, and no other.
    pub fn from_file(bytes: &[u8]) -> Result<Self, SnpRootError> {
        let (mut endorsements, errors) = Endorsements::read(&[bytes]);
        if let Some(error) = errors.first() {
            return Err(SnpRootError::Form(EndorsementError::to_string(error)));
        }
        match (endorsements.certificates.pop(), endorsements.certificates.pop()) {
            (Some(certificate), None) if matches!(certificate.role, CertificateRole::Root) => {
                Ok(Self(Trust::Given {
                    key: certificate.spki_sha256()?,
                    certificate: Box::new(certificate),
                }))
            }
            _ => Err(SnpRootError::NotARoot),
        }
    }

    /// Whether `root`'s key is the trusted one, and for AMD's, of which product.
    pub(crate) fn trusts(&self, root: &SnpCertificate) -> Option<TrustedKey> {
        let key = root.spki_sha256().ok()?;
        match &self.0 {
            Trust::Amd => {
                let mut pinned = AMD_ROOT_KEYS.iter();
                let (product, _) = pinned.find(|(_, pinned)| *pinned == key)?;
                Some(TrustedKey::Amd(*product))
            }
            Trust::Given { key: given, .. } => (*given == key).then_some(TrustedKey::Given),
        }
    }

    /// The authorities that need not come along: AMD's roots and ASKs, which `sev` carries, or the given root.
    pub(crate) fn known(&self) -> &[SnpCertificate] {
        match &self.0 {
            Trust::Amd => &AMD_AUTHORITIES,
            Trust::Given { certificate, .. } => std::slice::from_ref(certificate),
        }
    }

    /// Whether no other key than one of AMD's own is trusted.
    pub(crate) fn is_amds(&self) -> bool {
        match &self.0 {
            Trust::Amd => true,
            Trust::Given { key, .. } => AMD_ROOT_KEYS.iter().any(|(_, pinned)| pinned == key),
        }
    }

    pub(crate) fn describe(&self) -> String {
        match &self.0 {
            Trust::Amd => "AMD's root for Milan, Genoa or Turin".to_owned(),
            Trust::Given { key, .. } => format!("the given root, key {key}"),
        }
    }
}

/// Which trusted key a chain ends in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TrustedKey {
    Amd(SnpProduct),
    Given,
}

/// Whatever `sev` carries is only a copy: roots count by their pinned keys, ASKs by the root's signature.
static AMD_AUTHORITIES: LazyLock<Vec<SnpCertificate>> = LazyLock::new(|| {
    use sev::certs::snp::builtin::{genoa, milan, turin};
    let files = [
        milan::ARK,
        milan::ASK,
        genoa::ARK,
        genoa::ASK,
        turin::ARK,
        turin::ASK,
    ];
    Endorsements::read(&files).0.certificates
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roots_that_sev_carries_are_the_pinned_ones() {
        let authorities = &*AMD_AUTHORITIES;
        assert_eq!(authorities.len(), 6);
        let amd = SnpRoot::amd();
        let roots = authorities.iter().filter_map(|authority| amd.trusts(authority));
        let pinned = SnpProduct::ALL.map(TrustedKey::Amd);
        assert_eq!(roots.collect::<Vec<_>>(), pinned);
    }

    #[test]
    fn an_intermediate_is_no_root() {
        let ask = SnpRoot::from_file(sev::certs::snp::builtin::milan::ASK);
        assert_eq!(ask.unwrap_err(), SnpRootError::NotARoot);
        assert!(SnpRoot::from_file(sev::certs::snp::builtin::milan::ARK).is_ok());
    }
}
