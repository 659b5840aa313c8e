//! Collateral: what Intel publishes about a platform, in the JSON form of dcap-qvl. Whoever carries it is not
//! trusted: [`Collateral::verify`] is the only way to a [`VerifiedCollateral`].

use std::{borrow::Cow, sync::Arc};

use serde::{Deserialize, Deserializer, de};
use x509_parser::pem::Pem;

use super::{
    certificate::{Certificate, CertificateError},
    revocation::{RevocationList, RevocationListError},
    tcb_info::{QeIdentity, TcbInfo},
    validity::Validity,
};
use crate::{judgement::FailureClass, root::Root};

/// Longer collateral is refused before it is parsed. Intel's has about 25 KiB.
pub const COLLATERAL_BYTES_MAX: usize = 256 * 1024;

/// Signer and root; the root may be left out.
const ISSUER_CERTIFICATES_MAX: usize = 2;

/// Why bytes are not collateral.
#[derive(Debug, thiserror::Error)]
pub enum CollateralFormatError {
    /// Over the limit.
    #[error("{0} bytes, at most {COLLATERAL_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// Not JSON, or a field is missing or is not hex.
    #[error("not the JSON of a quote's collateral: {0}")]
    Malformed(#[source] serde_json::Error),
}

/// A part of the collateral.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CollateralPart {
    /// What Intel says about the platform model.
    TcbInfo,
    /// What Intel says about the quoting enclave.
    QeIdentity,
    /// The root CA's revocation list.
    RootCrl,
    /// The PCK CA's revocation list.
    PckCrl,
}

impl CollateralPart {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::TcbInfo => "TCB info",
            Self::QeIdentity => "QE identity",
            Self::RootCrl => "root CA CRL",
            Self::PckCrl => "PCK CRL",
        }
    }
}

/// Why a part of the collateral does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CollateralError {
    /// The issuer chain is not PEM, or too long.
    #[error("{}: its issuer chain is not one to two certificates in PEM", .0.name())]
    Chain(CollateralPart),
    /// A certificate of the issuer chain, or the trusted root, is not usable.
    #[error("{}: a certificate of its issuer chain: {source}", part.name())]
    Certificate {
        /// Whose chain.
        part: CollateralPart,
        /// Why.
        source: CertificateError,
    },
    /// The chain ends at another root than the trusted one.
    #[error("{}: its issuer chain does not lead to the trusted root: {signer} is not signed by it", part.name())]
    Untrusted {
        /// Whose chain.
        part: CollateralPart,
        /// Common name of the signer.
        signer: String,
    },
    /// The document is not what its signer signed.
    #[error("{}: its signature does not verify", .0.name())]
    Signature(CollateralPart),
    /// Signed, but not understood.
    #[error("{}: signed, but not understood: {cause}", part.name())]
    Document {
        /// Which.
        part: CollateralPart,
        /// Why.
        cause: String,
    },
    /// A revocation list is not what its CA signed.
    #[error("{}: {source}", part.name())]
    RevocationList {
        /// Which.
        part: CollateralPart,
        /// Why.
        source: RevocationListError,
    },
    /// The signer is on the root CA's list.
    #[error("{}: its signer {signer} is revoked by the root CA", part.name())]
    Revoked {
        /// Whose signer.
        part: CollateralPart,
        /// Common name.
        signer: String,
    },
}

impl CollateralError {
    /// What the failure means.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Revoked { .. } => FailureClass::Tcb,
            _ => FailureClass::Signature,
        }
    }
}

/// Collateral as it came; nothing in it is authentic yet.
#[derive(Debug, Clone, Deserialize)]
pub struct Collateral {
    pck_crl_issuer_chain: String,
    #[serde(deserialize_with = "hexadecimal")]
    root_ca_crl: Vec<u8>,
    #[serde(deserialize_with = "hexadecimal")]
    pck_crl: Vec<u8>,
    tcb_info_issuer_chain: String,
    tcb_info: String,
    #[serde(with = "hex::serde")]
    tcb_info_signature: [u8; 64],
    qe_identity_issuer_chain: String,
    qe_identity: String,
    #[serde(with = "hex::serde")]
    qe_identity_signature: [u8; 64],
    // `pck_certificate_chain` is not read: a supported quote carries its own, and only that one is judged.
}

