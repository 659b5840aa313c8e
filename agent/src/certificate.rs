//! The TLS identity: an ECDSA P-256 key made in the guest, and a self-signed certificate that carries the
//! quote binding it. Web PKI plays no part; clients judge the evidence.
//!
//! A new identity means a new quote, not a new event. Connections keep the identity they began with.

use std::{sync::Arc, time::Duration};

use cocoon_evidence::{
    CERTIFICATE_BYTES_MAX, Digest32, EVIDENCE_EXTENSION_OID, Role, TlsBinding, encode_extension,
};
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256,
    PublicKeyData as _, date_time_ymd,
};
use rustls::{
    ServerConfig,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{self, cipher_suite, kx_group},
    },
    pki_types::PrivatePkcs8KeyDer,
    server::NoServerSessionStorage,
    version::TLS13,
};
use tokio::{sync::watch, time::sleep};
use tracing::warn;

use crate::{
    attest::{AttestError, Attestor},
    console::EXPORT,
    meter::now_s,
};

/// Validity of a certificate, in all under a day.
const VALID_S: i64 = 22 * 3600;
/// Clients' clocks may be behind the guest's, which comes from the host.
const BACKDATED_S: i64 = 300;
/// A new identity after about half of a certificate's life.
const ROTATE_AFTER: Duration = Duration::from_secs(11 * 3600);
const ROTATE_RETRY: Duration = Duration::from_secs(60);

/// A key, its certificate and the TLS settings that use them.
pub struct Identity {
    /// For new connections.
    pub config: Arc<ServerConfig>,
    /// SHA-256 of the certificate, DER.
    pub certificate: Digest32,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No quote.
    #[error("no evidence for a TLS key")]
    Evidence(#[from] AttestError),
    /// The certificate with its evidence is over what clients accept.
    #[error("the certificate has {bytes} bytes, at most {CERTIFICATE_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Key generation or encoding.
    #[error("the TLS key or its certificate cannot be made")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library refuses them.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
}

impl Identity {
    /// Makes a key, has it quoted, and wraps the evidence in a certificate.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub async fn generate(attestor: &Attestor, usage_key: &[u8; 32]) -> Result<Self, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let not_before_s = now_s() as i64 - BACKDATED_S;
        let not_after_s = not_before_s + VALID_S;
        let binding = TlsBinding {
            spki: &key.subject_public_key_info(),
            usage_key,
            not_before_s,
            not_after_s,
            role: Role::Inference,
            log: attestor.log().replay(),
        };
        let bundle = attestor.evidence(binding.report_data()).await?;
        let mut params = CertificateParams::new(vec!["cocoon.invalid".into()])?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Cocoon guest");
        let at = |seconds: i64| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds.max(0) as u64);
        (params.not_before, params.not_after) = (at(not_before_s), at(not_after_s));
        let extension = CustomExtension::from_oid_content(&EVIDENCE_EXTENSION_OID, encode_extension(&bundle));
        params.custom_extensions = vec![extension];
        let certificate = params.self_signed(&key)?.der().clone();
        if certificate.len() > CERTIFICATE_BYTES_MAX {
            return Err(IdentityError::TooLarge {
                bytes: certificate.len(),
            });
        }
        let digest = Digest32::of(&certificate);
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )?;
        // No resumption in any form: every session proves possession of the attested key anew.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            config: Arc::new(config),
            certificate: digest,
        })
    }
}

/// Replaces the identity from time to time, for ever.
pub async fn rotate(attestor: &Attestor, usage_key: &[u8; 32], current: &watch::Sender<Arc<Identity>>) {
    let mut pause = ROTATE_AFTER;
    loop {
        sleep(pause).await;
        pause = match Identity::generate(attestor, usage_key).await {
            Ok(identity) => {
                current.send_replace(Arc::new(identity));
                ROTATE_AFTER
            }
            Err(error) => {
                warn!(target: EXPORT, "the TLS key is not replaced yet: {error}");
                ROTATE_RETRY
            }
        };
    }
}

/// TLS 1.3 with a hybrid post-quantum key exchange first: recorded prompts outlive today's curves.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    }
}
