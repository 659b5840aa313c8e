//! The form of a guest's TLS certificate: one self-signed ECDSA P-256 certificate with evidence inside.
//!
//! During the handshake only the form is judged, and that the peer holds the certificate's private key.
//! Whether that key belongs to a guest worth trusting is decided afterwards, from the evidence in it: web PKI
//! plays no part. Everything here is read from an untrusted peer.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cocoon_evidence::{
    BundleError, CERTIFICATE_BYTES_MAX, CertifiedEvidence, Digest32, EVIDENCE_EXTENSION_OID, EvidenceBundle,
    ExtensionError,
};
use rustls::{
    CertificateError, DigitallySignedStruct, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, SignatureVerificationAlgorithm, UnixTime},
};
use x509_parser::{certificate::X509Certificate, oid_registry, prelude::FromDer as _};

/// How far ahead of this machine's clock a certificate may begin: clocks of guest and client differ.
pub const CLOCK_SKEW_S: i64 = 300;

/// An agent's certificate is valid for a day at most; one that is valid for longer was not made by an agent.
pub const VALIDITY_S_MAX: i64 = 24 * 3600;

/// Why a certificate is not that of a guest. Each is the server's fault, or that of somebody in between.
#[derive(Debug, thiserror::Error)]
pub enum CertificateFault {
    /// Over [`CERTIFICATE_BYTES_MAX`].
    #[error("the server's certificate has {bytes} bytes, at most {CERTIFICATE_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// A guest sends one certificate.
    #[error("the server sent a chain of certificates; a guest sends one that it signed itself")]
    Chain,
    /// Not X.509, or bytes after its end.
    #[error("the server's certificate is not well formed")]
    Malformed,
    /// Signed by somebody else, as certificates of the web are.
    #[error("the server's certificate is not signed by its own key: this is not a Cocoon guest's endpoint")]
    NotSelfSigned,
    /// RSA, Ed25519 or another curve.
    #[error("the key in the server's certificate is not ECDSA on P-256")]
    KeyType,
    /// An ordinary certificate.
    #[error("the server's certificate carries no evidence: this is not a Cocoon guest's endpoint")]
    NoEvidence,
    /// The extension is there and cannot be read.
    #[error("the evidence in the server's certificate cannot be read")]
    Evidence(#[from] ExtensionError),
    /// The certificate names evidence by digest, and what the server gave has another.
    #[error(
        "the server's certificate names evidence with SHA-256 {named}, the evidence that it gave has {found}"
    )]
    OtherEvidence {
        /// In the certificate.
        named: Digest32,
        /// Of what came.
        found: Digest32,
    },
    /// It is what the certificate names, and no bundle.
    #[error("the evidence that the server's certificate names cannot be read")]
    NamedEvidence(#[from] BundleError),
    /// Out of its validity.
    #[error(
        "the server's certificate is valid from {not_before_s} to {not_after_s} (seconds since 1970), it is now {now_s}"
    )]
    Expired {
        /// First valid second.
        not_before_s: i64,
        /// Last valid second.
        not_after_s: i64,
        /// This machine's clock.
        now_s: i64,
    },
    /// Valid for longer than [`VALIDITY_S_MAX`].
    #[error("the server's certificate is valid for {validity_s} s, a guest's for at most {VALIDITY_S_MAX} s")]
    TooLongLived {
        /// How long.
        validity_s: i64,
    },
}

/// A guest's certificate, taken apart. Its evidence is not judged yet.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
    /// First valid second since 1970.
    pub not_before_s: i64,
    /// Last valid second since 1970.
    pub not_after_s: i64,
    /// SHA-256 of the certificate's DER.
    pub digest: Digest32,
    /// What the evidence extension holds.
    pub evidence: CertifiedEvidence,
}

impl Leaf {
    /// Takes apart the certificate of a finished handshake.
    ///
    /// # Errors
    /// See [`CertificateFault`]; the validity is held against `now_s`, seconds since 1970.
    pub fn parse(der: &[u8], now_s: i64) -> Result<Self, CertificateFault> {
        let certificate = parse_form(der)?;
        let validity = certificate.validity();
        let (not_before_s, not_after_s) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        check_validity(not_before_s, not_after_s, now_s)?;
        Ok(Self {
            spki: certificate.public_key().raw.to_vec(),
            not_before_s,
            not_after_s,
            digest: Digest32::of(der),
            evidence: CertifiedEvidence::decode(evidence_extension(&certificate)?)?,
        })
    }

