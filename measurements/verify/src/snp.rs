//! Judges one AMD SEV-SNP attestation report: its form, the chain from AMD's root to the key that signed it, the
//! signature, the platform's security version, the guest's policy bits, and, with terms from a policy, every value
//! that the report states.
//!
//! Signatures of certificates, AMD's certificates and the processors' names come from `sev`. What it leaves to its
//! callers is done here: pinned roots, validity dates, security versions and chip in the certificate, revocation,
//! privilege level, policy bits, and that no byte is left free: of a valid report or certificate every other bit
//! pattern is refused. The report's signature is verified over the bytes as they came, where `sev` encodes what it
//! parsed once more. (An ECDSA signature has a second form, (r, n - s), which anybody can compute and which is as
//! valid; a report's hash therefore identifies nothing.)
//!
//! Specifications: AMD 56860, "SEV Secure Nested Paging Firmware ABI Specification"; AMD 57230, "Versioned Chip
//! Endorsement Key (VCEK) Certificate and KDS Interface Specification".
//!
//! What it trusts: the clock, the root and the terms that the caller hands in.

mod certificate;
mod chain;
mod checklist;
mod claims;
mod crl;
mod endorsements;
mod guest_policy;
mod judge;
mod product;
mod report;
mod root;
mod terms;
mod values;

pub use certificate::SnpCertificateError;
pub use judge::{SnpInputs, judge_snp};
pub use product::{SnpProduct, SnpTcb};
pub use report::{SNP_REPORT_BYTES, SigningKey, SnpReport, SnpReportError};
pub use root::{SnpRoot, SnpRootError};
pub use terms::{SnpOwnerId, SnpPlatformInfoTerms, SnpSigningKeyTerm, SnpTerms, SnpTermsError};

/// AMD's certificates have up to 1,700 bytes.
const CERTIFICATE_BYTES_MAX: usize = 16 << 10;

/// AMD's revocation lists have about 1,000 bytes; this is room for thousands of entries.
const CRL_BYTES_MAX: usize = 256 << 10;

/// All products' authorities and a few endorsement keys.
const ENDORSEMENTS_MAX: usize = 32;

/// Reads bytes as a report and as a file of certificates and revocation lists, and forgets both: for fuzzing the
/// parsers without their signatures.
pub fn parse_untrusted(bytes: &[u8]) {
    if let Ok(report) = SnpReport::parse(bytes) {
        for product in SnpProduct::ALL {
            let _ = report.check_tcbs(product);
            let _ = claims::claims(&report, Some(product));
        }
    }
    let _ = endorsements::Endorsements::read(&[bytes]);
}
