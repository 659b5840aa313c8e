//! A certificate chain from a leaf to one of NVIDIA's roots, which is pinned here.

use std::ops::RangeInclusive;

use cocoon_evidence::Digest32;

use super::certificate::{Certificate, CertificateError, read_certificates};
use super::rows::Rows;
use crate::judgement::FailureClass;

/// "NVIDIA Device Identity CA", which GPUs' and NVSwitches' chains end at. Source: NVIDIA/attestation-sdk,
/// `nv-attestation-sdk-cpp/src/internal/certs.h`, and NVIDIA/nvtrust, `certs/verifier_device_root.pem`; SHA-256 of
/// the DER 102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48.
pub const NVIDIA_DEVICE_IDENTITY_CA_PEM: &str = include_str!("nvidia_device_identity_ca.pem");

/// "NVIDIA CoRIM signing Root CA", which RIM signers' chains end at. Source: the same places,
/// `certs/verifier_RIM_root.pem`; SHA-256 of the DER
/// 12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1.
pub const NVIDIA_RIM_ROOT_CA_PEM: &str = include_str!("nvidia_rim_root_ca.pem");

/// Certificates of a device's chain: firmware, boot ROM, provisioner, chip family, root. NVIDIA's verifier
/// insists on the number too.
pub(super) const DEVICE_CHAIN_CERTIFICATES: RangeInclusive<usize> = 5..=5;
/// Certificates of a RIM signer's chain: signer (L4), L3, chip family (L2), root; one more or less is taken.
pub(super) const RIM_CHAIN_CERTIFICATES: RangeInclusive<usize> = 3..=5;

/// The certificates that chains have to end at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvidiaRoots {
    device: Vec<u8>,
    rim: Vec<u8>,
}

impl NvidiaRoots {
    /// NVIDIA's own.
    pub fn pinned() -> Self {
        let one = |pem: &str| one_root(pem.as_bytes()).expect("the file beside this one is a certificate");
        Self {
            device: one(NVIDIA_DEVICE_IDENTITY_CA_PEM),
            rim: one(NVIDIA_RIM_ROOT_CA_PEM),
        }
    }

    /// The same with another root for devices, PEM or DER.
    pub fn with_device_root(self, bytes: &[u8]) -> Result<Self, CertificateError> {
        Ok(Self {
            device: one_root(bytes)?,
            ..self
        })
    }

    /// The same with another root for RIM files, PEM or DER.
    pub fn with_rim_root(self, bytes: &[u8]) -> Result<Self, CertificateError> {
        Ok(Self {
            rim: one_root(bytes)?,
            ..self
        })
    }

    pub(crate) fn describe(&self) -> String {
        let (device, rim) = (Digest32::of(&self.device), Digest32::of(&self.rim));
        format!("root of devices {device}, of RIM files {rim}")
    }

    pub(super) fn device(&self) -> &[u8] {
        &self.device
    }

    pub(super) fn rim(&self) -> &[u8] {
        &self.rim
    }
}

fn one_root(bytes: &[u8]) -> Result<Vec<u8>, CertificateError> {
    let [root] = <[Vec<u8>; 1]>::try_from(read_certificates(bytes)?)
        .map_err(|all| CertificateError::Form(format!("holds {} certificates; a root is one", all.len())))?;
    Certificate::parse(&root)?;
    Ok(root)
}

/// Leaf first, the pinned root last.
pub(super) struct Chain<'a> {
    pub(super) certificates: Vec<Certificate<'a>>,
}

impl<'a> Chain<'a> {
    /// Judges the whole chain; it is returned if it can be read, whether or not it holds, so that what depends on
    /// it can be judged too.
    pub(super) fn judge(
        ders: &'a [Vec<u8>],
        root: &'a [u8],
        count: &RangeInclusive<usize>,
        now_s: u64,
        rows: &mut Rows,
    ) -> Option<Self> {
        let chain = match Self::parse(ders, root, count) {
            Ok(chain) => chain,
            Err(error) => {
                rows.unreadable("chain.format", "leaf, authorities, NVIDIA's root", error);
                return None;
            }
        };
        chain.judge_links(root, rows);
        chain.judge_constraints(rows);
        chain.judge_validity(now_s, rows);
        Some(chain)
    }