    /// The evidence, given what was fetched if the certificate only names it. `None`: nothing was fetched.
    ///
    /// # Errors
    /// What was fetched is not what the certificate names, or no bundle.
    pub(crate) fn bundle(&self, fetched: Option<&[u8]>) -> Result<Option<EvidenceBundle>, CertificateFault> {
        match (&self.evidence, fetched) {
            (CertifiedEvidence::Carried(bundle), _) => Ok(Some(bundle.clone())),
            (CertifiedEvidence::ByDigest(_), None) => Ok(None),
            (CertifiedEvidence::ByDigest(named), Some(fetched)) => {
                let (named, found) = (*named, Digest32::of(fetched));
                if found != named {
                    return Err(CertificateFault::OtherEvidence { named, found });
                }
                Ok(Some(EvidenceBundle::decode(fetched)?))
            }
        }
    }
}

fn check_validity(not_before_s: i64, not_after_s: i64, now_s: i64) -> Result<(), CertificateFault> {
    let validity_s = not_after_s.saturating_sub(not_before_s);
    if validity_s > VALIDITY_S_MAX {
        return Err(CertificateFault::TooLongLived { validity_s });
    }
    if now_s.saturating_add(CLOCK_SKEW_S) < not_before_s || now_s > not_after_s {
        return Err(CertificateFault::Expired {
            not_before_s,
            not_after_s,
            now_s,
        });
    }
    Ok(())
}

fn evidence_extension<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a [u8], CertificateFault> {
    let oid = x509_parser::der_parser::oid::Oid::from(&EVIDENCE_EXTENSION_OID)
        .map_err(|_| CertificateFault::NoEvidence)?;
    // An extension that occurs twice is an error here, so that nobody can choose which one is read.
    certificate
        .get_extension_unique(&oid)
        .map_err(|_| CertificateFault::Malformed)?
        .map(|extension| extension.value)
        .ok_or(CertificateFault::NoEvidence)
}

fn parse_form(der: &[u8]) -> Result<X509Certificate<'_>, CertificateFault> {
    if der.len() > CERTIFICATE_BYTES_MAX {
        return Err(CertificateFault::TooLarge { bytes: der.len() });
    }
    let Ok((rest, certificate)) = X509Certificate::from_der(der) else {
        return Err(CertificateFault::Malformed);
    };
    if !rest.is_empty() {
        return Err(CertificateFault::Malformed);
    }
    let key = certificate.public_key();
    let curve = key
        .algorithm
        .parameters
        .as_ref()
        .and_then(|any| any.as_oid().ok());
    if key.algorithm.algorithm != oid_registry::OID_KEY_TYPE_EC_PUBLIC_KEY
        || curve != Some(oid_registry::OID_EC_P256)
    {
        return Err(CertificateFault::KeyType);
    }
    Ok(certificate)
}

/// rustls' view of the same: judges the form, and lets rustls' crypto provider check both signatures.
#[derive(Debug)]
pub(crate) struct FormVerifier {
    provider: Arc<CryptoProvider>,
    p256: &'static dyn SignatureVerificationAlgorithm,
    /// Those that have the form, newest last: a guest shows the same one to all for hours.
    seen: Mutex<VecDeque<CertificateDer<'static>>>,
}

impl FormVerifier {
    const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;
    /// Of at most [`CERTIFICATE_BYTES_MAX`] each. Anybody can have one remembered; it says nothing but that its form
    /// was judged.
    const SEEN_MAX: usize = 16;

    /// `None` when the provider has no ECDSA P-256.
    pub(crate) fn new(provider: Arc<CryptoProvider>) -> Option<Self> {
        let algorithms = provider.signature_verification_algorithms.mapping;
        let (_, candidates) = algorithms.iter().find(|(scheme, _)| *scheme == Self::SCHEME)?;
        let p256 = *candidates.first()?;
        Some(Self {
            provider,
            p256,
            seen: Mutex::default(),
        })
    }

    fn lock_seen(&self) -> MutexGuard<'_, VecDeque<CertificateDer<'static>>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Judges a certificate that was not judged before.
    fn check_once(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), CertificateFault> {
        if intermediates.is_empty() && self.lock_seen().contains(leaf) {
            return Ok(());
        }
        self.check(leaf, intermediates)?;
        let mut seen = self.lock_seen();
        seen.push_back(leaf.clone().into_owned());
        if seen.len() > Self::SEEN_MAX {
            seen.pop_front();
        }
        Ok(())
    }

