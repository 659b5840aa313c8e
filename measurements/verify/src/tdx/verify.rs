//! From a root to a quote: who signed what, and with which security version. Each step yields a value that only it
//! can build and that can be kept, so that the next quote costs fewer signature checks:
//!
//! 1. [`Collateral::verify`](super::Collateral::verify): 6 P-256 checks, once for all quotes of a platform model;
//! 2. [`VerifiedCollateral::verify_pck`]: 1 check, once for all quotes of one platform;
//! 3. [`VerifiedPck::verify`]: 2 checks for the first quote, 1 for every other one with the same QE report, which a
//!    quoting enclave has once for its attestation key.

use std::sync::{Arc, OnceLock};

use aws_lc_rs::digest::{Context, SHA256};

use super::{
    certificate::Certificate,
    chain::{ChainError, PckChain},
    collateral::VerifiedCollateral,
    pck::{PckExtension, PckExtensionError},
    quote::Quote,
    report::{BodyKind, ENCLAVE_REPORT_BYTES},
    signature::P256Key,
    tcb::{self, TcbError, TcbVerdict},
    tcb_info::Tee,
    validity::{Validity, ValidityError},
};
use crate::judgement::FailureClass;

/// Why a quote is not what its platform's vendor vouches for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The chain in the quote.
    #[error("the PCK certificate chain: {0}")]
    Chain(#[from] ChainError),
    /// The chain is somebody else's.
    #[error("the PCK certificate chain does not lead to the trusted root: {0}")]
    Untrusted(String),
    /// The collateral has the revocation list of another CA than the one that signed the PCK certificate.
    #[error("the collateral's PCK CRL is by \"{listed}\", the PCK certificate by \"{used}\"")]
    OtherCa {
        /// Whose list it is.
        listed: String,
        /// Who signed.
        used: String,
    },
    /// A certificate is on a revocation list.
    #[error("\"{0}\" is revoked")]
    Revoked(String),
    /// The PCK certificate does not say which platform it is for.
    #[error("the PCK certificate: {0}")]
    PckExtension(#[from] PckExtensionError),
    /// Another platform's quote than the one whose PCK was verified.
    #[error("the quote has another PCK certificate chain than the verified one")]
    OtherPck,
    /// The quoting enclave is not this platform's.
    #[error("the QE report is not signed by the PCK")]
    QeReportSignature,
    /// The attestation key is not the quoting enclave's.
    #[error("the QE report does not bind the attestation key and the QE authentication data")]
    QeReportBinding,
    /// The report is not the quoting enclave's.
    #[error("the quote is not signed by its attestation key")]
    QuoteSignature,
    /// Something is used outside its time.
    #[error("{0}")]
    Validity(#[from] ValidityError),
    /// No status, or Revoked.
    #[error("{0}")]
    Tcb(#[from] TcbError),
}

impl VerifyError {
    /// What the failure means.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Revoked(_) | Self::Validity(_) | Self::OtherCa { .. } => FailureClass::Tcb,
            Self::Tcb(error) => error.class(),
            _ => FailureClass::Signature,
        }
    }
}

/// A platform's PCK, for which the collateral's root vouches. Cheap to clone, made to be kept.
#[derive(Debug, Clone)]
pub struct VerifiedPck(Arc<Pck>);

#[derive(Debug)]
struct Pck {
    chain: Vec<u8>,
    leaf: Certificate,
    extension: PckExtension,
    validity: Validity,
    collateral: VerifiedCollateral,
    /// The first one that this key was seen to have signed, with its signature.
    qe_report: OnceLock<([u8; ENCLAVE_REPORT_BYTES], [u8; 64])>,
}

impl Pck {
    /// One P-256 check, or none for the very bytes that were checked before.
    fn check_qe_report(&self, quote: &Quote<'_>) -> Result<(), VerifyError> {
        let given = (*quote.qe_report().bytes(), *quote.qe_report_signature());
        if self.qe_report.get() == Some(&given) {
            return Ok(());
        }
        check_qe_report(quote, self.leaf.key())?;
        // Another thread may have been first.
        let _ = self.qe_report.set(given);
        Ok(())
    }
}

impl VerifiedCollateral {
    /// Proves that the root vouches for the PCK chain of a quote ([`Quote::pck_chain`]). Dates are judged when it is
    /// used.
    ///
    /// # Errors
    /// The chain is not exact, leads elsewhere or is revoked.
    pub fn verify_pck(&self, chain: &[u8]) -> Result<VerifiedPck, VerifyError> {
        let parts = self.parts();
        let parsed = PckChain::parse(chain, &[&parts.pck_ca, &parts.root])?;
        let mut validity = parts.validity.clone();
        if parsed.ca != parts.pck_ca {
            check_ca(&parsed, &parts.root)?;
            validity.add_certificate("PCK CA of the quote", &parsed.ca);
        }
        check_leaf(&parsed, &parts.root)?;
        self.check_revocation(&parsed)?;
        validity.add_certificate("PCK certificate", &parsed.leaf);
        Ok(VerifiedPck(Arc::new(Pck {
            chain: chain.to_vec(),
            extension: extension(&parsed.leaf)?,
            leaf: parsed.leaf,
            validity,
            collateral: self.clone(),
            qe_report: OnceLock::new(),
        })))
    }

    /// The lists have to be those of the CAs that signed the chain.
    pub(crate) fn check_revocation(&self, chain: &PckChain) -> Result<(), VerifyError> {
        let parts = self.parts();
        if chain.ca.subject() != parts.pck_ca.subject() || chain.ca.key() != parts.pck_ca.key() {
            return Err(VerifyError::OtherCa {
                listed: parts.pck_ca.name(),
                used: chain.ca.name(),
            });
        }
        let revoked = [
            (&parts.root_crl, &parts.root),
            (&parts.root_crl, &chain.ca),
            (&parts.pck_crl, &chain.leaf),
        ]
        .into_iter()
        .find(|(list, certificate)| list.revokes(certificate));
        match revoked {
            Some((_, certificate)) => Err(VerifyError::Revoked(certificate.name())),
            None => Ok(()),
        }
    }

    /// Everything that has a security version. No signature is checked here.
    pub(crate) fn appraise(&self, quote: &Quote<'_>, pck: &PckExtension) -> Result<TcbVerdict, TcbError> {
        let parts = self.parts();
        let tee = match quote.kind() {
            BodyKind::SgxEnclave => Tee::Sgx,
            BodyKind::Td10 | BodyKind::Td15 | BodyKind::Td15Ex => Tee::Tdx,
        };
        let (tcb_info, qe_identity) = (&parts.tcb_info, &parts.qe_identity);
        for (fits, document, id, version) in [
            (tcb_info.is_for(tee), "TCB info", &tcb_info.id, tcb_info.version),
            (
                qe_identity.is_for(tee),
                "QE identity",
                &qe_identity.id,
                qe_identity.version,
            ),
        ] {
            if !fits {
                let id = id.clone();
                return Err(TcbError::Kind {
                    document,
                    id,
                    version,
                });
            }
        }
        let qe = tcb::quoting_enclave(qe_identity, &quote.qe_report())?;
        tcb::appraise(tcb_info, pck, quote.td_report().as_ref(), qe)
    }
}

/// The chain's root is the trusted one, and signed its CA: one P-256 check.
pub(crate) fn check_ca(chain: &PckChain, root: &Certificate) -> Result<(), VerifyError> {
    if chain.ca.is_issued_by(root) {
        return Ok(());
    }
    Err(VerifyError::Untrusted(format!(
        "\"{}\" is not signed by it",
        chain.ca.name()
    )))
}

/// The chain's CA signed its leaf: one P-256 check. The copy of the root proves nothing, but no bit of it is free.
pub(crate) fn check_leaf(chain: &PckChain, root: &Certificate) -> Result<(), VerifyError> {
    if chain.root.der() != root.der() {
        return Err(VerifyError::Untrusted("it ends at another one".to_owned()));
    }
    if !chain.leaf.is_signer() || !chain.leaf.is_issued_by(&chain.ca) {
        let (leaf, ca) = (chain.leaf.name(), chain.ca.name());
        return Err(VerifyError::Untrusted(format!(
            "\"{leaf}\" is not signed by \"{ca}\""
        )));
    }
    Ok(())
}

pub(crate) fn extension(leaf: &Certificate) -> Result<PckExtension, VerifyError> {
    Ok(PckExtension::parse(leaf.sgx_extension().unwrap_or_default())?)
}

/// The platform signed its quoting enclave's report: one P-256 check.
pub(crate) fn check_qe_report(quote: &Quote<'_>, pck: &P256Key) -> Result<(), VerifyError> {
    if pck.signed(quote.qe_report().bytes(), quote.qe_report_signature()) {
        Ok(())
    } else {
        Err(VerifyError::QeReportSignature)
    }
}

/// Report data of the quoting enclave: SHA-256 of attestation key and authentication data, then 32 zeros.
pub(crate) fn check_qe_binding(quote: &Quote<'_>) -> Result<(), VerifyError> {
    let mut hash = Context::new(&SHA256);
    hash.update(quote.attestation_key());
    hash.update(quote.qe_authentication());
    let report_data = quote.qe_report().report_data();
    if report_data[..32] == *hash.finish().as_ref() && report_data[32..] == [0; 32] {
        Ok(())
    } else {
        Err(VerifyError::QeReportBinding)
    }
}

/// The quoting enclave signed header and body: one P-256 check.
pub(crate) fn check_quote(quote: &Quote<'_>) -> Result<(), VerifyError> {
    if P256Key::from_xy(quote.attestation_key()).signed(quote.signed(), quote.signature()) {
        Ok(())
    } else {
        Err(VerifyError::QuoteSignature)
    }
}

impl VerifiedPck {
    /// Whether `quote` has exactly this PCK's chain: then it claims to be of this platform.
    pub fn is_named_by(&self, quote: &Quote<'_>) -> bool {
        quote.pck_chain() == self.0.chain
    }

    /// Which platform.
    pub fn platform(&self) -> &PckExtension {
        &self.0.extension
    }

    /// When it may be used, the collateral included.
    pub fn validity(&self) -> &Validity {
        &self.0.validity
    }

    /// The collateral that vouches for it.
    pub fn collateral(&self) -> &VerifiedCollateral {
        &self.0.collateral
    }

    /// Proves that this platform made `quote`, and says with which security version. Whether that version, the TD's
    /// attributes and its registers are acceptable is for [`TdxTerms`](super::TdxTerms) to say.
    ///
    /// # Errors
    /// Another platform's quote, a signature that does not verify, no TCB level, or outside of the time for which
    /// everything is valid.
    pub fn verify<'a>(&self, quote: &Quote<'a>, now_s: u64) -> Result<VerifiedQuote<'a>, VerifyError> {
        let pck = &*self.0;
        if !self.is_named_by(quote) {
            return Err(VerifyError::OtherPck);
        }
        pck.validity.check(now_s)?;
        pck.check_qe_report(quote)?;
        check_qe_binding(quote)?;
        check_quote(quote)?;
        let tcb = pck.collateral.appraise(quote, &pck.extension)?;
        Ok(VerifiedQuote {
            quote: *quote,
            tcb,
            pck: self.clone(),
        })
    }
}

/// A quote for which a root vouches. Only [`VerifiedPck::verify`] hands it out.
#[derive(Debug, Clone)]
pub struct VerifiedQuote<'a> {
    quote: Quote<'a>,
    tcb: TcbVerdict,
    pck: VerifiedPck,
}

impl<'a> VerifiedQuote<'a> {
    /// What was quoted.
    pub fn quote(&self) -> &Quote<'a> {
        &self.quote
    }

    /// With which security version.
    pub fn tcb(&self) -> &TcbVerdict {
        &self.tcb
    }

    /// By which platform, and until when that is known.
    pub fn pck(&self) -> &VerifiedPck {
        &self.pck
    }
}
