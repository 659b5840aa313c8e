//! The vendor of a simulated platform, who signs whatever an attack needs: its keys lie in the platform's folder.

use std::path::Path;

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm},
};
use serde_json::{Value, json};
use x509_parser::pem::Pem;

pub(crate) fn key(state: &Path, name: &str, algorithm: &'static EcdsaSigningAlgorithm) -> EcdsaKeyPair {
    let pem = std::fs::read(state.join(name)).unwrap();
    let pem = Pem::iter_from_buffer(&pem).next().unwrap().unwrap();
    EcdsaKeyPair::from_pkcs8(algorithm, &pem.contents).unwrap()
}

/// Collateral whose `document` ("tcb_info" or "qe_identity") is changed, and signed again by the key in this file.
pub(crate) fn signed_again(
    (state, key_file): (&Path, &str),
    collateral: &[u8],
    document: &str,
    change: impl FnOnce(&mut Value),
) -> Vec<u8> {
    let mut collateral: Value = serde_json::from_slice(collateral).unwrap();
    let mut value: Value = serde_json::from_str(collateral[document].as_str().unwrap()).unwrap();
    change(&mut value);
    let text = value.to_string();
    let key = key(state, key_file, &ECDSA_P256_SHA256_FIXED_SIGNING);
    let signature = key.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
    collateral[document] = json!(text);
    collateral[format!("{document}_signature")] = json!(hex::encode(signature));
    serde_json::to_vec(&collateral).unwrap()
}
