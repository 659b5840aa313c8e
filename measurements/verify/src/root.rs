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
pub struct Root {
    der: Vec<u8>,
    kind: RootKind,
}

/// Whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RootKind {
    Intel,
    Simulated,
    /// The caller's choice, for evidence of other roots than a policy can name.
    Given,
}

impl Root {
    /// Intel's.
    pub fn intel() -> Self {
        Self::parse(INTEL_SGX_ROOT_CA_PEM, false).expect("the pinned root is Intel's")
    }

    /// Any root that the caller trusts: exactly one certificate, in PEM.
    ///
    /// # Errors
    /// Not exactly one certificate.
    pub fn given(pem: &str) -> Result<Self, RootError> {
        let (der, subject) = parse_der(pem)?;
        let kind = if Digest32::of(&der).to_string() == INTEL_SGX_ROOT_CA_SHA256 {
            RootKind::Intel
        } else if subject.simulated {
            RootKind::Simulated
        } else {
            RootKind::Given
        };
        Ok(Self { der, kind })
    }

    /// The root that a policy names.
    pub(crate) fn parse(pem: &str, simulated: bool) -> Result<Self, RootError> {
        let (der, subject) = parse_der(pem)?;
        let sha256 = Digest32::of(&der);
        let name = subject.name;
        if !simulated && sha256.to_string() != INTEL_SGX_ROOT_CA_SHA256 {
            return Err(RootError::NotIntel {
                subject: name,
                sha256,
            });
        }
        if simulated && !subject.simulated {
            return Err(RootError::NotSimulated { subject: name });
        }
        let kind = if simulated {
            RootKind::Simulated
        } else {
            RootKind::Intel
        };
        Ok(Self { der, kind })
    }

    pub(crate) fn der(&self) -> &[u8] {
        &self.der
    }

    /// Whether it is a simulated platform's: whoever runs the host could have made everything below it up.
    pub fn is_simulated(&self) -> bool {
        self.kind == RootKind::Simulated
    }

    /// How reports name it.
    pub(crate) fn label(&self) -> String {
        let sha256 = Digest32::of(&self.der);
        match self.kind {
            RootKind::Intel => format!("Intel SGX Root CA {sha256}"),
            RootKind::Simulated => format!("SIMULATED root {sha256}"),
            RootKind::Given => format!("given root {sha256}"),
        }
    }
}

struct Subject {
    name: String,
    simulated: bool,
}

fn parse_der(pem: &str) -> Result<(Vec<u8>, Subject), RootError> {
    let der = one_certificate(pem)?;
    let (rest, certificate) = X509Certificate::from_der(&der).map_err(|_| RootError::NotOneCertificate)?;
    if !rest.is_empty() {
        return Err(RootError::NotOneCertificate);
    }
    let simulated = certificate
        .subject()
        .iter_common_name()
        .filter_map(|name| name.as_str().ok())
        .any(|name| name.starts_with(SIMULATED_ROOT_COMMON_NAME_PREFIX));
    let name = certificate.subject().to_string();
    Ok((der, Subject { name, simulated }))
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
