//! Which collateral belongs to a quote. Whoever fetches collateral asks with this, and has to ask again with what it
//! got: a service may hand out genuine collateral of another platform.

use std::fmt;

use super::{
    chain::{ChainError, PckChain},
    collateral::VerifiedCollateral,
    pck::{PckExtension, PckExtensionError},
    quote::Quote,
    report::BodyKind,
    tcb_info::Tee,
};

/// Which of Intel's two CAs for platforms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PckCa {
    /// "Intel SGX PCK Processor CA".
    Processor,
    /// "Intel SGX PCK Platform CA".
    Platform,
}

impl PckCa {
    /// As Intel's services spell it (Intel PCS API version 4, "Get Revocation List", parameter `ca`).
    pub fn name(self) -> &'static str {
        match self {
            Self::Processor => "processor",
            Self::Platform => "platform",
        }
    }

    /// Intel SGX PCK Certificate and Certificate Revocation List Profile Specification 1.5: the CAs' subjects.
    fn of_common_name(name: &str) -> Option<Self> {
        match name {
            "Intel SGX PCK Processor CA" => Some(Self::Processor),
            "Intel SGX PCK Platform CA" => Some(Self::Platform),
            _ => None,
        }
    }
}

/// What Intel's services ask for: a platform model and the CA that certified the platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CollateralKey {
    /// Family, model, stepping, platform and custom SKU.
    pub fmspc: [u8; 6],
    /// Whose revocation list.
    pub ca: PckCa,
}

impl fmt::Display for CollateralKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "FMSPC {}, {} CA",
            hex::encode_upper(self.fmspc),
            self.ca.name()
        )
    }
}

/// Why a quote does not say which collateral it needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CollateralKeyError {
    /// An enclave's.
    #[error("it is a quote of an SGX enclave, not of a TD")]
    Sgx,
    /// The chain cannot be read.
    #[error("its PCK chain: {0}")]
    Chain(#[from] ChainError),
    /// Nobody's list is known.
    #[error("its PCK certificate is from \"{0}\", which is neither Intel's processor nor platform CA")]
    Ca(String),
    /// The certificate does not name the platform.
    #[error("its PCK certificate: {0}")]
    Platform(#[from] PckExtensionError),
}

/// Genuine collateral that is not what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is for {found}, asked was for {expected}")]
pub struct OtherCollateral {
    what: &'static str,
    found: String,
    expected: String,
}

impl CollateralKey {
    /// Reads the quote's PCK chain. Nothing in it is authentic yet: a forged one leads to collateral with which the
    /// quote is refused.
    ///
    /// # Errors
    /// Not a TD's quote, or no usable chain of Intel's CAs in it.
    pub fn of(quote: &Quote<'_>) -> Result<Self, CollateralKeyError> {
        if quote.kind() == BodyKind::SgxEnclave {
            return Err(CollateralKeyError::Sgx);
        }
        let chain = PckChain::parse(quote.pck_chain(), &[])?;
        let ca = chain.ca.name();
        let platform = PckExtension::parse(chain.leaf.sgx_extension().unwrap_or_default())?;
        Ok(Self {
            fmspc: platform.fmspc,
            ca: PckCa::of_common_name(&ca).ok_or(CollateralKeyError::Ca(ca))?,
        })
    }
}

impl VerifiedCollateral {
    /// Whether this is collateral for TDs on that platform.
    ///
    /// # Errors
    /// Names the first part that is another's.
    pub fn check_key(&self, key: &CollateralKey) -> Result<(), OtherCollateral> {
        let parts = self.parts();
        let other = |what, found, expected: &str| {
            Err(OtherCollateral {
                what,
                found,
                expected: expected.to_owned(),
            })
        };
        if !parts.tcb_info.is_for(Tee::Tdx) {
            return other("TCB info", parts.tcb_info.id.clone(), "TDX");
        }
        if !parts.qe_identity.is_for(Tee::Tdx) {
            return other("QE identity", parts.qe_identity.id.clone(), "TD_QE");
        }
        if parts.tcb_info.fmspc != key.fmspc {
            return other(
                "TCB info",
                hex::encode_upper(parts.tcb_info.fmspc),
                &hex::encode_upper(key.fmspc),
            );
        }
        let ca = parts.pck_ca.name();
        if PckCa::of_common_name(&ca) != Some(key.ca) {
            return other("PCK CRL", ca, key.ca.name());
        }
        Ok(())
    }
}
