//! From the bytes that QEMU is given to the registers that they make.
//!
//! The predictor calls [`measure`] over the artifacts of a manifest; on the simulated platform the launcher
//! calls it over the very files it hands to QEMU, so that a changed kernel, command line or firmware changes
//! the simulated registers. It does no I/O.
//!
//! # What is covered
//! | register | events | as on real TDX |
//! |---|---|---|
//! | MRTD | the sections of the firmware's TDVF metadata, added and measured page by page | yes; firmware without metadata is measured whole, on the simulated platform only ([`FirmwareLayout`]) |
//! | RTMR0 | TD hand-off block for the memory size; the configuration volume (UEFI variables); `simulated machine` | the first two are; the third is made up and stands for what TDVF measures after them: Secure Boot variables, ACPI tables, SMBIOS, boot variables |
//! | RTMR1 | the kernel's Authenticode digest, "Calling EFI Application", separator, two ExitBootServices actions | yes, for firmware from edk2-stable202502 on and QEMU from 10.2 on |
//! | RTMR2 | the command line as the kernel's EFI stub gets it, without initrd | yes |
//!
//! QEMU before 10.2 writes into the kernel's setup header before the firmware measures it. The simulated
//! platform measures the file as it is, whatever QEMU runs it.
//!
//! For `platform = "tdx"` [`measure`] refuses: a value for RTMR0 needs the ACPI tables of the exact QEMU, and a
//! wrong prediction is worse than none.

use std::fmt;

use cocoon_evidence::{Digest48, Register, Rtmr};
use serde::Serialize;

use crate::{
    COMMAND_LINE_BYTES_MAX, FirmwareError, KernelError, LaunchPlatform, LaunchSpec,
    authenticode::authenticode, tdvf::Firmware,
};

/// What decides the registers of a launch.
#[derive(Debug, Clone, Copy)]
pub struct LaunchInputs<'a> {
    /// The whole firmware file.
    pub firmware: &'a [u8],
    /// The whole kernel file.
    pub kernel: &'a [u8],
    /// The kernel command line, as QEMU's `-append` gets it.
    pub command_line: &'a str,
    /// The machine.
    pub spec: &'a LaunchSpec,
}

/// The registers that a launch makes, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Prediction {
    /// Firmware, as it was loaded.
    pub mrtd: Digest48,
    /// What MRTD was computed from.
    pub firmware_layout: FirmwareLayout,
    /// Firmware configuration and virtual hardware.
    pub rtmr0: Digest48,
    /// The kernel.
    pub rtmr1: Digest48,
    /// The command line.
    pub rtmr2: Digest48,
    /// What RTMR0, RTMR1 and RTMR2 were extended with, in order for each register.
    pub events: Vec<PredictedEvent>,
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

/// One event of a predicted log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PredictedEvent {
    /// Where it goes.
    pub register: Rtmr,
    /// Event type of the TCG PC Client Platform Firmware Profile, and what it records.
    pub name: String,
    /// What the register is extended with.
    pub digest: Digest48,
    /// What the register holds afterwards.
    pub value: Digest48,
}

/// Why a launch cannot be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeasureError {
    /// The firmware file.
    #[error("cannot measure the firmware")]
    Firmware(#[from] FirmwareError),
    /// The kernel file.
    #[error("cannot measure the kernel")]
    Kernel(#[from] KernelError),
    /// The kernel would cut it off, or firmware would turn it into something else.
    #[error(
        "the command line has {bytes} bytes; it has to be printable ASCII of at most \
         {COMMAND_LINE_BYTES_MAX} bytes"
    )]
    CommandLine {
        /// Its length.
        bytes: usize,
    },
    /// A register that this version cannot compute for this platform.
    #[error(
        "{register} cannot be predicted for this platform yet: {reason}; only platform = \"simulated\" can \
         be predicted by this version"
    )]
    Unpredictable {
        /// Which register.
        register: &'static str,
        /// What is missing.
        reason: &'static str,
    },
}

/// Computes what a launch measures to.
///
/// # Errors
/// See [`MeasureError`].
pub fn measure(inputs: LaunchInputs<'_>) -> Result<Prediction, MeasureError> {
    match inputs.spec.platform {
        LaunchPlatform::Simulated => {}
        LaunchPlatform::Tdx => {
            return Err(MeasureError::Unpredictable {
                register: "RTMR0",
                reason: "it holds the ACPI tables that QEMU generates for this machine",
            });
        }
        LaunchPlatform::Snp => {
            return Err(MeasureError::Unpredictable {
                register: "the launch digest",
                reason: "it is not made of TDX registers",
            });
        }
    }
    let firmware = Firmware::parse(inputs.firmware)?;
    let mut log = Log::default();
    measure_configuration(&mut log, &firmware, inputs.spec)?;
    measure_kernel(&mut log, inputs.kernel)?;
    measure_command_line(&mut log, inputs.command_line)?;
    Ok(Prediction {
        mrtd: firmware.mrtd(),
        firmware_layout: if firmware.has_metadata() {
            FirmwareLayout::TdvfMetadata
        } else {
            FirmwareLayout::SimulatedWholeImage
        },
        rtmr0: log.value(Rtmr::Rtmr0),
        rtmr1: log.value(Rtmr::Rtmr1),
        rtmr2: log.value(Rtmr::Rtmr2),
        events: log.events,
    })
}

