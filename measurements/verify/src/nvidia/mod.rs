//! Evidence of NVIDIA devices: Hopper and Blackwell GPUs and NVSwitches.
//!
//! A device answers a request with a nonce by its measurements and signs both ([`Report`]). Its key is certified by
//! its boot ROM, that by NVIDIA ([`NvidiaRoots`]). What the measurements should be is in files that NVIDIA signs
//! with another hierarchy ([`Rim`]); whether a certificate was revoked is in OCSP responses ([`Revocations`]).
//! [`judge_nvidia`] puts them together; everything but the pinned roots, the policy and the time comes from an
//! enemy. The order of the checks is that of NVIDIA's own verifier (NVIDIA/attestation-sdk), which is also the
//! source of the rules that no specification states.
//!
//! What a report does **not** say: that confidential computing is on and the developer tools are off. Both are
//! only in NVML's answer to software in the guest, so they are worth what the guest's own measurements are worth;
//! the rows about them are SKIP, unless the guest's report is handed in with a policy that takes it.

mod canonical;
mod certificate;
mod chain;
mod device;
mod evidence;
mod identity;
mod measurements;
mod ocsp;
mod opaque;
mod rim;
mod rows;
mod spdm;
mod terms;
mod window;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

pub use self::certificate::{CertificateError, read_certificates};
pub use self::chain::{NVIDIA_DEVICE_IDENTITY_CA_PEM, NVIDIA_RIM_ROOT_CA_PEM, NvidiaRoots};
pub use self::evidence::{DEVICES_MAX, DeviceEvidence, EVIDENCE_BYTES_MAX, EvidenceError, read_evidence};
pub use self::identity::Architecture;
pub use self::ocsp::{OCSP_BYTES_MAX, OcspError, Revocations};
pub use self::opaque::{GpuMode, OpaqueData, UnitStatus};
pub use self::rim::{RIM_BYTES_MAX, Rim, RimError};
pub use self::spdm::{MEASUREMENT_BYTES, NONCE_BYTES, REPORT_BYTES_MAX, Report, ReportError};
pub use self::terms::{Demand, GuestFact, GuestReport, Hold, NvidiaTerms, NvidiaTermsError};

use self::device::{RevocationCheck, judge_device, judge_terms_form};
use self::measurements::RimJudge;
use self::rows::Rows;
use crate::judgement::{FailureClass, Judgement};

/// What evidence is judged with.
#[derive(Debug, Clone, Copy)]
pub struct NvidiaInputs<'a> {
    /// The device's chain, leaf first, DER, for evidence that has none of its own.
    pub certificates: &'a [Vec<u8>],
    /// RIM files.
    pub rims: &'a [Vec<u8>],
    /// OCSP responses, DER.
    pub ocsp: &'a [Vec<u8>],
    /// What the request had to hold.
    pub nonce: Option<&'a [u8]>,
    /// Where the chains have to end.
    pub roots: &'a NvidiaRoots,
    /// What is expected of the devices; without it only what is true of all devices is judged.
    pub policy: Option<&'a NvidiaTerms>,
    /// What the measured guest read from NVML.
    pub guest: Option<GuestReport>,
    /// Seconds since 1970.
    pub now_s: u64,
}

/// Judges the evidence of one or more devices.
///
/// Rows have plain names if there is one device; of several, each has the prefix `device-N.`, N from 0. The claims
/// are `{"devices": [...]}`, one object for each.
pub fn judge_nvidia(evidence: &[u8], inputs: &NvidiaInputs<'_>) -> Judgement {
    match read_evidence(evidence) {
        Ok(devices) => judge_devices(&devices, inputs),
        Err(error) => {
            let mut rows = Rows::new(String::new());
            rows.unreadable(
                "evidence.format",
                "a report, its hexadecimal text, or NVIDIA's JSON",
                error,
            );
            rows.into_judgement(Map::new())
        }
    }
}

