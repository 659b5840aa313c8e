//! A node's TLS key and certificate: as an agent makes them, and as attackers do.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cocoon_evidence::{
    CertifiedEvidence, Digest32, EVIDENCE_EXTENSION_OID, EvidenceBundle, Role, TlsBinding,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::{CertifiedKey, SingleCertAndKey},
};

use super::{DAY_S, Guest, now_s};

/// A TLS key and its certificate.
pub(crate) struct Identity {
    pub(crate) certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    evidence: Bytes,
}

/// What a connection under an identity serves.
#[derive(Clone)]
pub(super) struct Leaf {
    pub(super) digest: Digest32,
    /// The evidence of its certificate.
    pub(super) evidence: Bytes,
}

impl Identity {
    /// As an agent makes it: valid from `from_s` to `to_s`, relative to now.
    pub(crate) fn of(guest: &mut Guest, from_s: i64, to_s: i64) -> Self {
        Self::with(guest, from_s, to_s, |bundle| {
            let encoded = bundle.encode();
            (CertifiedEvidence::of(bundle), encoded)
        })
    }

    /// With its evidence by digest, as of a guest with many GPUs; `change` is what becomes of the evidence before its
    /// digest is taken.
    pub(crate) fn by_digest(guest: &mut Guest, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        Self::with(guest, -60, DAY_S - 60, |bundle| {
            let mut encoded = bundle.encode();
            change(&mut encoded);
            (CertifiedEvidence::ByDigest(Digest32::of(&encoded)), encoded)
        })
    }

    fn with(
        guest: &mut Guest,
        from_s: i64,
        to_s: i64,
        certified: impl FnOnce(EvidenceBundle) -> (CertifiedEvidence, Vec<u8>),
    ) -> Self {
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
        let (certified, evidence) = certified(guest.bundle(binding.report_data()));
        Self {
            evidence: evidence.into(),
            ..Self::new(&key, Some(certified.encode()), now + from_s, now + to_s)
        }
    }

    /// A key of one's own with somebody else's evidence.
    pub(crate) fn with_evidence_of(other: &Self) -> Self {
        let der = &other.certificate;
        let leaf = cocoon::Leaf::parse(der, i64::try_from(now_s()).unwrap()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        Self::new(
            &key,
            Some(leaf.evidence.encode()),
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
            evidence: other.evidence.clone(),
        }
    }

    /// A certificate whose extension is just long.
    pub(crate) fn oversized(extension_bytes: usize) -> Self {
        let now = i64::try_from(now_s()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        Self::new(&key, Some(vec![0; extension_bytes]), now - 60, now + DAY_S - 60)
    }

    /// An ordinary certificate.
    pub(crate) fn without_evidence() -> Self {
        let now = i64::try_from(now_s()).unwrap();
        Self::new(
            &rcgen::KeyPair::generate().unwrap(),
            None,
            now - 60,
            now + DAY_S - 60,
        )
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
            evidence: Bytes::new(),
        }
    }

    pub(super) fn leaf(&self) -> Leaf {
        Leaf {
            digest: Digest32::of(&self.certificate),
            evidence: self.evidence.clone(),
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