fn measure_configuration(
    log: &mut Log,
    firmware: &Firmware<'_>,
    spec: &LaunchSpec,
) -> Result<(), MeasureError> {
    let memory_mib = spec.memory_mib.get();
    if let Some(block) = firmware.hand_off_block(spec.memory_mib.bytes())? {
        let name = format!("EV_EFI_HANDOFF_TABLES2: TD hand-off block, {memory_mib} MiB");
        log.push(Rtmr::Rtmr0, name, Digest48::of(&block));
    }
    if let Some(variables) = firmware.configuration_volume() {
        let name = "EV_EFI_PLATFORM_FIRMWARE_BLOB2: configuration volume";
        log.push(Rtmr::Rtmr0, name, Digest48::of(variables));
    }
    let (machine, vcpus) = (spec.machine.name(), spec.vcpus.get());
    let name = format!("simulated machine: {machine}, {vcpus} vCPUs, {memory_mib} MiB");
    log.push(Rtmr::Rtmr0, name, machine_digest(machine, vcpus, memory_mib));
    Ok(())
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

/// TCG PC Client Platform Firmware Profile 1.06, section 8.2; edk2 OvmfPkg/Tcg/TdTcg2Dxe maps PCR 2 to 6 here.
fn measure_kernel(log: &mut Log, kernel: &[u8]) -> Result<(), MeasureError> {
    let image = authenticode(kernel)?;
    let mut push = |name, digest| log.push(Rtmr::Rtmr1, name, digest);
    push("EV_EFI_BOOT_SERVICES_APPLICATION: kernel", image);
    push("EV_EFI_ACTION: Calling EFI Application", Digest48::of(CALLING));
    push("EV_SEPARATOR", Digest48::of(&[0; 4]));
    push(
        "EV_EFI_ACTION: ExitBootServices invoked",
        Digest48::of(EXIT_INVOKED),
    );
    push(
        "EV_EFI_ACTION: ExitBootServices returned",
        Digest48::of(EXIT_RETURNED),
    );
    Ok(())
}

const CALLING: &[u8] = b"Calling EFI Application from Boot Option";
const EXIT_INVOKED: &[u8] = b"Exit Boot Services Invocation";
const EXIT_RETURNED: &[u8] = b"Exit Boot Services Returned with Success";

/// Linux `drivers/firmware/efi/libstub/efi-stub-helper.c`, LoadOptions: UTF-16 with its NUL.
fn measure_command_line(log: &mut Log, line: &str) -> Result<(), MeasureError> {
    if line.len() > COMMAND_LINE_BYTES_MAX || line.bytes().any(|byte| !(b' '..=b'~').contains(&byte)) {
        return Err(MeasureError::CommandLine { bytes: line.len() });
    }
    let options: Vec<u8> = line
        .encode_utf16()
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect();
    log.push(
        Rtmr::Rtmr2,
        "EV_EVENT_TAG: LOADED_IMAGE::LoadOptions",
        Digest48::of(&options),
    );
    Ok(())
}

#[derive(Default)]
struct Log {
    events: Vec<PredictedEvent>,
}

impl Log {
    fn push(&mut self, register: Rtmr, name: impl Into<String>, digest: Digest48) {
        let extended = self.digests(register).chain([&digest]);
        let value = Register::replay(extended).value();
        self.events.push(PredictedEvent {
            register,
            name: name.into(),
            digest,
            value,
        });
    }

    fn value(&self, register: Rtmr) -> Digest48 {
        Register::replay(self.digests(register)).value()
    }

    fn digests(&self, register: Rtmr) -> impl Iterator<Item = &Digest48> {
        self.events
            .iter()
            .filter(move |event| event.register == register)
            .map(|event| &event.digest)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{MachineProfile, authenticode, tdvf};

    fn spec() -> LaunchSpec {
        LaunchSpec::new(
            LaunchPlatform::Simulated,
            MachineProfile::Q35V1,
            2.try_into().unwrap(),
            1024.try_into().unwrap(),
        )
    }

    fn measured(change: impl FnOnce(&mut Launch)) -> Prediction {
        let mut launch = Launch {
            firmware: tdvf::tests::firmware(),
            kernel: authenticode::tests::image(b"trailing"),
            command_line: "ro quiet".into(),
            spec: spec(),
        };
        change(&mut launch);
        measure(LaunchInputs {
            firmware: &launch.firmware,
            kernel: &launch.kernel,
            command_line: &launch.command_line,
            spec: &launch.spec,
        })
        .unwrap()
    }

    struct Launch {
        firmware: Vec<u8>,
        kernel: Vec<u8>,
        command_line: String,
        spec: LaunchSpec,
    }

    #[test]
    fn constant_events_equal_public_event_logs() {
        // First four bytes as they stand in the CCELs of go-eventlog, trustee, cc-trusted-api and dstack.
        let check = |body: &[u8], starts: &str| {
            assert!(Digest48::of(body).to_string().starts_with(starts), "{starts}");
        };
        check(CALLING, "77a0dab2");
        check(&[0; 4], "394341b7");
        check(EXIT_INVOKED, "214b0bef");
        check(EXIT_RETURNED, "0a2e01c8");
    }

    #[test]
    fn the_command_line_is_measured_as_utf16_with_its_nul() {
        let expected = Register::replay([&Digest48::of(b"r\0o\0\0\0")]).value();
        let prediction = measured(|launch| launch.command_line = "ro".into());
        assert_eq!(prediction.rtmr2, expected);
    }

    #[test]
    fn each_input_changes_its_own_registers_only() {
        let base = measured(|_| {});
        let changed = |change: fn(&mut Launch)| {
            let other = measured(change);
            [
                other.mrtd != base.mrtd,
                other.rtmr0 != base.rtmr0,
                other.rtmr1 != base.rtmr1,
                other.rtmr2 != base.rtmr2,
            ]
        };
        assert_eq!(changed(|l| l.firmware[0x1000] ^= 1), [true, false, false, false]);
        assert_eq!(changed(|l| l.firmware[0] ^= 1), [false, true, false, false]);
        assert_eq!(changed(|l| l.kernel[0x210] ^= 1), [false, false, true, false]);
        assert_eq!(changed(|l| l.command_line.push(' ')), [false, false, false, true]);
        let vcpus = |l: &mut Launch| l.spec.vcpus = 3.try_into().unwrap();
        assert_eq!(changed(vcpus), [false, true, false, false]);
        let memory = |l: &mut Launch| l.spec.memory_mib = 1026.try_into().unwrap();
        assert_eq!(changed(memory), [false, true, false, false]);
    }

    #[test]
    fn the_last_event_of_a_register_holds_its_value() {
        let prediction = measured(|_| {});
        let registers = [
            (Rtmr::Rtmr0, prediction.rtmr0, 3),
            (Rtmr::Rtmr1, prediction.rtmr1, 5),
            (Rtmr::Rtmr2, prediction.rtmr2, 1),
        ];
        for (register, value, count) in registers {
            let events: Vec<_> = prediction
                .events
                .iter()
                .filter(|event| event.register == register)
                .collect();
            assert_eq!(events.len(), count);
            assert_eq!(events[count - 1].value, value);
        }
    }

    #[test]
    fn made_up_events_say_so() {
        let real = ["EV_"];
        for event in measured(|_| {}).events {
            assert!(
                event.name.starts_with("simulated")
                    || real.iter().any(|prefix| event.name.starts_with(prefix)),
                "{}",
                event.name
            );
        }
        let whole = measured(|launch| launch.firmware = vec![0x90; 0x2000]);
        assert_eq!(whole.firmware_layout, FirmwareLayout::SimulatedWholeImage);
        assert!(whole.firmware_layout.to_string().starts_with("simulated"));
    }

    #[test]
    fn real_tdx_is_refused_rather_than_predicted_wrongly() {
        let spec = LaunchSpec {
            platform: LaunchPlatform::Tdx,
            ..spec()
        };
        let error = measure(LaunchInputs {
            firmware: &tdvf::tests::firmware(),
            kernel: &authenticode::tests::image(b""),
            command_line: "ro",
            spec: &spec,
        })
        .unwrap_err();
        assert!(matches!(
            error,
            MeasureError::Unpredictable {
                register: "RTMR0",
                ..
            }
        ));
    }

    #[test]
    fn a_command_line_that_the_kernel_would_cut_or_change_is_refused() {
        for line in ["x".repeat(COMMAND_LINE_BYTES_MAX + 1), "a\nb".into(), "é".into()] {
            let mut log = Log::default();
            assert!(measure_command_line(&mut log, &line).is_err(), "{line:?}");
        }
    }
}
