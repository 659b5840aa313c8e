//! What a guest presents: the evidence bundle, the certificate extension around it, and the endorsements.

use cocoon_evidence::{Endorsements, EvidenceBundle, GpuEvidence, decode_extension, encode_extension};

/// CBOR: what is accepted is in its one canonical encoding, and its registers replay.
pub fn evidence_bundle(bytes: &[u8]) -> bool {
    let Ok(bundle) = EvidenceBundle::decode(bytes) else {
        return false;
    };
    assert_eq!(bundle.encode(), bytes);
    let _ = bundle.events.replay();
    let _ = GpuEvidence::event_payload(&bundle.gpu);
    true
}

/// What the host carries for the vendors.
pub fn endorsements(bytes: &[u8]) -> bool {
    let Ok(endorsements) = Endorsements::decode(bytes) else {
        return false;
    };
    assert_eq!(endorsements.encode(), bytes);
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
