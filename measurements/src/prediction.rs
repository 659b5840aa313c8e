//! What a launch measures to: for each register its legitimate values, and the events that make each.

use std::fmt;

use cocoon_evidence::{Digest48, Register};
use serde::Serialize;

use crate::LaunchPlatform;

/// The registers that a launch makes, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Prediction {
    /// Who measures.
    pub platform: LaunchPlatform,
    /// What MRTD was computed from.
    pub firmware_layout: FirmwareLayout,
    /// The registers.
    pub registers: PredictedRegisters,
}

/// MRTD and RTMR0 to RTMR2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PredictedRegisters {
    /// Firmware, as it was loaded.
    pub mrtd: PredictedRegister,
    /// Firmware configuration and virtual hardware.
    pub rtmr0: PredictedRegister,
    /// The kernel.
    pub rtmr1: PredictedRegister,
    /// The command line and the initrd.
    pub rtmr2: PredictedRegister,
}

/// One register: at least one value, and more than one where the LaunchSpec does not pin what decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct PredictedRegister {
    alternatives: Vec<Alternative>,
}

/// One legitimate value of a register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alternative {
    /// What tells it from the others; `only` if there are none.
    pub name: &'static str,
    /// When the register has this value.
    pub when: String,
    /// The value.
    pub value: Digest48,
    /// What makes it, in order.
    pub events: Vec<PredictedEvent>,
}

/// One event of a predicted log; for MRTD one section of the firmware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PredictedEvent {
    /// The type's name in the TCG PC Client Platform Firmware Profile; for MRTD the kind of section.
    #[serde(rename = "type")]
    pub type_name: &'static str,
    /// The type's number in a log; none for what stands in no log.
    pub type_number: Option<u32>,
    /// What it records.
    pub name: String,
    /// What the register is extended with; for MRTD the SHA-384 of the section's content, none if that is not
    /// measured.
    pub digest: Option<Digest48>,
    /// What the register holds afterwards.
    pub value: Digest48,
}

/// Where the layout of the firmware in memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirmwareLayout {
    /// TDVF metadata in the firmware, as a TDX host loads it.
    TdvfMetadata,
    /// The firmware has no metadata and boots on no TDX machine: the whole image at the end of 4 GiB, by the
    /// same formula.
    SimulatedWholeImage,
}

impl fmt::Display for FirmwareLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::TdvfMetadata => "firmware, by the sections of its TDVF metadata",
            Self::SimulatedWholeImage => "simulated: firmware without TDVF metadata, measured whole",
        })
    }
}

impl Prediction {
    /// The values of MRTD and RTMR0 to RTMR2 if each has one only; on the simulated platform they do.
    pub fn sole_values(&self) -> Option<[Digest48; 4]> {
        let PredictedRegisters {
            mrtd,
            rtmr0,
            rtmr1,
            rtmr2,
        } = &self.registers;
        Some([
            mrtd.sole_value()?,
            rtmr0.sole_value()?,
            rtmr1.sole_value()?,
            rtmr2.sole_value()?,
        ])
    }
}

impl PredictedRegisters {
    /// Names and registers, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &PredictedRegister)> {
        [
            ("mrtd", &self.mrtd),
            ("rtmr0", &self.rtmr0),
            ("rtmr1", &self.rtmr1),
            ("rtmr2", &self.rtmr2),
        ]
        .into_iter()
    }
}

impl PredictedRegister {
    /// A register with one value.
    pub(crate) fn sole(when: impl Into<String>, events: Vec<PredictedEvent>) -> Self {
        Self {
            alternatives: vec![Alternative::new("only", when, events)],
        }
    }

    /// Keeps the first of those that have the same value; there has to be one.
    pub(crate) fn of(alternatives: impl IntoIterator<Item = Alternative>) -> Self {
        let mut kept: Vec<Alternative> = Vec::new();
        for alternative in alternatives {
            if kept.iter().all(|other| other.value != alternative.value) {
                kept.push(alternative);
            }
        }
        Self { alternatives: kept }
    }

