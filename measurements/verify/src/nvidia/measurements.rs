//! A report's measurements against the RIM files of its driver and its firmware.

use std::collections::BTreeSet;

use super::NvidiaInputs;
use super::chain::{Chain, NvidiaRoots, RIM_CHAIN_CERTIFICATES};
use super::device::{Device, RevocationCheck};
use super::identity::Architecture;
use super::opaque::UnitStatus;
use super::rim::Rim;
use super::rows::Rows;
use super::terms::Demand;
use crate::judgement::FailureClass;

/// The measurement of the first video decoder, by RIM index; meaningless where that is not there.
const NVDEC0_INDEX: u8 = 35;

/// The two files of a device. A switch has only the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RimKind {
    Driver,
    Firmware,
}

impl RimKind {
    fn name(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::Firmware => "firmware",
        }
    }
}

/// The RIM files of one device, and whether all of them hold.
pub(super) struct RimJudge<'a> {
    pub(super) rims: &'a [Rim],
    pub(super) roots: &'a NvidiaRoots,
    pub(super) revocation: RevocationCheck<'a>,
    pub(super) required: bool,
    pub(super) now_s: u64,
}

impl<'a> RimJudge<'a> {
    pub(super) fn new(inputs: &NvidiaInputs<'a>, rims: &'a [Rim], revocation: RevocationCheck<'a>) -> Self {
        Self {
            rims,
            roots: inputs.roots,
            revocation,
            required: inputs.policy.is_some_and(|terms| terms.rims == Demand::Required),
            now_s: inputs.now_s,
        }
    }

    /// A file that is for none of the devices. Whoever hands it in expects it to be compared, so it fails; its
    /// signature is judged all the same.
    pub(super) fn judge_unused(&self, rim: &Rim, rows: &mut Rows) {
        self.judge_signature(rim, rows);
        let detail = "no device has this version: hand in the RIM files that `claims` names for the device";
        let actual = format!("{} {}", rim.product, rim.version);
        rows.judge(
            FailureClass::Policy,
            "version",
            false,
            "of a device's driver or firmware",
            actual,
            detail,
        );
    }

    /// Judges all RIM files that are for this device; true if there are all that it has, and everything matches.
    pub(super) fn judge(&self, device: &Device<'_>, rows: &mut Rows) -> bool {
        let kinds: &[RimKind] = match device.architecture.is_gpu() {
            true => &[RimKind::Driver, RimKind::Firmware],
            false => &[RimKind::Firmware],
        };
        let mut all_hold = true;
        let mut used: Vec<(RimKind, &Rim)> = Vec::new();
        for kind in kinds {
            match self.find(*kind, device, rows) {
                Some(rim) => {
                    all_hold &= self.judge_one(*kind, rim, device, rows);
                    used.push((*kind, rim));
                }
                None => all_hold = false,
            }
        }
        if let [(_, driver), (_, firmware)] = used[..] {
            all_hold &= judge_overlap(driver, firmware, rows);
        }
        all_hold
    }

    /// The file whose version is the device's.
    fn find(&self, kind: RimKind, device: &Device<'_>, rows: &mut Rows) -> Option<&Rim> {
        let version = device.version(kind);
        let id = format!("rim.{}", kind.name());
        let mut fitting = self
            .rims
            .iter()
            .filter(|rim| version.as_deref() == Some(&rim.version));
        let (found, second) = (fitting.next(), fitting.next());
        let expected = device.rim_name(kind).unwrap_or_else(|| "a RIM file".to_owned());
        match (found, second) {
            (Some(rim), None) => {
                rows.pass(&id, &expected, format!("{} {}", rim.product, rim.version), "");
                found
            }
            (Some(_), Some(_)) => {
                let detail = "two of the RIM files are for the same version";
                rows.judge(FailureClass::Policy, &id, false, expected, "two", detail);
                None
            }
            (None, _) => {
                let given: Vec<_> = self.rims.iter().map(|rim| rim.version.as_str()).collect();
                let actual = if given.is_empty() {
                    "none given".to_owned()
                } else {
                    given.join(", ")
                };
                let detail =
                    "no RIM file with this version was handed in; the measurements were not compared";
                match self.required {
                    true => drop(rows.judge(FailureClass::Tcb, &id, false, expected, actual, detail)),
                    false => rows.skip(&id, &expected, actual, detail),
                }
                None
            }
        }
    }

    fn judge_one(&self, kind: RimKind, rim: &Rim, device: &Device<'_>, rows: &mut Rows) -> bool {
        let mut own = Rows::new(format!("{}rim.{}.", device.prefix, kind.name()));
        self.judge_signature(rim, &mut own);
        self.judge_product(rim, device, &mut own);
        judge_values(rim, device, &mut own);
        let holds = !own.failed();
        rows.append(own);
        holds
    }

