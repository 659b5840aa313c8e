//! What the 64 bytes of report data in a quote commit to.
//!
//! Report data = SHA-512 over a domain tag and length-prefixed fields. The two uses have different tags, so
//! that evidence made for one can never be shown for the other: a TLS certificate's ([`TlsBinding`]), and the
//! tree of requests for fresh evidence ([`crate::FreshTree`]), whose leaves are [`FreshBinding`]s.

use sha2::{Digest as _, Sha512};

use crate::{Digest32, Digest48, FreshLeaf};

/// Length of a verifier's nonce.
pub const NONCE_BYTES: usize = 32;

/// Who the key belongs to; bound so that evidence of one role is not accepted for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A guest that serves inference.
    Inference,
}

impl Role {
    /// The name that is hashed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inference => "inference",
        }
    }
}

/// The report data field of a TD report (64 bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportData(pub [u8; 64]);

/// What the quote in a TLS certificate binds.
#[derive(Debug, Clone)]
pub struct TlsBinding<'a> {
    /// The certificate's SubjectPublicKeyInfo, DER.
    pub spki: &'a [u8],
    /// The Ed25519 key that signs vouchers and receipts.
    pub usage_key: &'a [u8; 32],
    /// Start of the certificate's validity, seconds since 1970.
    pub not_before_s: i64,
    /// End of the certificate's validity, seconds since 1970.
    pub not_after_s: i64,
    /// What the guest is.
    pub role: Role,
    /// [`crate::EventLog::replay`] of the log in the bundle.
    pub log: Digest48,
}

impl TlsBinding<'_> {
    /// The report data for these values.
    pub fn report_data(&self) -> ReportData {
        report_data(
            b"cocoon-tls-v1",
            &[
                self.spki,
                self.usage_key,
                &self.not_before_s.to_le_bytes(),
                &self.not_after_s.to_le_bytes(),
                self.role.name().as_bytes(),
                self.log.as_bytes(),
            ],
        )
    }
}

/// What one request for fresh evidence binds: this verifier's nonce on this TLS connection.
#[derive(Debug, Clone)]
pub struct FreshBinding<'a> {
    /// Chosen by the verifier, used once.
    pub nonce: &'a [u8; NONCE_BYTES],
    /// TLS exporter (RFC 8446, 7.5) with [`FreshBinding::EXPORTER_LABEL`] and the nonce as context.
    pub exporter: &'a [u8; 32],
    /// SHA-256 of the leaf certificate, DER, of this connection.
    pub certificate: Digest32,
    /// What the guest is.
    pub role: Role,
    /// [`crate::EventLog::replay`] of the log in the bundle.
    pub log: Digest48,
}

impl FreshBinding<'_> {
    /// Label of the TLS exporter.
    pub const EXPORTER_LABEL: &'static [u8] = b"EXPORTER-Cocoon-evidence-v1";

    /// The request, as the tree that a quote binds holds it.
    pub fn leaf(&self) -> FreshLeaf {
        FreshLeaf::of(&[
            b"cocoon-fresh-request-v2",
            self.nonce,
            self.exporter,
            self.certificate.as_bytes(),
            self.role.name().as_bytes(),
            self.log.as_bytes(),
        ])
    }
}

pub(crate) fn report_data(domain: &[u8], fields: &[&[u8]]) -> ReportData {
    let mut hash = Sha512::new();
    for field in std::iter::once(&domain).chain(fields) {
        hash.update((field.len() as u64).to_le_bytes());
        hash.update(field);
    }
    ReportData(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding() -> TlsBinding<'static> {
        TlsBinding {
            spki: b"key",
            usage_key: &[1; 32],
            not_before_s: 1,
            not_after_s: 2,
            role: Role::Inference,
            log: Digest48::ZERO,
        }
    }

    #[test]
    fn every_field_changes_the_report_data() {
        let base = binding().report_data();
        let variants = [
            TlsBinding {
                spki: b"kez",
                ..binding()
            },
            TlsBinding {
                usage_key: &[2; 32],
                ..binding()
            },
            TlsBinding {
                not_before_s: 0,
                ..binding()
            },
            TlsBinding {
                not_after_s: 3,
                ..binding()
            },
            TlsBinding {
                log: Digest48::of(b"other"),
                ..binding()
            },
        ];
        for variant in variants {
            assert_ne!(variant.report_data(), base, "{variant:?}");
        }
    }

    #[test]
    fn fields_cannot_run_into_each_other() {
        assert_ne!(
            report_data(b"d", &[b"ab", b"c"]),
            report_data(b"d", &[b"a", b"bc"])
        );
        assert_ne!(report_data(b"d", &[b"e"]), report_data(b"de", &[]));
    }
}
