//! The private key of a TLS identity: made here, used for its certificate and for handshakes, never written.
//!
//! The one copy outside of the cryptographic library is the encoding that moves it into rustls; it is wiped
//! when that is done, and the library wipes what it holds when the identity is dropped.

use std::sync::Arc;

use aws_lc_rs::{
    error::Unspecified,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm};
use rustls::{
    crypto::aws_lc_rs::sign::any_ecdsa_type,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::SigningKey,
};

/// An ECDSA P-256 key.
pub(crate) struct TlsKey(EcdsaKeyPair);

impl TlsKey {
    /// Makes one.
    pub(crate) fn generate() -> Result<Self, Unspecified> {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map(Self)
    }

    /// The key as TLS uses it.
    pub(crate) fn into_tls(self) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        let failed = |_| rustls::Error::General("the key cannot be encoded".into());
        // Wipes itself; rustls is lent it.
        let encoded = self.0.to_pkcs8v1().map_err(failed)?;
        any_ecdsa_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(encoded.as_ref())))
    }
}

impl PublicKeyData for TlsKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for TlsKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self.0.sign(&SystemRandom::new(), message);
        signature
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| rcgen::Error::RemoteKeyError)
    }
}
