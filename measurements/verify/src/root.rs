//! The root certificate at which a quote's chain must end: Intel's, pinned here, or a simulated platform's.
//!
//! A policy states which of the two it means. The two cannot be confused: Intel's is recognised by its digest,
//! a simulated one by its subject, and a certificate that is neither is refused.

use cocoon_evidence::Digest32;
use x509_parser::prelude::{FromDer as _, Pem, X509Certificate};

/// Intel SGX Root CA, which also signs for TDX. Source:
/// `https://certificates.trustedservices.intel.com/Intel_SGX_Provisioning_Certification_RootCA.cer`.
pub const INTEL_SGX_ROOT_CA_PEM: &str = include_str!("intel_sgx_root_ca.pem");

/// SHA-256 of that certificate, DER.
pub const INTEL_SGX_ROOT_CA_SHA256: &str = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3";

/// The common name of every simulated platform's root starts with this.
pub const SIMULATED_ROOT_COMMON_NAME_PREFIX: &str = "Cocoon SIMULATED";

/// Why a policy's root certificate is not one.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// Not one PEM block with an X.509 certificate.
    #[error("platform.root_pem is not exactly one certificate in PEM")]
    NotOneCertificate,
    /// `simulated = false` with another root than Intel's.
    #[error(
        "platform.simulated is false, but platform.root_pem is \"{subject}\" (SHA-256 {sha256}) and not the Intel \
         SGX Root CA ({INTEL_SGX_ROOT_CA_SHA256}); a policy for a simulated platform must say simulated = true"
    )]
    NotIntel {
        /// Its subject.
        subject: String,
        /// Digest of its DER.
        sha256: Digest32,
    },
    /// `simulated = true` with a root that is not a simulator's.
    #[error(
        "platform.simulated is true, but platform.root_pem is \"{subject}\", whose common name does not start with \
         \"{SIMULATED_ROOT_COMMON_NAME_PREFIX}\""
    )]
    NotSimulated {
        /// Its subject.
        subject: String,
    },
}

/// A root certificate that is what its policy says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Root {
    der: Vec<u8>,
    simulated: bool,
}

impl Root {
    pub(crate) fn parse(pem: &str, simulated: bool) -> Result<Self, RootError> {
        let der = one_certificate(pem)?;
        let (rest, certificate) =
            X509Certificate::from_der(&der).map_err(|_| RootError::NotOneCertificate)?;
        if !rest.is_empty() {
            return Err(RootError::NotOneCertificate);
        }
        let subject = certificate.subject().to_string();
        let sha256 = Digest32::of(&der);
        if !simulated && sha256.to_string() != INTEL_SGX_ROOT_CA_SHA256 {
            return Err(RootError::NotIntel { subject, sha256 });
        }
        let named_simulated = certificate
            .subject()
            .iter_common_name()
            .filter_map(|name| name.as_str().ok())
            .any(|name| name.starts_with(SIMULATED_ROOT_COMMON_NAME_PREFIX));
        if simulated && !named_simulated {
            return Err(RootError::NotSimulated { subject });
        }
        Ok(Self { der, simulated })
    }

    pub(crate) fn der(&self) -> &[u8] {
        &self.der
    }

    pub(crate) fn is_simulated(&self) -> bool {
        self.simulated
    }

    /// How reports name it.
    pub(crate) fn label(&self) -> String {
        let sha256 = Digest32::of(&self.der);
        if self.simulated {
            format!("SIMULATED root {sha256}")
        } else {
            format!("Intel SGX Root CA {sha256}")
        }
    }
}

fn one_certificate(pem: &str) -> Result<Vec<u8>, RootError> {
    let mut blocks = Pem::iter_from_buffer(pem.as_bytes());
    match (blocks.next(), blocks.next()) {
        (Some(Ok(block)), None) if block.label == "CERTIFICATE" => Ok(block.contents),
        _ => Err(RootError::NotOneCertificate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_root_is_intels() {
        assert!(Root::parse(INTEL_SGX_ROOT_CA_PEM, false).is_ok());
    }

    #[test]
    fn intels_root_is_not_accepted_as_simulated() {
        assert!(matches!(
            Root::parse(INTEL_SGX_ROOT_CA_PEM, true),
            Err(RootError::NotSimulated { .. })
        ));
    }

    #[test]
    fn a_second_certificate_cannot_hide_behind_the_first() {
        let two = INTEL_SGX_ROOT_CA_PEM.repeat(2);
        assert!(matches!(
            Root::parse(&two, false),
            Err(RootError::NotOneCertificate)
        ));
    }
}
