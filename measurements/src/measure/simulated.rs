//! The simulated platform's registers: as on TDX where the bytes alone decide, else made up and named so.

use cocoon_evidence::Digest48;

use super::{LaunchInputs, MeasureError, command_line, configuration, kernel, mrtd};
use crate::{
    Firmware, LaunchSpec, PageOrder,
    authenticode::authenticode,
    prediction::{Events, FirmwareLayout, PredictedRegister, PredictedRegisters},
};

pub(super) fn registers(
    firmware: &Firmware<'_>,
    inputs: &LaunchInputs<'_>,
) -> Result<(FirmwareLayout, PredictedRegisters), MeasureError> {
    let firmware_layout = if firmware.has_metadata() {
        FirmwareLayout::TdvfMetadata
    } else {
        FirmwareLayout::SimulatedWholeImage
    };
    let pages = inputs.spec.qemu.page_order.unwrap_or(PageOrder::SinglePass);
    let line = command_line::events(inputs, inputs.spec.firmware.initrd_argument.unwrap_or(PREFIX));
    let registers = PredictedRegisters {
        mrtd: mrtd(firmware, Some(pages)),
        rtmr0: PredictedRegister::sole(WHEN, machine(firmware, inputs.spec)?.finish()),
        rtmr1: PredictedRegister::sole(WHEN, kernel::modern_events(authenticode(inputs.kernel)?).finish()),
        rtmr2: PredictedRegister::sole(WHEN, line.finish()),
    };
    Ok((firmware_layout, registers))
}

const WHEN: &str = "simulated: made from the bytes that QEMU is given";
const PREFIX: crate::InitrdArgument = crate::InitrdArgument::Prefix;

fn machine(firmware: &Firmware<'_>, spec: &LaunchSpec) -> Result<Events, MeasureError> {
    let mut events = Events::default();
    configuration::hand_off_block(&mut events, firmware, spec)?;
    configuration::configuration_volume(&mut events, firmware);
    let (machine, vcpus, memory_mib) = (spec.machine.name(), spec.vcpus.get(), spec.memory_mib.get());
    let name = format!("{machine}, {vcpus} vCPUs, {memory_mib} MiB");
    events.push_simulated(
        "simulated machine",
        name,
        machine_digest(machine, vcpus, memory_mib),
    );
    Ok(events)
}

/// SHA-384(domain || u32le(len(machine)) || machine || u32le(vcpus) || u32le(memory in MiB)): stands for the
/// tables in which real firmware finds the virtual hardware.
fn machine_digest(machine: &str, vcpus: u32, memory_mib: u32) -> Digest48 {
    Digest48::of_parts([
        b"cocoon-simulated-machine-v1".as_slice(),
        &(machine.len() as u32).to_le_bytes(),
        machine.as_bytes(),
        &vcpus.to_le_bytes(),
        &memory_mib.to_le_bytes(),
    ])
}
