//! What the device's certificates say: which chip it is, and which firmware holds the key that signed the report.

use x509_parser::asn1_rs::{Any, FromDer as _, Oid, Tag};
use x509_parser::der_parser::oid;
use x509_parser::oid_registry::OID_NIST_HASH_SHA384;

use super::certificate::Certificate;
use super::chain::Chain;

/// TCG DICE "CompositeDeviceID" of Hopper and LS10: version, the boot ROM's key, the firmware's digest (FWID).
const COMPOSITE_DEVICE_ID: Oid<'static> = oid!(2.23.133.5.4.1);
/// TCG DICE "TcbInfo" of Blackwell (DICE Attestation Architecture 1.1, 6.1.1); field 6 lists the FWIDs.
const TCB_INFO: Oid<'static> = oid!(2.23.133.5.4.1.1);
const TCB_INFO_FWIDS: u32 = 6;

/// Families of devices, each with rules of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// GPUs with the chip GH100.
    Hopper,
    /// GPUs with a chip GB1xx or GB2xx.
    Blackwell,
    /// The third generation of NVSwitch, LS10.
    NvswitchLs10,
}

impl Architecture {
    /// The name in policies and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hopper => "hopper",
            Self::Blackwell => "blackwell",
            Self::NvswitchLs10 => "nvswitch-ls10",
        }
    }

    /// Whether it computes, and so has a driver and counts as a GPU.
    pub fn is_gpu(self) -> bool {
        !matches!(self, Self::NvswitchLs10)
    }

    /// From `arch` of NVIDIA's JSON.
    pub(super) fn from_evidence(name: &str) -> Option<Self> {
        match name.to_ascii_uppercase().as_str() {
            "HOPPER" => Some(Self::Hopper),
            "BLACKWELL" => Some(Self::Blackwell),
            "LS10" => Some(Self::NvswitchLs10),
            _ => None,
        }
    }

    pub(super) fn from_chip(chip: &str) -> Option<Self> {
        match chip {
            "GH100" => Some(Self::Hopper),
            "LS_10" => Some(Self::NvswitchLs10),
            _ if chip.starts_with("GB1") || chip.starts_with("GB2") => Some(Self::Blackwell),
            _ => None,
        }
    }
}

/// The chip, from the boot ROM's certificate ("GH100 A01 GSP BROM"), which NVIDIA's provisioner signed. The leaf is
/// signed by the device itself and has to name the same chip.
pub(super) fn chip(chain: &Chain<'_>) -> Option<String> {
    let name_of = |index: usize| {
        let name = chain.certificates.get(index).and_then(Certificate::common_name)?;
        name.split(' ').next().map(str::to_owned)
    };
    let chip = name_of(1)?;
    (name_of(0)? == chip).then_some(chip)
}

/// The digest of the firmware that holds the leaf's key.
pub(super) fn fwid(leaf: &Certificate<'_>, architecture: Architecture) -> Option<Vec<u8>> {
    let extension = |oid: &Oid<'_>| {
        leaf.x509
            .get_extension_unique(oid)
            .ok()
            .flatten()
            .map(|found| found.value)
    };
    match architecture {
        Architecture::Blackwell => fwid_of_tcb_info(extension(&TCB_INFO)?),
        Architecture::Hopper | Architecture::NvswitchLs10 => {
            fwid_of_composite_device_id(extension(&COMPOSITE_DEVICE_ID)?)
        }
    }
}

fn fwid_of_composite_device_id(extension: &[u8]) -> Option<Vec<u8>> {
    let content = sole(extension, Tag::Sequence)?;
    let (rest, _version) = element(content, Tag::Integer)?;
    let (rest, _key) = element(rest, Tag::Sequence)?;
    digest(sole(rest, Tag::Sequence)?)
}

fn fwid_of_tcb_info(extension: &[u8]) -> Option<Vec<u8>> {
    let mut rest = sole(extension, Tag::Sequence)?;
    while !rest.is_empty() {
        let (after, field) = Any::from_der(rest).ok()?;
        if field.tag() == Tag(TCB_INFO_FWIDS) {
            // Several digests are one for each layer of firmware; NVIDIA compares the first.
            return digest(element(field.data, Tag::Sequence)?.1);
        }
        rest = after;
    }
    None
}

/// Algorithm and digest.
fn digest(fwid: &[u8]) -> Option<Vec<u8>> {
    let (rest, algorithm) = element(fwid, Tag::Oid)?;
    let digest = sole(rest, Tag::OctetString)?;
    (Oid::new(algorithm.into()) == OID_NIST_HASH_SHA384 && digest.len() == 48).then(|| digest.to_vec())
}

/// The content of the first element and what follows it.
fn element(bytes: &[u8], tag: Tag) -> Option<(&[u8], &[u8])> {
    let (rest, any) = Any::from_der(bytes).ok()?;
    (any.tag() == tag).then_some((rest, any.data))
}

/// The content of the only element.
fn sole(bytes: &[u8], tag: Tag) -> Option<&[u8]> {
    element(bytes, tag).and_then(|(rest, content)| rest.is_empty().then_some(content))
}
