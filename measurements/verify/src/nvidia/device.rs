//! Judges what one device presented.

use serde_json::{Map, Value, json};

use super::chain::{Chain, DEVICE_CHAIN_CERTIFICATES};
use super::evidence::DeviceEvidence;
use super::identity::{self, Architecture};
use super::measurements::{RimJudge, RimKind, rim_name};
use super::ocsp::{Revocation, Revocations, revocation, revocation_changes_s};
use super::opaque::{GpuMode, UnitStatus};
use super::rim::Rim;
use super::rows::Rows;
use super::spdm::Report;
use super::terms::{Demand, Hold, NvidiaTerms};
use super::{NvidiaInputs, NvidiaTermsError};
use crate::judgement::FailureClass::{Policy, Signature, Tcb};

/// In a device's chain, after the leaf that it issues to the firmware it runs.
const BOOT_ROM: usize = 1;
/// NVIDIA's OCSP service does not know the leaf.
const FIRST_REVOCABLE: usize = BOOT_ROM;

/// A device whose report and chain have the right form.
pub(super) struct Device<'a> {
    pub(super) prefix: &'a str,
    pub(super) report: Report<'a>,
    pub(super) chip: String,
    pub(super) architecture: Architecture,
}

impl Device<'_> {
    /// The version that a RIM file of this kind has to have.
    pub(super) fn version(&self, kind: RimKind) -> Option<String> {
        match kind {
            RimKind::Driver => self.report.opaque.driver_version(),
            RimKind::Firmware => self.report.opaque.firmware_version(),
        }
    }

    pub(super) fn rim_name(&self, kind: RimKind) -> Option<String> {
        rim_name(kind, self)
    }

    fn claims(&self, serial: &str, unique_id: &str) -> Map<String, Value> {
        let opaque = &self.report.opaque;
        let status = |status: UnitStatus| status == UnitStatus::Enabled;
        let fields = opaque
            .fields()
            .map(|(number, value)| (number.to_string(), json!(hex::encode(value))));
        let measurements = self.report.measurements.iter();
        let facts = json!({
            "architecture": self.architecture.name(),
            "chip": self.chip,
            "device_serial": serial,
            "leaf_serial": unique_id,
            "nonce": hex::encode(self.report.nonce),
            "driver_version": opaque.driver_version(),
            "firmware_version": opaque.firmware_version(),
            "driver_rim": self.rim_name(RimKind::Driver),
            "firmware_rim": self.rim_name(RimKind::Firmware),
            "mode": if self.architecture.is_gpu() { opaque.mode().ok().map(GpuMode::name) } else { None },
            "protected_pcie": opaque.protected_pcie().map(status),
            "nvdec0": opaque.nvdec0().map(status),
            "fwid": opaque.fwid().map(hex::encode),
            "switch_pdis": if self.architecture.is_gpu() { opaque.switch_pdis() } else { opaque.device_pdis() },
            "gpu_pdis": opaque.gpu_pdis(),
            "measurements": measurements.map(|(_, value)| hex::encode(value)).collect::<Vec<_>>(),
            "opaque": fields.collect::<Map<_, _>>(),
        });
        match facts {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

/// What is left of a device after it was judged.
pub(super) struct Judged {
    pub(super) rows: Rows,
    pub(super) claims: Map<String, Value>,
    /// What tells it from others: the key of its boot ROM, which signs another leaf for each firmware; `None` if there
    /// is none.
    pub(super) identity: Option<Vec<u8>>,
    /// Of its driver and its firmware: which RIM files are for it.
    pub(super) versions: Vec<String>,
}

/// Judges one device; `rims` and `responses` are already decoded.
pub(super) fn judge_device(
    evidence: &DeviceEvidence,
    prefix: &str,
    inputs: &NvidiaInputs<'_>,
    rims: &[Rim],
    responses: &[Revocations],
) -> Judged {
    let mut rows = Rows::new(prefix.to_owned());
    let report = Report::parse(&evidence.report);
    if let Err(error) = &report {
        rows.unreadable("report.format", "SPDM 1.1 request and response", error);
    }
    let ders = evidence.certificates.as_deref().unwrap_or(inputs.certificates);
    let root = inputs.roots.device();
    let chain = match ders {
        [] => {
            rows.unreadable(
                "chain.format",
                "the device's certificate chain",
                "no certificate was handed in",
            );
            None
        }
        _ => Chain::judge(ders, root, &DEVICE_CHAIN_CERTIFICATES, inputs.now_s, &mut rows),
    };
    let identity = chain.as_ref().and_then(|chain| chain.certificates.get(BOOT_ROM));
    let identity = identity.map(|boot_rom| boot_rom.key_bits().to_vec());
    let (Ok(report), Some(chain)) = (report, chain) else {
        return Judged {
            rows,
            claims: Map::new(),
            identity,
            versions: Vec::new(),
        };
    };
    let opaque = &report.opaque;
    let versions = [opaque.driver_version(), opaque.firmware_version()];
    let versions = versions.into_iter().flatten().collect();
    let claims = judge_parts(
        evidence, report, &chain, prefix, inputs, rims, responses, &mut rows,
    );
    Judged {
        rows,
        claims,
        identity,
        versions,
    }
}

#[expect(clippy::too_many_arguments, reason = "the parts of one device, used once")]
fn judge_parts(
    evidence: &DeviceEvidence,
    report: Report<'_>,
    chain: &Chain<'_>,
    prefix: &str,
    inputs: &NvidiaInputs<'_>,
    rims: &[Rim],
    responses: &[Revocations],
    rows: &mut Rows,
) -> Map<String, Value> {
    judge_signature(&report, chain, rows);
    judge_nonce(evidence, &report, inputs.nonce, rows);
    let terms = inputs.policy;
    let revocation = RevocationCheck::new(responses, terms);
    // What the policy says of holds is about the signers of new RIM files: a GPU on hold is one that was reported.
    RevocationCheck {
        hold_accepted: false,
        ..revocation
    }
    .judge(chain, FIRST_REVOCABLE, inputs.now_s, rows);
    let chip = identity::chip(chain);
    let architecture = chip.as_deref().and_then(Architecture::from_chip);
    judge_architecture(evidence, chip.as_deref(), architecture, rows);
    let (Some(chip), Some(architecture)) = (chip, architecture) else {
        return Map::new();
    };
    let device = Device {
        prefix,
        report,
        chip,
        architecture,
    };
    judge_fwid(&device, chain, terms.is_some(), rows);
    let all_measured = RimJudge::new(inputs, rims, revocation).judge(&device, rows);
    rows_of_measurements(all_measured && !rows.failed(), rows);
    judge_mode(&device, terms, rows);
    judge_terms(&device, terms, rows);
    let serial_of = |index: usize| {
        chain
            .certificates
            .get(index)
            .map(|one| one.serial())
            .unwrap_or_default()
    };
    device.claims(&serial_of(1), &serial_of(0))
}

/// The device's key signed request and response; SHA-384, r and s.
fn judge_signature(report: &Report<'_>, chain: &Chain<'_>, rows: &mut Rows) {
    let leaf = chain.certificates.first();
    let verified = leaf.is_some_and(|leaf| leaf.verify_fixed(report.signed, &report.signature));
    rows.judge(
        Signature,
        "report.signature",
        verified,
        "signed by the leaf's key",
        if verified { "it is" } else { "it is not" },
        "the report was changed, or is from another device than the chain",
    );
}

fn judge_nonce(evidence: &DeviceEvidence, report: &Report<'_>, expected: Option<&[u8]>, rows: &mut Rows) {
    let actual = hex::encode(report.nonce);
    match expected {
        Some(expected) => {
            let detail = "the report is not an answer to this request; it may be an old one, replayed";
            rows.judge(
                Policy,
                "report.nonce",
                expected == report.nonce,
                hex::encode(expected),
                actual.as_str(),
                detail,
            );
        }
        None => rows.skip(
            "report.nonce",
            "",
            actual.as_str(),
            "no nonce to compare with; the report may be an old one",
        ),
    }
    if let Some(stated) = evidence.nonce {
        let detail = "the evidence states another nonce than the signed one";
        rows.judge(
            Policy,
            "evidence.nonce",
            stated == report.nonce,
            hex::encode(stated),
            actual,
            detail,
        );
    }
}

fn judge_architecture(
    evidence: &DeviceEvidence,
    chip: Option<&str>,
    architecture: Option<Architecture>,
    rows: &mut Rows,
) {
    let stated = evidence.architecture.as_deref();
    let fits = stated.is_none_or(|stated| Architecture::from_evidence(stated) == architecture);
    rows.judge(
        Signature,
        "device.architecture",
        architecture.is_some() && fits,
        stated.unwrap_or("a chip with known rules"),
        match (chip, architecture) {
            (Some(chip), Some(architecture)) => format!("{} ({chip})", architecture.name()),
            (Some(chip), None) => chip.to_owned(),
            (None, _) => "unreadable".to_owned(),
        },
        "the certificates of boot ROM and firmware have to name the same chip, and the evidence its architecture",
    );
}

/// The firmware that signed the report is the one that the boot ROM certified. NVSwitches do not repeat its digest in
/// the report, and need not: the certified key signed the report. With a policy there is then no row, which would
/// stay open.
fn judge_fwid(device: &Device<'_>, chain: &Chain<'_>, has_terms: bool, rows: &mut Rows) {
    let certified = chain
        .certificates
        .first()
        .and_then(|leaf| identity::fwid(leaf, device.architecture));
    let Some(certified) = certified else {
        rows.unreadable(
            "device.fwid",
            "a FWID in the leaf certificate",
            "the leaf has no readable DICE extension",
        );
        return;
    };
    let certified = hex::encode(certified);
    match device.report.opaque.fwid() {
        Some(reported) => {
            let actual = hex::encode(reported);
            let detail = "the report is from another firmware than the boot ROM measured";
            rows.judge(
                Signature,
                "device.fwid",
                actual == certified,
                certified,
                actual,
                detail,
            );
        }
        None if has_terms => {}
        None => rows.skip(
            "device.fwid",
            &certified,
            "",
            "this firmware does not repeat it in the report",
        ),
    }
}

/// Neither has a field of its own. NVIDIA's verifier derives both from the measurements: a debug-fused chip, or
/// one that ran unsigned firmware, measures to other values than the released ones.
fn rows_of_measurements(all_hold: bool, rows: &mut Rows) {
    let detail = "follows from all measurements being NVIDIA's";
    let pending = "follows from the measurements once driver and firmware RIM are handed in and match";
    for (id, expected) in [("device.secure-boot", "on"), ("device.debug", "off")] {
        match all_hold {
            true => rows.pass(id, expected, expected, detail),
            false => rows.skip(id, expected, "not proved", pending),
        }
    }
}

fn judge_mode(device: &Device<'_>, terms: Option<&NvidiaTerms>, rows: &mut Rows) {
    if !device.architecture.is_gpu() {
        return;
    }
    let mode = match device.report.opaque.mode() {
        Ok(mode) => mode,
        Err(flag) => {
            let detail = "the flag has a value that NVIDIA's SDK does not name";
            rows.judge(
                Policy,
                "device.mode",
                false,
                "0, 1 or 2",
                flag.to_string(),
                detail,
            );
            return;
        }
    };
    match terms {
        Some(terms) => {
            let expected = terms
                .modes
                .iter()
                .map(|mode| mode.name())
                .collect::<Vec<_>>()
                .join(", ");
            let detail = "the policy does not accept GPUs that are joined like this";
            rows.judge(
                Policy,
                "device.mode",
                terms.modes.contains(&mode),
                expected,
                mode.name(),
                detail,
            );
        }
        None => rows.skip("device.mode", "", mode.name(), "no policy to compare with"),
    }
}

fn judge_terms(device: &Device<'_>, terms: Option<&NvidiaTerms>, rows: &mut Rows) {
    let mut listed = |id: &str, actual: String, accepted: Option<Vec<String>>| match accepted {
        Some(accepted) => {
            let holds = accepted.contains(&actual);
            rows.judge(
                Policy,
                id,
                holds,
                accepted.join(", "),
                actual,
                "the policy does not accept it",
            );
        }
        None => rows.skip(id, "", actual, "no policy to compare with"),
    };
    let architectures = |terms: &NvidiaTerms| {
        terms
            .architectures
            .iter()
            .map(|one| one.name().to_owned())
            .collect()
    };
    listed(
        "policy.architecture",
        device.architecture.name().to_owned(),
        terms.map(architectures),
    );
    if device.architecture.is_gpu() {
        let version = device
            .version(RimKind::Driver)
            .unwrap_or_else(|| "missing".to_owned());
        listed(
            "policy.driver-version",
            version,
            terms.map(|terms| terms.driver_versions.clone()),
        );
    }
    let version = device
        .version(RimKind::Firmware)
        .unwrap_or_else(|| "missing".to_owned());
    listed(
        "policy.firmware-version",
        version,
        terms.map(|terms| terms.firmware_versions.clone()),
    );
}

/// How the revocation of a chain is judged.
#[derive(Clone, Copy)]
pub(super) struct RevocationCheck<'a> {
    pub(super) responses: &'a [Revocations],
    pub(super) required: bool,
    pub(super) hold_accepted: bool,
}

impl<'a> RevocationCheck<'a> {
    pub(super) fn new(responses: &'a [Revocations], terms: Option<&NvidiaTerms>) -> Self {
        Self {
            responses,
            required: terms.is_some_and(|terms| terms.revocation == Demand::Required),
            hold_accepted: terms.is_some_and(|terms| terms.certificate_hold == Hold::Accepted),
        }
    }

    /// One row for each certificate below the root, or one for all if there is no response at all.
    pub(super) fn judge(&self, chain: &Chain<'_>, first: usize, now_s: u64, rows: &mut Rows) {
        if self.responses.is_empty() && !self.required {
            rows.skip(
                "chain.revocation",
                "none revoked",
                "no OCSP response given",
                "revocation was not checked",
            );
            return;
        }
        for (index, pair) in chain.certificates.windows(2).enumerate().skip(first) {
            let [subject, issuer] = pair else { continue };
            let found = revocation(self.responses, subject, issuer, now_s);
            rows.ends(revocation_changes_s(self.responses, subject, issuer, now_s));
            self.row(
                &format!("chain.revocation-{index}"),
                &subject.subject(),
                found,
                rows,
            );
        }
    }

    fn row(&self, id: &str, subject: &str, found: Revocation, rows: &mut Rows) {
        let (expected, class) = ("good", Tcb);
        let mut fail = |class, actual: String, detail: &str| {
            rows.judge(class, id, false, expected, format!("{subject}: {actual}"), detail);
        };
        match found {
            Revocation::Good => rows.pass(id, expected, format!("{subject}: good"), ""),
            Revocation::OnHold if self.hold_accepted => {
                rows.pass(
                    id,
                    "good or on hold",
                    format!("{subject}: certificateHold"),
                    "the policy accepts a hold",
                );
            }
            Revocation::OnHold => fail(class, "certificateHold".to_owned(), "its issuer suspended it"),
            Revocation::Revoked(reason) => fail(class, reason.to_owned(), "its issuer revoked it"),
            Revocation::Unknown => fail(class, "unknown".to_owned(), "its issuer does not know it"),
            Revocation::Stale(window) => fail(class, window, "the response is not fresh at this time"),
            Revocation::Unsigned => {
                fail(
                    Signature,
                    "bad signature".to_owned(),
                    "the response is not signed by the issuer or its responder",
                );
            }
            Revocation::Unnamed if self.required => {
                fail(class, "no response".to_owned(), "the policy asks for one");
            }
            Revocation::Unnamed => {
                let actual = format!("{subject}: no response");
                rows.skip(
                    id,
                    expected,
                    actual,
                    "none of the OCSP responses is about this certificate",
                );
            }
        }
    }
}

/// Rows about the terms themselves.
pub(super) fn judge_terms_form(error: &NvidiaTermsError, rows: &mut Rows) {
    rows.judge(
        Policy,
        "policy.form",
        false,
        "a policy that can be met",
        "it cannot",
        error.to_string(),
    );
}