/// As `hex::serde`, which collects byte by byte and takes three times as long.
fn hexadecimal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = <Cow<'de, str>>::deserialize(deserializer)?;
    let mut bytes = vec![0; text.len() / 2];
    hex::decode_to_slice(text.as_bytes(), &mut bytes).map_err(de::Error::custom)?;
    Ok(bytes)
}

impl Collateral {
    /// Reads the JSON form of dcap-qvl's `QuoteCollateralV3`; keys that it does not have are skipped.
    ///
    /// # Errors
    /// Too long, not JSON, or a part is missing.
    pub fn parse(bytes: &[u8]) -> Result<Self, CollateralFormatError> {
        if bytes.len() > COLLATERAL_BYTES_MAX {
            return Err(CollateralFormatError::TooLarge(bytes.len()));
        }
        serde_json::from_slice(bytes).map_err(CollateralFormatError::Malformed)
    }

    /// Proves that `root` vouches for every part. Dates are not judged here: the result knows when it is valid, and
    /// whatever uses it asks.
    ///
    /// # Errors
    /// The first part that does not verify.
    pub fn verify(&self, root: &Root) -> Result<VerifiedCollateral, CollateralError> {
        self.examine(root)?.into_verified()
    }

    /// Tries every part by itself: 6 P-256 checks, or 7 if TCB info and QE identity have different signers.
    pub(crate) fn examine(&self, root: &Root) -> Result<Examination, CollateralError> {
        let part = CollateralPart::RootCrl;
        let root =
            Certificate::parse(root.der()).map_err(|source| CollateralError::Certificate { part, source })?;
        let root_crl = RevocationList::verify(&self.root_ca_crl, &root)
            .map_err(|source| CollateralError::RevocationList { part, source });
        let crl = root_crl.as_ref().ok();

        let tcb_signer = issuer(&self.tcb_info_issuer_chain, &root, crl, CollateralPart::TcbInfo);
        let tcb_info = tcb_signer.as_ref().map_err(Clone::clone).and_then(|signer| {
            signed(
                signer,
                CollateralPart::TcbInfo,
                &self.tcb_info,
                &self.tcb_info_signature,
            )
        });
        let qe_signer = if self.qe_identity_issuer_chain == self.tcb_info_issuer_chain && tcb_signer.is_ok() {
            tcb_signer.clone()
        } else {
            issuer(
                &self.qe_identity_issuer_chain,
                &root,
                crl,
                CollateralPart::QeIdentity,
            )
        };
        let qe_identity = qe_signer.as_ref().map_err(Clone::clone).and_then(|signer| {
            signed(
                signer,
                CollateralPart::QeIdentity,
                &self.qe_identity,
                &self.qe_identity_signature,
            )
        });
        let pck_ca = issuer(&self.pck_crl_issuer_chain, &root, crl, CollateralPart::PckCrl);
        let pck_crl = pck_ca.as_ref().map_err(Clone::clone).and_then(|ca| {
            let part = CollateralPart::PckCrl;
            RevocationList::verify(&self.pck_crl, ca)
                .map_err(|source| CollateralError::RevocationList { part, source })
        });
        Ok(Examination {
            root,
            root_crl,
            signers: [tcb_signer, qe_signer],
            tcb_info,
            qe_identity,
            pck_ca,
            pck_crl,
        })
    }
}

