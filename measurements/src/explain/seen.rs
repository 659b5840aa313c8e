//! What the events in a log say that differ from the expected ones.

use super::{Cause, Certainty, Expected, ExpectedEvent, Observed, SeenEvent, Subject};
use crate::{
    alignment::{Difference, align},
    eventlog::EventType,
};

/// A cause for each kind of difference in the registers that are still unexplained.
pub(super) fn causes(expected: &Expected, observed: &Observed, open: &[Subject]) -> Vec<Cause> {
    let Some(logged) = &observed.logged else {
        return Vec::new();
    };
    let mut causes = Vec::new();
    for subject in open {
        let Some(index) = subject.index() else { continue };
        let same = |expected: &ExpectedEvent, seen: &SeenEvent| expected.digest == seen.digest;
        for difference in align(expected.events(index), &logged[index], same) {
            causes.push(cause(*subject, &difference));
        }
    }
    // A kernel that was started by a boot loader makes all the other differences.
    causes.sort_by_key(|cause| cause.id != "boot-path");
    causes
}

fn cause(subject: Subject, difference: &Difference<'_, ExpectedEvent, SeenEvent>) -> Cause {
    let Difference {
        position,
        a: expected,
        b: seen,
    } = difference;
    let kind = seen
        .map(|seen| seen.event_type)
        .or_else(|| expected.and_then(|event| event.event_type));
    let (id, what, change) = meaning(kind, *seen, *expected);
    let place = match (expected, seen) {
        (Some(expected), Some(seen)) => format!(
            "event {position} is {}, expected was {} ({})",
            seen.digest, expected.digest, expected.name
        ),
        (Some(expected), None) => format!("event {position} ({}) is missing", expected.name),
        (_, seen) => format!(
            "before event {position} stands {}, which was not expected",
            seen.map_or_else(String::new, |seen| format!(
                "{} {}",
                seen.event_type, seen.description
            ))
        ),
    };
    Cause {
        id,
        certainty: Certainty::Seen,
        registers: vec![subject],
        title: format!("{what}: {place}"),
        change: change.to_owned(),
    }
}

type Meaning = (&'static str, &'static str, &'static str);

fn meaning(kind: Option<EventType>, seen: Option<&SeenEvent>, expected: Option<&ExpectedEvent>) -> Meaning {
    let says = |text: &str| {
        seen.is_some_and(|seen| seen.description.contains(text))
            || (seen.is_none() && expected.is_some_and(|expected| expected.name.contains(text)))
    };
    match kind {
        Some(EventType::EFI_HANDOFF_TABLES2) => (
            "hand-off-block",
            "the memory map fits no memory size with this firmware",
            "check that the firmware is the manifest's, and that QEMU is not one that lays memory out otherwise",
        ),
        Some(EventType::EFI_PLATFORM_FIRMWARE_BLOB2 | EventType::EFI_PLATFORM_FIRMWARE_BLOB) => FIRMWARE,
        Some(EventType::EFI_VARIABLE_DRIVER_CONFIG) if says("SecureBoot") => SECURE_BOOT,
        Some(EventType::EFI_VARIABLE_DRIVER_CONFIG | EventType::EFI_VARIABLE_AUTHORITY) => (
            "secure-boot-keys",
            "the firmware has other Secure Boot keys",
            "use the manifest's firmware with its own variables; pass no separate variable store",
        ),
        Some(EventType::PLATFORM_CONFIG_FLAGS) if says("fw_cfg") => LAYOUT,
        Some(EventType::PLATFORM_CONFIG_FLAGS) => ACPI,
        Some(EventType::EFI_HANDOFF_TABLES) if expected.is_none() => LAYOUT,
        Some(EventType::EFI_HANDOFF_TABLES) => (
            "smbios",
            "the machine describes itself otherwise in SMBIOS",
            "check -smbios, -m and -cpu, and the QEMU version",
        ),
        Some(EventType::EFI_VARIABLE_BOOT | EventType::EFI_VARIABLE_BOOT2) => (
            "boot-options",
            "the firmware found other bootable devices",
            "list every disk and network card in the LaunchSpec's [[devices]], or remove them from the machine",
        ),
        Some(EventType::SEPARATOR) => (
            "separator",
            "the separator is elsewhere",
            "state the firmware's layout in the LaunchSpec's [firmware] (a0, a1, a2 or b)",
        ),
        Some(EventType::IPL | EventType::EFI_GPT_EVENT | EventType::EFI_GPT_EVENT2) => (
            "boot-path",
            "a boot loader on a disk started the kernel, not the firmware itself",
            "start the machine with -kernel, and without a bootable disk before it",
        ),
        Some(EventType::EFI_BOOT_SERVICES_APPLICATION) => KERNEL,
        Some(EventType::EFI_ACTION) => (
            "boot-option-failed",
            "the firmware went through other boot options",
            "remove bootable devices that the LaunchSpec does not list",
        ),
        Some(EventType::EVENT_TAG) if says("initrd") => (
            "initrd",
            "another initrd",
            "use the manifest's initrd; its digest is the SHA-384 of the file",
        ),
        Some(EventType::EVENT_TAG) => COMMAND_LINE,
        _ => (
            "unknown-event",
            "an event of a kind that no prediction has",
            "look at it with `cocoon-measure replay`",
        ),
    }
}

pub(super) const FIRMWARE: Meaning = (
    "firmware",
    "another firmware file",
    "start the machine with the firmware of the manifest: one combined file, not CODE and VARS apart, and not a \
     distribution's rebuild",
);
pub(super) const SECURE_BOOT: Meaning = (
    "secure-boot",
    "Secure Boot is in another state",
    "state secure_boot in the LaunchSpec's [firmware] (absent, off or on), or use the manifest's firmware",
);
pub(super) const LAYOUT: Meaning = (
    "firmware-layout",
    "the firmware measures more than that of the LaunchSpec's layout",
    "state layout = \"b\" in the LaunchSpec's [firmware]: edk2-stable202505 and later",
);
pub(super) const ACPI: Meaning = (
    "acpi",
    "QEMU made other ACPI tables",
    "check vcpus, [[devices]], [pci] hole64_gib and the QEMU version of the LaunchSpec against the machine",
);
pub(super) const KERNEL: Meaning = (
    "kernel",
    "another kernel",
    "start the machine with the kernel of the manifest",
);
pub(super) const COMMAND_LINE: Meaning = (
    "command-line",
    "another command line",
    "start the machine with the command line of the manifest; most often the root hash is that of another image",
);
