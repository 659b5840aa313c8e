//! Evidence of NVIDIA devices, with or without a policy.

use super::{RootChoice, policy_checks, root_check};
use crate::{
    judgement::{FailureClass, JudgedCheck, Judgement, Status},
    nvidia::{NvidiaInputs, NvidiaRoots, judge_nvidia, read_certificates},
    policy::Policy,
};

/// What raw GPU evidence is judged with.
#[derive(Debug, Clone, Copy)]
pub struct RawNvidia<'a> {
    /// A report, or NVIDIA's JSON with one for each device.
    pub evidence: &'a [u8],
    /// Files with the device's chain, PEM or DER, leaf first.
    pub certificates: &'a [Vec<u8>],
    /// RIM files.
    pub rims: &'a [Vec<u8>],
    /// OCSP responses, DER.
    pub ocsp: &'a [Vec<u8>],
    /// Where the chains must end.
    pub roots: &'a NvidiaRoots,
    /// What the request had to hold.
    pub nonce: Option<&'a [u8]>,
    /// What is accepted; without it only what is true of all devices is judged.
    pub policy: Option<&'a Policy>,
    /// Seconds since 1970.
    pub now_s: u64,
}

/// Judges raw GPU evidence.
pub fn judge_raw_nvidia(input: &RawNvidia<'_>) -> Judgement {
    let (certificates, mut checks) = certificates(input.certificates);
    let terms = input.policy.and_then(|policy| policy.terms().nvidia.as_ref());
    if let Some(policy) = input.policy {
        checks.extend(policy_checks(policy, None, input.now_s));
        checks.push(JudgedCheck {
            id: "policy.kind".to_owned(),
            status: super::passes(terms.is_some()),
            expected: "a policy with the table [nvidia]".to_owned(),
            actual: if terms.is_some() {
                "there is one"
            } else {
                "there is none"
            }
            .to_owned(),
            detail: String::new(),
            class: FailureClass::Policy,
        });
    }
    let pinned = NvidiaRoots::pinned();
    let choice = RootChoice {
        expected: pinned.describe(),
        actual: input.roots.describe(),
        same: *input.roots == pinned,
    };
    checks.extend(root_check(choice, input.policy));
    let judgement = judge_nvidia(
        input.evidence,
        &NvidiaInputs {
            certificates: &certificates,
            rims: input.rims,
            ocsp: input.ocsp,
            nonce: input.nonce,
            roots: input.roots,
            policy: terms,
            guest: None,
            now_s: input.now_s,
        },
    );
    judgement.with(checks, ("simulated", false.into()))
}

fn certificates(files: &[Vec<u8>]) -> (Vec<Vec<u8>>, Vec<JudgedCheck>) {
    let mut certificates = Vec::new();
    let mut checks = Vec::new();
    for (index, file) in files.iter().enumerate() {
        match read_certificates(file) {
            Ok(read) => certificates.extend(read),
            Err(error) => checks.push(JudgedCheck {
                id: format!("certificates-file-{index}.format"),
                status: Status::Fail,
                expected: "certificates in PEM or DER".to_owned(),
                actual: error.to_string(),
                detail: String::new(),
                class: FailureClass::Signature,
            }),
        }
    }
    (certificates, checks)
}
