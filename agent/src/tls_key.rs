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

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::FileExt as _,
    };

    use rcgen::SigningKey as _;
    use rustls::SignatureScheme;
    use zeroize::{Zeroize as _, Zeroizing};

    use super::*;

    const SECRET_BYTES: usize = 32;
    const CHUNK_BYTES: usize = 1 << 16;

    /// The secret number, kept so that looking for it does not find what is looked for.
    struct Masked {
        mask: [u8; SECRET_BYTES],
        masked: [u8; SECRET_BYTES],
    }

    impl Masked {
        /// Of the key's encoding, in which the number follows the head of an `ECPrivateKey` (RFC 5915, section 3).
        fn of(key: &TlsKey) -> Self {
            const HEAD: [u8; 5] = [2, 1, 1, 4, SECRET_BYTES as u8];
            let encoded = key.0.to_pkcs8v1().unwrap();
            let encoded = encoded.as_ref();
            let head = encoded.windows(HEAD.len()).position(|bytes| bytes == HEAD);
            let secret = &encoded[head.unwrap() + HEAD.len()..][..SECRET_BYTES];
            let mask: [u8; SECRET_BYTES] = crate::meter::random();
            let masked = std::array::from_fn(|at| secret[at] ^ mask[at]);
            Self { mask, masked }
        }

        /// As it is encoded, or as a processor's words, the lowest byte first.
        fn is(&self, bytes: &[u8]) -> bool {
            let matches = |at: usize, byte: u8| byte ^ self.mask[at] == self.masked[at];
            let mut ends = bytes.iter().enumerate();
            ends.all(|(at, byte)| matches(at, *byte))
                || (bytes.iter().rev().enumerate()).all(|(at, byte)| matches(at, *byte))
        }

        /// How often it stands in what this process can write: heap, stacks, variables.
        fn found(&self) -> usize {
            let memory = File::open("/proc/self/mem").unwrap();
            let maps = fs::read_to_string("/proc/self/maps").unwrap();
            let writable = maps.lines().filter(|line| line.contains(" rw"));
            let mut chunk = Zeroizing::new(vec![0; CHUNK_BYTES]);
            let mut found = 0;
            for line in writable {
                let (from, rest) = line.split_once('-').unwrap();
                let to = rest.split(' ').next().unwrap();
                let [from, to] = [from, to].map(|hex| u64::from_str_radix(hex, 16).unwrap());
                for at in (from..to).step_by(CHUNK_BYTES - SECRET_BYTES + 1) {
                    // Or the last chunk would be found where it was read to.
                    chunk.zeroize();
                    chunk.resize(CHUNK_BYTES.min((to - at) as usize), 0);
                    // The kernel's own pages cannot be read.
                    let read = memory.read_at(&mut chunk, at).unwrap_or_default();
                    let windows = chunk[..read].windows(SECRET_BYTES);
                    found += windows.filter(|bytes| self.is(bytes)).count();
                }
            }
            found
        }
    }

    #[test]
    fn a_tls_key_that_was_dropped_is_nowhere_in_memory() {
        let key = TlsKey::generate().unwrap();
        key.sign(b"a certificate").unwrap();
        let secret = Masked::of(&key);
        assert!(secret.found() > 0, "the search is blind");
        let tls = key.into_tls().unwrap();
        let signer = tls
            .choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256])
            .unwrap();
        signer.sign(b"a handshake").unwrap();
        assert!(secret.found() > 0, "the search is blind");
        drop((signer, tls));
        assert_eq!(secret.found(), 0);
    }
}
