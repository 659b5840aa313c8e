//! The TLS identity: an ECDSA P-256 key made in the guest, and a self-signed certificate that carries the
//! quote binding it, or names it by digest. Web PKI plays no part; clients judge the evidence.
//!
//! A new identity means a new quote, not a new event. Connections keep the identity they began with.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cocoon_evidence::{
    CERTIFICATE_BYTES_MAX, CertifiedEvidence, Digest32, EVIDENCE_EXTENSION_OID, Role, TlsBinding,
};
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, DnType, PublicKeyData as _, date_time_ymd,
};
use rustls::{
    ServerConfig,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{self, cipher_suite, kx_group},
    },
    pki_types::CertificateDer,
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use tokio::{sync::watch, time::sleep};
use tracing::warn;

use crate::{
    attest::{AttestError, Attestor},
    console::EXPORT,
    meter::now_s,
    tls_key::TlsKey,
};

/// Validity of a certificate, in all under a day.
const VALID_S: i64 = 22 * 3600;
/// Clients' clocks may be behind the guest's, which comes from the host.
const BACKDATED_S: i64 = 300;
/// A new identity after half of a certificate's life. Clients hold a key for good until then, so a platform that
/// gives no quote for some hours does no harm.
pub const ROTATE_AFTER: Duration = Duration::from_secs(11 * 3600);
const ROTATE_RETRY: Duration = Duration::from_secs(60);
const _: () = assert!(VALID_S <= 24 * 3600, "a certificate is valid for a day at most");
const _: () = assert!(
    3 * (BACKDATED_S + ROTATE_AFTER.as_secs() as i64) < 2 * VALID_S,
    "a certificate is replaced before two thirds of its life"
);

/// A key, its certificate and the TLS settings that use them.
pub struct Identity {
    /// For new connections.
    pub config: Arc<ServerConfig>,
    /// SHA-256 of the certificate, DER.
    pub certificate: Digest32,
    /// The bundle that the certificate carries or names.
    pub evidence: Bytes,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No quote. The cause stands in the text, which is all that the host is told.
    #[error("no evidence for a TLS key: {0}")]
    Evidence(#[from] AttestError),
    /// The certificate with its evidence is over what clients accept.
    #[error("the certificate has {bytes} bytes, at most {CERTIFICATE_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// The random numbers, or the library.
    #[error("no TLS key can be made")]
    Key(#[from] ::aws_lc_rs::error::Unspecified),
    /// Encoding or signing it.
    #[error("the certificate cannot be made")]
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
        let key = TlsKey::generate()?;
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
        let evidence = bundle.encode().into();
        let extension = CertifiedEvidence::of(bundle).encode();
        let certificate = certificate(&key, (not_before_s, not_after_s), extension)?;
        Ok(Self {
            certificate: Digest32::of(&certificate),
            evidence,
            config: Arc::new(config(key, certificate)?),
        })
    }
}

fn certificate(
    key: &TlsKey,
    (not_before_s, not_after_s): (i64, i64),
    extension: Vec<u8>,
) -> Result<CertificateDer<'static>, IdentityError> {
    let at = |seconds: i64| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds.max(0) as u64);
    let mut params = CertificateParams::new(vec!["cocoon.invalid".into()])?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Cocoon guest");
    (params.not_before, params.not_after) = (at(not_before_s), at(not_after_s));
    params.custom_extensions = vec![CustomExtension::from_oid_content(
        &EVIDENCE_EXTENSION_OID,
        extension,
    )];
    let certificate = params.self_signed(key)?.der().clone();
    match certificate.len() {
        bytes if bytes > CERTIFICATE_BYTES_MAX => Err(IdentityError::TooLarge { bytes }),
        _ => Ok(certificate),
    }
}

/// TLS 1.3 without resumption in any form: every session proves possession of the attested key anew.
fn config(key: TlsKey, certificate: CertificateDer<'static>) -> Result<ServerConfig, rustls::Error> {
    let certified = CertifiedKey::new(vec![certificate], key.into_tls()?);
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Replaces the identity each time that `after` has passed, for ever. Connections go on under the one that they
/// began with.
pub async fn rotate(
    attestor: &Attestor,
    usage_key: &[u8; 32],
    current: &watch::Sender<Arc<Identity>>,
    after: Duration,
) {
    let mut pause = after;
    loop {
        sleep(pause).await;
        pause = match Identity::generate(attestor, usage_key).await {
            Ok(identity) => {
                current.send_replace(Arc::new(identity));
                after
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::PlatformError;

    /// A provider has to learn from it what to start.
    #[test]
    fn why_there_is_no_evidence_is_told() {
        let failed = PlatformError {
            attempt: "getting a TDX quote",
            cause: "the host's quoting service: connection refused".into(),
        };
        let told = IdentityError::from(AttestError::from(failed)).to_string();
        let expected = "no evidence for a TLS key: getting a TDX quote failed: the host's quoting service: \
                        connection refused";
        assert_eq!(told, expected);
    }

    #[test]
    fn a_certificate_over_what_clients_accept_is_not_made() {
        let key = TlsKey::generate().unwrap();
        let refused = certificate(&key, (0, VALID_S), vec![0; CERTIFICATE_BYTES_MAX]);
        assert!(matches!(refused, Err(IdentityError::TooLarge { .. })));
    }
}
