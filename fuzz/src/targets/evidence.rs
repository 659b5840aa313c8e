//! What a guest presents: the evidence bundle alone, in a certificate and in an answer; and
//! the endorsements.

use cocoon_evidence::{
    CertifiedEvidence, Digest32, Digest48, Endorsements, EvidenceBundle, FreshBinding, FreshEvidence,
    GpuEvidence, Role,
};

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

/// The answer to one request: whatever its path, the way to the root ends.
pub fn fresh_evidence(bytes: &[u8]) -> bool {
    let Ok(fresh) = FreshEvidence::decode(bytes) else {
        return false;
    };
    assert_eq!(fresh.encode(), bytes);
    let binding = FreshBinding {
        nonce: &[1; 32],
        exporter: &[2; 32],
        certificate: Digest32::ZERO,
        role: Role::Inference,
        log: Digest48::ZERO,
    };
    let _ = fresh.report_data(&binding.leaf());
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
    let Ok(evidence) = CertifiedEvidence::decode(bytes) else {
        return false;
    };
    assert_eq!(evidence.encode(), bytes);
    true
}
