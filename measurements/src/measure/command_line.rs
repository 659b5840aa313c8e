//! RTMR2: what the kernel's EFI stub measures of its command line and initrd (Linux
//! `drivers/firmware/efi/libstub/efi-stub-helper.c`).

use super::{Initrd, LaunchInputs};
use crate::{
    EventLayout, FirmwareSpec, InitrdArgument,
    prediction::{Alternative, Events, PredictedRegister, event_type::EVENT_TAG},
};

pub(super) fn rtmr2(inputs: &LaunchInputs<'_>) -> PredictedRegister {
    if inputs.initrd.is_none() {
        let events = events(inputs, InitrdArgument::Prefix);
        return PredictedRegister::sole("no initrd: the command line is as QEMU gets it", events.finish());
    }
    let arguments = open_arguments(&inputs.spec.firmware);
    PredictedRegister::of(arguments.into_iter().map(|argument| {
        let when = match argument {
            InitrdArgument::Prefix => {
                "the firmware puts \"initrd=initrd \" before the command line: edk2-stable202508 and later"
            }
            InitrdArgument::Suffix => {
                "the firmware puts \" initrd=initrd\" after the command line: before edk2-stable202508"
            }
        };
        Alternative::new(argument.name(), when, events(inputs, argument).finish())
    }))
}

/// Layout b starts before the change of edk2 a2ac0fea49, the others end before it.
fn open_arguments(firmware: &FirmwareSpec) -> Vec<InitrdArgument> {
    match (firmware.initrd_argument, firmware.layout) {
        (Some(pinned), _) => vec![pinned],
        (None, EventLayout::B) => InitrdArgument::ALL.to_vec(),
        (None, EventLayout::A0 | EventLayout::A1 | EventLayout::A2) => vec![InitrdArgument::Suffix],
    }
}

/// Without an initrd nothing is added, wherever it would go.
pub(super) fn events(inputs: &LaunchInputs<'_>, argument: InitrdArgument) -> Events {
    let line = inputs.command_line;
    let line = match (inputs.initrd, argument) {
        (None, _) => line.to_owned(),
        (Some(_), InitrdArgument::Prefix) => format!("initrd=initrd {line}"),
        (Some(_), InitrdArgument::Suffix) => format!("{line} initrd=initrd"),
    };
    // UTF-16 with its NUL.
    let options: Vec<u8> = line
        .encode_utf16()
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect();
    let mut events = Events::default();
    events.measure(EVENT_TAG, "LOADED_IMAGE::LoadOptions", &options);
    if let Some(Initrd { digest, .. }) = inputs.initrd {
        events.push(EVENT_TAG, "Linux initrd", digest);
    }
    events
}
