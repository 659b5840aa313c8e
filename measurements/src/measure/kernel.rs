//! RTMR1: the kernel, and the actions around its start (TCG PC Client Platform Firmware Profile 1.06, section
//! 8.2; edk2 OvmfPkg/Tcg/TdTcg2Dxe maps PCR 2 to 6 here).

use std::borrow::Cow;

use cocoon_evidence::Digest48;

use super::{LaunchInputs, MeasureError, boot_variables};
use crate::{
    EventLayout, FirmwareSpec, KernelHeaderError, QemuVersion,
    authenticode::authenticode,
    kernel_header::{self, Loading},
    prediction::{
        Alternative, Events, PredictedRegister,
        event_type::{ACTION, BOOT_SERVICES_APPLICATION, SEPARATOR},
    },
};

pub(super) const CALLING: &[u8] = b"Calling EFI Application from Boot Option";
pub(super) const EXIT_INVOKED: &[u8] = b"Exit Boot Services Invocation";
pub(super) const EXIT_RETURNED: &[u8] = b"Exit Boot Services Returned with Success";

pub(super) fn rtmr1(inputs: &LaunchInputs<'_>) -> Result<PredictedRegister, MeasureError> {
    kernel_header::check(inputs.kernel, inputs.kernel.len())?;
    let open = open_headers(inputs.spec.qemu.version, &inputs.spec.firmware);
    let alternatives = open.into_iter().map(|header| {
        let image = authenticode(&image_bytes(inputs, header)?)?;
        let events = events(image, inputs.spec.firmware.layout);
        Ok(Alternative::new(header.name(), header.when(), events.finish()))
    });
    let alternatives = alternatives.collect::<Result<Vec<_>, MeasureError>>()?;
    Ok(PredictedRegister::of(alternatives))
}

/// The kernel as the firmware gets it.
pub(super) fn image_bytes<'a>(
    inputs: &LaunchInputs<'a>,
    header: Header,
) -> Result<Cow<'a, [u8]>, KernelHeaderError> {
    Ok(match header {
        Header::Unpatched => inputs.kernel.into(),
        Header::Patched => {
            let loading = Loading {
                memory_bytes: inputs.spec.memory_mib.bytes(),
                command_line: inputs.command_line,
                initrd_bytes: inputs.initrd.map(|initrd| initrd.bytes),
            };
            kernel_header::patched(inputs.kernel, loading)?.into()
        }
    })
}

/// Whether QEMU wrote to the setup header of the kernel that the firmware measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    Unpatched,
    Patched,
}

impl Header {
    fn name(self) -> &'static str {
        match self {
            Self::Unpatched => "header-as-in-file",
            Self::Patched => "header-patched",
        }
    }

    fn when(self) -> &'static str {
        match self {
            Self::Unpatched => {
                "the setup header is as in the file: QEMU 10.2 and later, or QEMU 10.0 and later with \
                 edk2-stable202502 and later"
            }
            Self::Patched => {
                "QEMU wrote to the setup header: before 10.0, or before 10.2 with firmware before \
                 edk2-stable202502"
            }
        }
    }
}

/// QEMU up to 10.1 patches the header of the kernel that it hands over in pieces. From 10.0 on it also hands over
/// the file as it is, as `etc/boot/kernel`, and firmware from edk2-stable202502 on prefers that.
pub(super) fn open_headers(version: Option<QemuVersion>, firmware: &FirmwareSpec) -> Vec<Header> {
    let patches = version.map(QemuVersion::patches_kernel_header);
    let offers_named = version.map(|version| version.major() >= 10);
    let takes_named = firmware.named_kernel.or(match firmware.layout {
        EventLayout::A0 | EventLayout::A1 => Some(false),
        EventLayout::A2 => None,
        EventLayout::B => Some(true),
    });
    let both = || vec![Header::Unpatched, Header::Patched];
    match (patches, offers_named, takes_named) {
        (Some(false), ..) => vec![Header::Unpatched],
        (Some(true), Some(false), _) | (Some(true), _, Some(false)) => vec![Header::Patched],
        (Some(true), Some(true), Some(true)) => vec![Header::Unpatched],
        _ => both(),
    }
}

fn events(image: Digest48, layout: EventLayout) -> Events {
    match layout {
        EventLayout::A2 | EventLayout::B => modern_events(image),
        EventLayout::A0 | EventLayout::A1 => {
            let mut events = Events::default();
            events.push(BOOT_SERVICES_APPLICATION, "kernel", image);
            if layout == EventLayout::A0 {
                boot_variables::measure(&mut events, layout);
            }
            calling(&mut events);
            exit(&mut events);
            events
        }
    }
}

/// With the separator in this register, as from layout a2 on.
pub(super) fn modern_events(image: Digest48) -> Events {
    let mut events = Events::default();
    events.push(BOOT_SERVICES_APPLICATION, "kernel", image);
    calling(&mut events);
    events.measure(SEPARATOR, "before the boot option", &[0; 4]);
    exit(&mut events);
    events
}

fn calling(events: &mut Events) {
    events.measure(ACTION, "Calling EFI Application from Boot Option", CALLING);
}

fn exit(events: &mut Events) {
    events.measure(ACTION, "Exit Boot Services Invocation", EXIT_INVOKED);
    events.measure(ACTION, "Exit Boot Services Returned with Success", EXIT_RETURNED);
}