    fn check(&self, leaf: &[u8], intermediates: &[CertificateDer<'_>]) -> Result<(), CertificateFault> {
        if !intermediates.is_empty() {
            return Err(CertificateFault::Chain);
        }
        let certificate = parse_form(leaf)?;
        evidence_extension(&certificate)?;
        let signed = certificate.tbs_certificate.as_ref();
        let key = &certificate.public_key().subject_public_key.data;
        self.p256
            .verify_signature(key, signed, &certificate.signature_value.data)
            .map_err(|_| CertificateFault::NotSelfSigned)
    }
}

impl ServerCertVerifier for FormVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // The name plays no part: a guest is known by what it measures to, not by where it is.
        self.check_once(end_entity, intermediates)
            .map(|()| ServerCertVerified::assertion())
            .map_err(|fault| CertificateError::Other(OtherError(Arc::new(fault))).into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![Self::SCHEME]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: i64 = 1_800_000_000;
    const DAY_S: i64 = 24 * 3600;

    fn certificate(algorithm: &'static rcgen::SignatureAlgorithm, evidence: Option<usize>) -> Vec<u8> {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["cocoon".into()]).unwrap();
        params.custom_extensions = evidence
            .map(|bytes| rcgen::CustomExtension::from_oid_content(&EVIDENCE_EXTENSION_OID, vec![0; bytes]))
            .into_iter()
            .collect();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    fn fault(der: &[u8]) -> Option<CertificateFault> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        FormVerifier::new(provider).unwrap().check(der, &[]).err()
    }

    #[test]
    fn a_self_signed_p256_certificate_with_evidence_has_the_form() {
        assert!(fault(&certificate(&rcgen::PKCS_ECDSA_P256_SHA256, Some(100))).is_none());
    }

    #[test]
    fn other_keys_no_evidence_and_oversize_are_refused() {
        assert!(matches!(
            fault(&certificate(&rcgen::PKCS_ECDSA_P384_SHA384, Some(100))),
            Some(CertificateFault::KeyType)
        ));
        assert!(matches!(
            fault(&certificate(&rcgen::PKCS_ED25519, Some(100))),
            Some(CertificateFault::KeyType)
        ));
        assert!(matches!(
            fault(&certificate(&rcgen::PKCS_ECDSA_P256_SHA256, None)),
            Some(CertificateFault::NoEvidence)
        ));
        assert!(matches!(
            fault(&certificate(
                &rcgen::PKCS_ECDSA_P256_SHA256,
                Some(CERTIFICATE_BYTES_MAX)
            )),
            Some(CertificateFault::TooLarge { .. })
        ));
    }

    #[test]
    fn a_certificate_signed_by_another_key_is_refused() {
        let own = rcgen::KeyPair::generate().unwrap();
        let other = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["cocoon".into()]).unwrap();
        params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(
            &EVIDENCE_EXTENSION_OID,
            vec![0; 10],
        )];
        let issuer = rcgen::Issuer::from_params(&params, &other);
        let der = params.signed_by(&own, &issuer).unwrap().der().to_vec();
        assert!(matches!(fault(&der), Some(CertificateFault::NotSelfSigned)));
    }

    #[test]
    fn only_what_was_judged_is_not_judged_again() {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = FormVerifier::new(provider).unwrap();
        let good = CertificateDer::from(certificate(&rcgen::PKCS_ECDSA_P256_SHA256, Some(100)));
        for _ in 0..2 {
            assert!(verifier.check_once(&good, &[]).is_ok());
        }
        assert_eq!(verifier.lock_seen().len(), 1);
        assert!(matches!(
            verifier.check_once(&good, std::slice::from_ref(&good)),
            Err(CertificateFault::Chain)
        ));
        let mut forged = good.to_vec();
        *forged.last_mut().unwrap() ^= 1;
        for _ in 0..2 {
            assert!(
                verifier.check_once(&forged.clone().into(), &[]).is_err(),
                "remembered"
            );
        }
        for _ in 0..2 * FormVerifier::SEEN_MAX {
            let other = certificate(&rcgen::PKCS_ECDSA_P256_SHA256, Some(100));
            assert!(verifier.check_once(&other.into(), &[]).is_ok());
        }
        assert_eq!(verifier.lock_seen().len(), FormVerifier::SEEN_MAX);
    }

    #[test]
    fn trailing_bytes_and_cut_certificates_are_refused() {
        let mut der = certificate(&rcgen::PKCS_ECDSA_P256_SHA256, Some(100));
        for cut in (0..der.len()).step_by(7) {
            assert!(fault(&der[..cut]).is_some(), "cut at {cut}");
        }
        der.push(0);
        assert!(matches!(fault(&der), Some(CertificateFault::Malformed)));
    }

    #[test]
    fn yesterdays_tomorrows_and_eternal_certificates_are_refused() {
        let check = |from: i64, to: i64| check_validity(NOW_S + from, NOW_S + to, NOW_S);
        assert!(check(-60, DAY_S - 60).is_ok());
        assert!(check(CLOCK_SKEW_S, DAY_S).is_ok());
        assert!(matches!(check(-DAY_S, -1), Err(CertificateFault::Expired { .. })));
        assert!(matches!(
            check(CLOCK_SKEW_S + 1, DAY_S),
            Err(CertificateFault::Expired { .. })
        ));
        assert!(matches!(
            check(-60, VALIDITY_S_MAX),
            Err(CertificateFault::TooLongLived { .. })
        ));
    }
}