    fn parse(
        ders: &'a [Vec<u8>],
        root: &'a [u8],
        count: &RangeInclusive<usize>,
    ) -> Result<Self, CertificateError> {
        let mut certificates = Vec::with_capacity(ders.len() + 1);
        for (index, der) in ders.iter().enumerate() {
            let certificate = Certificate::parse(der);
            certificates.push(certificate.map_err(|error| numbered(index, &error))?);
        }
        let root = Certificate::parse(root)?;
        // A root may be left out: it is pinned anyway.
        let last_names_root = certificates.last().is_some_and(|last| {
            last.x509.issuer().as_raw() == root.x509.subject().as_raw()
                && last.x509.subject().as_raw() != root.x509.subject().as_raw()
        });
        if last_names_root {
            certificates.push(root);
        }
        if !count.contains(&certificates.len()) {
            let (actual, expected) = (certificates.len(), range(count));
            let what = format!("the chain has {actual} certificates with its root, not {expected}");
            return Err(CertificateError::Form(what));
        }
        Ok(Self { certificates })
    }

    fn judge_links(&self, root: &[u8], rows: &mut Rows) {
        let broken = self.certificates.windows(2).find_map(|pair| match pair {
            [subject, issuer] if !subject.is_issued_by(issuer) => Some(format!(
                "\"{}\" is not signed by \"{}\"",
                subject.subject(),
                issuer.subject()
            )),
            _ => None,
        });
        rows.judge(
            FailureClass::Signature,
            "chain.signatures",
            broken.is_none(),
            "each certificate is signed by the next",
            broken.as_deref().unwrap_or("each is"),
            "the chain has to be leaf first, root last",
        );
        let Some(last) = self.certificates.last() else {
            return;
        };
        rows.judge(
            FailureClass::Signature,
            "chain.root",
            last.der == root,
            Certificate::parse(root).map_or_else(|_| "the pinned root".to_owned(), |root| root.subject()),
            last.subject(),
            "ends at a certificate that is not the pinned root, byte for byte",
        );
    }

    fn judge_constraints(&self, rows: &mut Rows) {
        let wrong = self
            .certificates
            .iter()
            .enumerate()
            .find(|(index, certificate)| match index {
                0 => !certificate.is_signing_leaf(),
                _ => !certificate.is_authority_over(index - 1),
            });
        rows.judge(
            FailureClass::Signature,
            "chain.constraints",
            wrong.is_none(),
            "the leaf may sign data, all others certificates",
            wrong.map_or_else(|| "they may".to_owned(), |(_, certificate)| certificate.subject()),
            "its basic constraints, path length or key usage forbid what it does here",
        );
    }

    fn judge_validity(&self, now_s: u64, rows: &mut Rows) {
        for certificate in &self.certificates {
            rows.ends(certificate.changes_s(now_s));
        }
        let expired = self
            .certificates
            .iter()
            .find(|certificate| !certificate.is_valid_at(now_s));
        let shortest = self
            .certificates
            .iter()
            .min_by_key(|one| one.x509.validity().not_after.timestamp());
        let shown = expired.or(shortest);
        rows.judge(
            FailureClass::Tcb,
            "chain.validity",
            expired.is_none(),
            format!("all valid at {now_s}"),
            shown.map_or_else(String::new, |one| {
                format!("{}: {}", one.subject(), one.validity())
            }),
            "this certificate is not valid at that time",
        );
    }
}

fn range(count: &RangeInclusive<usize>) -> String {
    match (count.start(), count.end()) {
        (least, most) if least == most => least.to_string(),
        (least, most) => format!("{least} to {most}"),
    }
}

fn numbered(index: usize, error: &CertificateError) -> CertificateError {
    CertificateError::Form(format!("certificate {index}: {error}"))
}