    fn judge_signature(&self, rim: &Rim, rows: &mut Rows) {
        let root = self.roots.rim();
        let chain = Chain::judge(&rim.certificates, root, &RIM_CHAIN_CERTIFICATES, self.now_s, rows);
        let Some(chain) = chain else { return };
        let verified = chain.certificates.first().map(|leaf| rim.verify(leaf));
        let wrong = verified.and_then(Result::err).unwrap_or_default();
        let (expected, actual) = (
            "signed by the RIM signer",
            if wrong.is_empty() { "it is" } else { "it is not" },
        );
        rows.judge(
            FailureClass::Signature,
            "signature",
            wrong.is_empty(),
            expected,
            actual,
            wrong,
        );
        self.revocation.judge(&chain, 0, self.now_s, rows);
    }

    /// A RIM file does not name its board, only its chip and version; so the chip has to be right.
    fn judge_product(&self, rim: &Rim, device: &Device<'_>, rows: &mut Rows) {
        let edition = if device.architecture.is_gpu() {
            "GPU"
        } else {
            "SWITCH"
        };
        let product = device.chip.replace('_', "");
        // One file may be for several chips of the Blackwell family.
        let fits = match device.architecture {
            Architecture::Blackwell => Architecture::from_chip(&rim.product) == Some(Architecture::Blackwell),
            Architecture::Hopper | Architecture::NvswitchLs10 => rim.product == product,
        };
        rows.judge(
            FailureClass::Policy,
            "product",
            rim.edition == edition && fits,
            format!("{edition} {product}"),
            format!("{} {}", rim.edition, rim.product),
            "is for another device",
        );
    }
}

/// Every active value of the file against the report's, one row for each that differs.
fn judge_values(rim: &Rim, device: &Device<'_>, rows: &mut Rows) {
    let mut compared = 0_usize;
    let mut differing = Vec::new();
    for (index, accepted) in &rim.measurements {
        if *index == NVDEC0_INDEX && device.report.opaque.nvdec0() == Some(UnitStatus::Disabled) {
            continue;
        }
        compared += 1;
        // SPDM counts from 1.
        let actual = device.report.measurements.get(&(index + 1));
        if actual.is_some_and(|actual| accepted.contains(actual)) {
            continue;
        }
        differing.push(index.to_string());
        rows.judge(
            FailureClass::Policy,
            &format!("measurement-{index}"),
            false,
            accepted.iter().map(hex::encode).collect::<Vec<_>>().join(" or "),
            actual.map_or_else(|| "not in the report".to_owned(), hex::encode),
            "the device does not run what NVIDIA released under this version",
        );
    }
    rows.judge(
        FailureClass::Policy,
        "measurements",
        differing.is_empty() && compared > 0,
        "all active values equal",
        format!("{} of {compared} equal", compared - differing.len()),
        match compared {
            0 => "the RIM file has no active value".to_owned(),
            _ => format!("RIM indices {} differ", differing.join(", ")),
        },
    );
}

/// NVIDIA's files share the indices among them; a value that both state would leave it open which one counts.
fn judge_overlap(driver: &Rim, firmware: &Rim, rows: &mut Rows) -> bool {
    let driver: BTreeSet<_> = driver.measurements.keys().collect();
    let shared: Vec<_> = firmware
        .measurements
        .keys()
        .filter(|index| driver.contains(index))
        .map(ToString::to_string)
        .collect();
    rows.judge(
        FailureClass::Policy,
        "rim.overlap",
        shared.is_empty(),
        "no index is active in both",
        if shared.is_empty() {
            "none".to_owned()
        } else {
            shared.join(", ")
        },
        "driver's and firmware's RIM state the same measurement",
    )
}

/// The name under which NVIDIA's service has a file.
pub(super) fn rim_name(kind: RimKind, device: &Device<'_>) -> Option<String> {
    let version = device.version(kind)?;
    let opaque = &device.report.opaque;
    match (kind, device.architecture) {
        (RimKind::Driver, Architecture::Hopper) => Some(format!("NV_GPU_DRIVER_GH100_{version}")),
        (RimKind::Driver, Architecture::Blackwell) => {
            let chip = opaque.chip_info().unwrap_or_else(|| "GB100".to_owned());
            Some(format!("NV_GPU_CC_DRIVER_{chip}_{version}"))
        }
        (RimKind::Driver, Architecture::NvswitchLs10) => None,
        (RimKind::Firmware, Architecture::NvswitchLs10) => Some(format!(
            "NV_SWITCH_BIOS_5612_0002_890_{}",
            version.replace('.', "")
        )),
        (RimKind::Firmware, _) => {
            let [project, project_sku, chip_sku] = opaque.board()?;
            let version = version.replace('.', "");
            Some(format!(
                "NV_GPU_VBIOS_{project}_{project_sku}_{chip_sku}_{version}"
            ))
        }
    }
}