/// The certificate that signed a part: the first of its chain, which `root` has to have signed.
fn issuer(
    pem: &str,
    root: &Certificate,
    root_crl: Option<&RevocationList>,
    part: CollateralPart,
) -> Result<Certificate, CollateralError> {
    let mut ders = Vec::with_capacity(ISSUER_CERTIFICATES_MAX);
    for block in Pem::iter_from_buffer(pem.as_bytes()).take(ISSUER_CERTIFICATES_MAX + 1) {
        let block = block.ok().filter(|block| block.label == "CERTIFICATE");
        ders.push(block.ok_or(CollateralError::Chain(part))?.contents);
    }
    // Intel's own samples begin with the root.
    if ders.len() == ISSUER_CERTIFICATES_MAX && ders[0] == root.der() {
        ders.reverse();
    }
    let (signer, above) = match ders.as_slice() {
        [signer] => (signer, None),
        [signer, above] => (signer, Some(above)),
        _ => return Err(CollateralError::Chain(part)),
    };
    let signer =
        Certificate::parse(signer).map_err(|source| CollateralError::Certificate { part, source })?;
    let may_sign = match part {
        CollateralPart::RootCrl | CollateralPart::PckCrl => signer.is_ca(),
        CollateralPart::TcbInfo | CollateralPart::QeIdentity => signer.is_signer(),
    };
    if above.is_some_and(|der| der.as_slice() != root.der()) || !may_sign || !signer.is_issued_by(root) {
        return Err(CollateralError::Untrusted {
            part,
            signer: signer.name(),
        });
    }
    if root_crl.is_some_and(|list| list.revokes(&signer)) {
        return Err(CollateralError::Revoked {
            part,
            signer: signer.name(),
        });
    }
    Ok(signer)
}

/// One P-256 check.
fn signed<'a, T: Deserialize<'a>>(
    signer: &Certificate,
    part: CollateralPart,
    document: &'a str,
    signature: &[u8; 64],
) -> Result<T, CollateralError> {
    if !signer.key().signed(document.as_bytes(), signature) {
        return Err(CollateralError::Signature(part));
    }
    serde_json::from_str(document).map_err(|error| CollateralError::Document {
        part,
        cause: error.to_string(),
    })
}

/// How each part did.
pub(crate) struct Examination {
    root: Certificate,
    /// Of TCB info and QE identity.
    signers: [Result<Certificate, CollateralError>; 2],
    pub(crate) root_crl: Result<RevocationList, CollateralError>,
    pub(crate) tcb_info: Result<TcbInfo, CollateralError>,
    pub(crate) qe_identity: Result<QeIdentity, CollateralError>,
    pck_ca: Result<Certificate, CollateralError>,
    pub(crate) pck_crl: Result<RevocationList, CollateralError>,
}

impl Examination {
    pub(crate) fn into_verified(self) -> Result<VerifiedCollateral, CollateralError> {
        let [tcb_signer, qe_signer] = self.signers;
        let (tcb_signer, qe_signer) = (tcb_signer?, qe_signer?);
        let (root_crl, pck_crl, pck_ca) = (self.root_crl?, self.pck_crl?, self.pck_ca?);
        let (tcb_info, qe_identity) = (self.tcb_info?, self.qe_identity?);
        let mut validity = Validity::default();
        validity.add_certificate("root CA", &self.root);
        validity.add_list("root CA CRL", &root_crl);
        validity.add_certificate("PCK CA", &pck_ca);
        validity.add_list("PCK CRL", &pck_crl);
        validity.add_certificate("TCB info's signer", &tcb_signer);
        validity.add_document("TCB info", tcb_info.issued_s, tcb_info.next_update_s);
        validity.add_certificate("QE identity's signer", &qe_signer);
        validity.add_document("QE identity", qe_identity.issued_s, qe_identity.next_update_s);
        Ok(VerifiedCollateral(Arc::new(Parts {
            root: self.root,
            root_crl,
            pck_ca,
            pck_crl,
            tcb_info,
            qe_identity,
            validity,
        })))
    }
}

/// Collateral for which a root vouches. Cheap to clone, made to be kept: it says itself when it expires.
#[derive(Debug, Clone)]
pub struct VerifiedCollateral(Arc<Parts>);

#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) root: Certificate,
    pub(crate) root_crl: RevocationList,
    pub(crate) pck_ca: Certificate,
    pub(crate) pck_crl: RevocationList,
    pub(crate) tcb_info: TcbInfo,
    pub(crate) qe_identity: QeIdentity,
    pub(crate) validity: Validity,
}

impl VerifiedCollateral {
    /// When each part is valid, and so all together.
    pub fn validity(&self) -> &Validity {
        &self.0.validity
    }

    /// The lower of the evaluation numbers of TCB info and QE identity.
    pub fn evaluation_number(&self) -> u32 {
        self.0
            .tcb_info
            .evaluation_number
            .min(self.0.qe_identity.evaluation_number)
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.0
    }
}