    /// The legitimate values, most likely first.
    pub fn alternatives(&self) -> &[Alternative] {
        &self.alternatives
    }

    /// Their values.
    pub fn values(&self) -> impl Iterator<Item = Digest48> {
        self.alternatives.iter().map(|alternative| alternative.value)
    }

    /// The value if there is one only.
    pub fn sole_value(&self) -> Option<Digest48> {
        match &self.alternatives[..] {
            [only] => Some(only.value),
            _ => None,
        }
    }
}

impl Alternative {
    pub(crate) fn new(name: &'static str, when: impl Into<String>, events: Vec<PredictedEvent>) -> Self {
        Self {
            name,
            when: when.into(),
            value: events.last().map_or(Digest48::ZERO, |event| event.value),
            events,
        }
    }
}

/// The events of one run-time register while it is predicted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Events {
    register: Register,
    events: Vec<PredictedEvent>,
}

/// Number and name of an event type (TCG PC Client Platform Firmware Profile 1.06, section 10.4.1).
pub(crate) type EventTypeEntry = (u32, &'static str);

impl Events {
    /// Extends with a digest.
    pub(crate) fn push(&mut self, kind: EventTypeEntry, name: impl Into<String>, digest: Digest48) {
        self.extend(Some(kind.0), kind.1, name.into(), digest);
    }

    /// Extends with a digest that no real firmware would.
    pub(crate) fn push_simulated(
        &mut self,
        type_name: &'static str,
        name: impl Into<String>,
        digest: Digest48,
    ) {
        self.extend(None, type_name, name.into(), digest);
    }

    /// Extends with the digest of `data`.
    pub(crate) fn measure(&mut self, kind: EventTypeEntry, name: impl Into<String>, data: &[u8]) {
        self.push(kind, name, Digest48::of(data));
    }

    fn extend(&mut self, type_number: Option<u32>, type_name: &'static str, name: String, digest: Digest48) {
        self.register.extend(&digest);
        self.events.push(PredictedEvent {
            type_name,
            type_number,
            name,
            digest: Some(digest),
            value: self.register.value(),
        });
    }

    pub(crate) fn finish(self) -> Vec<PredictedEvent> {
        self.events
    }
}

pub(crate) mod event_type {
    //! The event types of a TDVF log.

    use super::EventTypeEntry;

    pub(crate) const SEPARATOR: EventTypeEntry = (0x4, "EV_SEPARATOR");
    pub(crate) const EVENT_TAG: EventTypeEntry = (0x6, "EV_EVENT_TAG");
    pub(crate) const PLATFORM_CONFIG_FLAGS: EventTypeEntry = (0xa, "EV_PLATFORM_CONFIG_FLAGS");
    pub(crate) const VARIABLE_DRIVER_CONFIG: EventTypeEntry = (0x8000_0001, "EV_EFI_VARIABLE_DRIVER_CONFIG");
    pub(crate) const VARIABLE_BOOT: EventTypeEntry = (0x8000_0002, "EV_EFI_VARIABLE_BOOT");
    pub(crate) const BOOT_SERVICES_APPLICATION: EventTypeEntry =
        (0x8000_0003, "EV_EFI_BOOT_SERVICES_APPLICATION");
    pub(crate) const ACTION: EventTypeEntry = (0x8000_0007, "EV_EFI_ACTION");
    pub(crate) const HANDOFF_TABLES: EventTypeEntry = (0x8000_0009, "EV_EFI_HANDOFF_TABLES");
    pub(crate) const PLATFORM_FIRMWARE_BLOB2: EventTypeEntry =
        (0x8000_000a, "EV_EFI_PLATFORM_FIRMWARE_BLOB2");
    pub(crate) const HANDOFF_TABLES2: EventTypeEntry = (0x8000_000b, "EV_EFI_HANDOFF_TABLES2");
    pub(crate) const VARIABLE_AUTHORITY: EventTypeEntry = (0x8000_00e0, "EV_EFI_VARIABLE_AUTHORITY");
}
