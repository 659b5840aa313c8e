//! NVIDIA: SPDM reports, evidence as JSON, RIM files, OCSP responses.

use cocoon_verify::nvidia::{
    NvidiaInputs, NvidiaRoots, Report, Revocations, Rim, judge_nvidia, read_certificates, read_evidence,
};

const NOW_S: u64 = 1_750_332_747;

/// A request with its response: GET_MEASUREMENTS and MEASUREMENTS.
pub fn nvidia_spdm(bytes: &[u8]) -> bool {
    Report::parse(bytes).is_ok()
}

/// Evidence in any of its forms, and its judge without RIM files.
pub fn nvidia_evidence(bytes: &[u8]) -> bool {
    let accepted = read_evidence(bytes).is_ok();
    let judgement = judge_nvidia(
        bytes,
        &NvidiaInputs {
            certificates: &[],
            rims: &[],
            ocsp: &[],
            nonce: None,
            roots: &NvidiaRoots::pinned(),
            policy: None,
            guest: None,
            now_s: NOW_S,
        },
    );
    let _ = judgement.verdict();
    accepted
}

/// A RIM file: XML, its canonical form, its signature's certificates.
pub fn nvidia_rim(bytes: &[u8]) -> bool {
    Rim::parse(bytes).is_ok()
}

/// An OCSP response.
pub fn nvidia_ocsp(bytes: &[u8]) -> bool {
    Revocations::parse(bytes).is_ok()
}

/// A file of certificates, PEM or DER.
pub fn certificates(bytes: &[u8]) -> bool {
    read_certificates(bytes).is_ok()
}