/// The same for evidence that is already read.
pub fn judge_devices(devices: &[DeviceEvidence], inputs: &NvidiaInputs<'_>) -> Judgement {
    let mut rows = Rows::new(String::new());
    if let Some(Err(error)) = inputs.policy.map(NvidiaTerms::check) {
        judge_terms_form(&error, &mut rows);
    }
    let (files, rims): (Vec<_>, Vec<_>) = read_rims(inputs.rims, &mut rows).into_iter().unzip();
    let responses = read_responses(inputs.ocsp, &mut rows);
    let mut claims = Vec::with_capacity(devices.len());
    let mut identities = Vec::with_capacity(devices.len());
    let mut versions = BTreeSet::new();
    for (index, device) in devices.iter().enumerate() {
        let prefix = if devices.len() == 1 {
            String::new()
        } else {
            format!("device-{index}.")
        };
        let judged = judge_device(device, &prefix, inputs, &rims, &responses);
        rows.append(judged.rows);
        claims.push(Value::Object(judged.claims));
        identities.push(judged.identity);
        versions.extend(judged.versions);
    }
    if !versions.is_empty() {
        let revocation = RevocationCheck::new(&responses, inputs.policy);
        let judge = RimJudge::new(inputs, &rims, revocation);
        for (file, rim) in files.iter().zip(&rims) {
            if !versions.contains(&rim.version) {
                let mut own = Rows::new(format!("rim-file-{file}."));
                judge.judge_unused(rim, &mut own);
                rows.append(own);
            }
        }
    }
    judge_count(&identities, inputs.policy, &mut rows);
    judge_guest(inputs, &mut rows);
    let claims = Map::from_iter([("devices".to_owned(), json!(claims))]);
    rows.into_judgement(claims)
}

/// With the number of each file, from 0.
fn read_rims(files: &[Vec<u8>], rows: &mut Rows) -> Vec<(usize, Rim)> {
    let mut rims = Vec::with_capacity(files.len());
    for (index, file) in files.iter().enumerate() {
        match Rim::parse(file) {
            Ok(rim) => rims.push((index, rim)),
            Err(error) => rows.unreadable(&format!("rim-file-{index}.format"), "a signed SWID tag", error),
        }
    }
    rims
}

fn read_responses(files: &[Vec<u8>], rows: &mut Rows) -> Vec<Revocations> {
    let mut responses = Vec::with_capacity(files.len());
    for (index, file) in files.iter().enumerate() {
        match Revocations::parse(file) {
            Ok(response) => responses.push(response),
            Err(error) => rows.unreadable(&format!("ocsp-{index}.format"), "an OCSP response", error),
        }
    }
    responses
}

/// As many devices as the policy says, and no device twice: one GPU must not stand in for two.
fn judge_count(identities: &[Option<Vec<u8>>], terms: Option<&NvidiaTerms>, rows: &mut Rows) {
    let presented = identities.len();
    let different = identities.iter().flatten().collect::<BTreeSet<_>>().len();
    let actual = match presented == different {
        true => presented.to_string(),
        false => format!("{presented}, of which {different} differ"),
    };
    match terms {
        Some(terms) => {
            let holds = presented == different && different == terms.count as usize;
            let detail = "each device has to present evidence once";
            rows.judge(
                FailureClass::Policy,
                "device.count",
                holds,
                terms.count.to_string(),
                actual,
                detail,
            );
        }
        None => rows.skip("device.count", "", actual, "no policy to compare with"),
    }
}

/// The two facts that only the guest can tell.
fn judge_guest(inputs: &NvidiaInputs<'_>, rows: &mut Rows) {
    let facts = [
        (
            "device.confidential-compute",
            "on",
            inputs
                .guest
                .map(|guest| if guest.confidential_compute { "on" } else { "off" }),
            inputs.policy.map(|terms| terms.confidential_compute),
        ),
        (
            "device.dev-tools",
            "off",
            inputs
                .guest
                .map(|guest| if guest.dev_tools { "on" } else { "off" }),
            inputs.policy.map(|terms| terms.dev_tools),
        ),
    ];
    for (id, expected, actual, rule) in facts {
        match (rule, actual) {
            (Some(_), Some(actual)) => {
                let detail = "the guest says so, from NVML";
                rows.judge(
                    FailureClass::Policy,
                    id,
                    actual == expected,
                    expected,
                    actual,
                    detail,
                );
            }
            (Some(GuestFact::ReportedByGuest), None) => {
                let detail = "the policy asks for what the guest read from NVML; a report does not hold it";
                rows.judge(FailureClass::Policy, id, false, expected, "not reported", detail);
            }
            (Some(GuestFact::EnforcedByGuest), None) => {
                let detail = "the policy leaves it to the measured guest";
                rows.skip(id, expected, "not in a report", detail);
            }
            (None, _) => {
                let detail = "a report does not hold it; only NVML in the measured guest tells it";
                rows.skip(id, expected, actual.unwrap_or("not in a report"), detail);
            }
        }
    }
}
