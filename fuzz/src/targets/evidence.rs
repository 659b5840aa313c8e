//! What a guest presents: the evidence bundle, and the certificate extension around it.

use cocoon_evidence::{EvidenceBundle, decode_extension, encode_extension};

/// CBOR: what is accepted is in its one canonical encoding, and its registers replay.
pub fn evidence_bundle(bytes: &[u8]) -> bool {
    let Ok(bundle) = EvidenceBundle::decode(bytes) else {
        return false;
    };
    assert_eq!(bundle.encode(), bytes);
    let _ = bundle.events.replay();
    let _ = EvidenceBundle::gpu_digest(&bundle.gpu);
    true
}

/// The conceptual message wrapper in the guest's certificate.
pub fn certificate_extension(bytes: &[u8]) -> bool {
    let Ok(bundle) = decode_extension(bytes) else {
        return false;
    };
    assert_eq!(encode_extension(&bundle), bytes);
    true
}
