//! A node's TLS key and certificate: as an agent makes them, and as attackers do.

use std::{sync::Arc, time::Duration};

use cocoon_evidence::{EVIDENCE_EXTENSION_OID, Role, TlsBinding, encode_extension};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::{CertifiedKey, SingleCertAndKey},
};

use super::{DAY_S, Guest, now_s};

/// A TLS key and its certificate.
pub(crate) struct Identity {
    pub(super) certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// As an agent makes it: valid from `from_s` to `to_s`, relative to now.
    pub(crate) fn of(guest: &mut Guest, from_s: i64, to_s: i64) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let now = i64::try_from(now_s()).unwrap();
        let usage_key = guest.usage_key.verifying_key().to_bytes();
        let binding = TlsBinding {
            spki: &rcgen::PublicKeyData::subject_public_key_info(&key),
            usage_key: &usage_key,
            not_before_s: now + from_s,
            not_after_s: now + to_s,
            role: Role::Inference,
            log: guest.log.replay(),
        };
        let bundle = guest.bundle(binding.report_data());
        Self::new(&key, Some(encode_extension(&bundle)), now + from_s, now + to_s)
    }

    /// A key of one's own with somebody else's evidence.
    pub(crate) fn with_evidence_of(other: &Self) -> Self {
        let der = &other.certificate;
        let leaf = cocoon::Leaf::parse(der, i64::try_from(now_s()).unwrap()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        Self::new(
            &key,
            Some(encode_extension(&leaf.bundle)),
            leaf.not_before_s,
            leaf.not_after_s,
        )
    }

    /// Somebody else's certificate, without its private key.
    pub(crate) fn stolen(other: &Self) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        Self {
            certificate: other.certificate.clone(),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        }
    }

    /// A certificate whose extension is just long.
    pub(crate) fn oversized(extension_bytes: usize) -> Self {
        let now = i64::try_from(now_s()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        Self::new(&key, Some(vec![0; extension_bytes]), now - 60, now + DAY_S)
    }

    /// An ordinary certificate.
    pub(crate) fn without_evidence() -> Self {
        let now = i64::try_from(now_s()).unwrap();
        Self::new(&rcgen::KeyPair::generate().unwrap(), None, now - 60, now + DAY_S)
    }

    fn new(key: &rcgen::KeyPair, extension: Option<Vec<u8>>, from_s: i64, to_s: i64) -> Self {
        let date = |seconds: i64| {
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(seconds).unwrap())
        };
        let mut params = rcgen::CertificateParams::new(vec!["cocoon".to_owned()]).unwrap();
        params.not_before = date(from_s);
        params.not_after = date(to_s);
        let evidence = |bytes| rcgen::CustomExtension::from_oid_content(&EVIDENCE_EXTENSION_OID, bytes);
        params.custom_extensions = extension.map(evidence).into_iter().collect();
        let certificate = params.self_signed(key).unwrap();
        Self {
            certificate: certificate.der().clone(),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        }
    }

    pub(super) fn server_config(&self) -> ServerConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = provider
            .key_provider
            .load_private_key(self.key.clone_key())
            .unwrap();
        // Whether the key is the certificate's is for the client to find out.
        let pair = CertifiedKey::new(vec![self.certificate.clone()], key);
        ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)))
    }
}
