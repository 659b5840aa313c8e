//! Injects single causes and counts how often the right one is named first.

use cocoon_evidence::{Digest48, Register};

use super::*;
use crate::{
    DeviceKind, DeviceSpec, EventLayout, FwCfgFiles, Initrd, LaunchSpec, PageOrder, SecureBoot,
    measure::tests::Launch as Machine, variable_store,
};

/// Tables that stand for QEMU's: different for all that makes QEMU's different.
fn items(spec: &LaunchSpec) -> Option<MachineItems> {
    let mut tables = FwCfgFiles::default();
    let shape = format!("{:?} {:?} {:?}", spec.vcpus, spec.pcie_devices(), spec.pci);
    let version = format!("{:?}", spec.qemu.version);
    for (name, bytes) in [
        (FwCfgFiles::TABLE_LOADER, format!("loader {version}")),
        (FwCfgFiles::ACPI_RSDP, "rsdp".to_owned()),
        (FwCfgFiles::ACPI_TABLES, format!("tables {shape} {version}")),
        (FwCfgFiles::BOOT_MENU, "\0\0".to_owned()),
        ("bootorder", "/rom@genroms/linuxboot_dma.bin\0".to_owned()),
    ] {
        tables.insert(name, bytes.into_bytes()).unwrap();
    }
    Some(MachineItems {
        tables,
        smbios: Some(Digest48::of(b"smbios")),
    })
}

fn no_other_items(spec: &LaunchSpec) -> Option<MachineItems> {
    items(spec).filter(|_| *spec == described().spec)
}

/// What the auditor describes.
fn described() -> Machine {
    let mut machine = Machine::tdx();
    machine.spec.memory_mib = 4096.try_into().unwrap();
    machine.firmware[..0x1000].copy_from_slice(&variable_store::tests::volume(&[], true)[..0x1000]);
    // The store's length has to fit the smaller volume.
    machine.firmware[88..92].copy_from_slice(&(0x1000u32 - 72).to_le_bytes());
    machine.initrd = Some(Initrd {
        bytes: 1 << 20,
        digest: Digest48::of(b"initrd"),
    });
    machine
}

/// What a source of evidence shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Quote,
    Log,
    Both,
}

/// The evidence of a machine.
fn observed(machine: &mut Machine, source: Source) -> Observed {
    machine.tables = items(&machine.spec).map(|items| items.tables);
    let registers = machine.measure().unwrap().registers;
    let logged = [&registers.rtmr0, &registers.rtmr1, &registers.rtmr2].map(|register| {
        let events = register.alternatives()[0].events.iter().map(|event| SeenEvent {
            event_type: EventType(event.type_number.unwrap()),
            description: event.name.clone(),
            digest: event.digest.unwrap(),
        });
        events.collect::<Vec<_>>()
    });
    let quoted = logged.clone().map(|events| value(&events));
    Observed {
        mrtd: Some(registers.mrtd.alternatives()[0].value).filter(|_| source != Source::Log),
        quoted: Some(quoted).filter(|_| source != Source::Log),
        logged: Some(logged).filter(|_| source != Source::Quote),
        launch_document: None,
    }
}

fn value(events: &[SeenEvent]) -> Digest48 {
    Register::replay(events.iter().map(|event| &event.digest)).value()
}

/// What `explain` says about evidence of a machine that differs from the described one in one thing.
fn explained(
    source: Source,
    tables: &dyn Fn(&LaunchSpec) -> Option<MachineItems>,
    inject: impl FnOnce(&mut Machine),
    tamper: impl FnOnce(&mut Observed),
) -> Explanation {
    let described = described();
    let mut machine = self::described();
    inject(&mut machine);
    let mut observed = observed(&mut machine, source);
    tamper(&mut observed);
    let launch = Launch {
        firmware: &described.firmware,
        kernel: &described.kernel,
        initrd: described.initrd,
        command_line: &described.command_line,
        spec: &described.spec,
        items: tables,
    };
    let expectation = launch
        .expectation(Some(Digest48::of(b"launch document")))
        .unwrap();
    explain(&expectation, &observed)
}

type Inject = fn(&mut Machine);
type Tamper = fn(&mut Observed);

fn nothing(_: &mut Observed) {}

fn unchanged(_: &mut Machine) {}

/// Changes the events of a register, in the log and so in the quote.
fn rewrite(observed: &mut Observed, index: usize, edit: impl FnOnce(&mut Vec<SeenEvent>)) {
    let logged = observed.logged.as_mut().unwrap();
    edit(&mut logged[index]);
    let value = value(&logged[index]);
    if let Some(quoted) = &mut observed.quoted {
        quoted[index] = value;
    }
}

/// Measures the command line as another text.
fn load_options(observed: &mut Observed, text: &[u8]) {
    rewrite(observed, 2, |events| events[0].digest = Digest48::of(text));
}

fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// The cause that has to be named first, where it is looked for, and how it is injected.
const CAUSES: &[(&str, Source, Inject, Tamper)] = &[
    (
        "memory",
        Source::Quote,
        |m| m.spec.memory_mib = 8192.try_into().unwrap(),
        nothing,
    ),
    (
        "memory",
        Source::Both,
        |m| m.spec.memory_mib = 6150.try_into().unwrap(),
        nothing,
    ),
    (
        "memory",
        Source::Quote,
        |m| m.spec.memory_mib = 2048.try_into().unwrap(),
        nothing,
    ),
    (
        "vcpus",
        Source::Quote,
        |m| m.spec.vcpus = 7.try_into().unwrap(),
        nothing,
    ),
    (
        "vcpus",
        Source::Log,
        |m| m.spec.vcpus = 64.try_into().unwrap(),
        nothing,
    ),
    (
        "page-order",
        Source::Quote,
        |m| m.spec.qemu.page_order = Some(PageOrder::TwoPass),
        nothing,
    ),
    (
        "firmware-layout",
        Source::Quote,
        |m| m.spec.firmware.layout = EventLayout::A0,
        nothing,
    ),
    (
        "firmware-layout",
        Source::Quote,
        |m| m.spec.firmware.layout = EventLayout::A1,
        nothing,
    ),
    (
        "firmware-layout",
        Source::Both,
        |m| m.spec.firmware.layout = EventLayout::B,
        nothing,
    ),
    (
        "secure-boot",
        Source::Quote,
        |m| m.spec.firmware.secure_boot = SecureBoot::Off,
        nothing,
    ),
    (
        "devices",
        Source::Quote,
        |m| m.spec.devices = with_network_card(&m.spec),
        nothing,
    ),
    (
        "devices",
        Source::Log,
        |m| m.spec.devices = m.spec.pcie_devices()[1..].to_vec(),
        nothing,
    ),
    (
        "pci-hole64",
        Source::Quote,
        |m| m.spec.pci.hole64_gib = Some(512.try_into().unwrap()),
        nothing,
    ),
    (
        "qemu-version",
        Source::Quote,
        |m| m.spec.qemu.version = Some("11.0".parse().unwrap()),
        nothing,
    ),
    (
        "qemu-header",
        Source::Quote,
        |m| {
            m.spec.qemu.version = Some("8.2".parse().unwrap());
            m.spec.firmware.named_kernel = Some(false);
        },
        |observed| observed.quoted = with_described_rtmr0(observed.quoted),
    ),
    ("command-line-newline", Source::Both, unchanged, |o| {
        load_options(
            o,
            &wide(&format!("{}\n initrd=initrd\0", described().command_line)),
        );
    }),
    ("command-line-no-nul", Source::Both, unchanged, |o| {
        load_options(o, &wide(&format!("{} initrd=initrd", described().command_line)));
    }),
    (
        "command-line-initrd-argument",
        Source::Quote,
        |m| m.spec.firmware.initrd_argument = Some(crate::InitrdArgument::Prefix),
        nothing,
    ),
    ("command-line-initrd-argument", Source::Both, unchanged, |o| {
        load_options(o, &wide(&format!("{}\0", described().command_line)));
    }),
    (
        "command-line",
        Source::Quote,
        |m| m.command_line.push_str(" roothash=00"),
        nothing,
    ),
    (
        "kernel",
        Source::Quote,
        |m| m.kernel.extend(b"another build"),
        nothing,
    ),
    ("firmware", Source::Quote, |m| m.firmware[0x1000] ^= 1, nothing),
    ("firmware", Source::Both, |m| m.firmware[0] ^= 1, nothing),
    (
        "initrd",
        Source::Log,
        |m| {
            m.initrd = Some(Initrd {
                bytes: 1 << 20,
                digest: Digest48::of(b"other"),
            });
        },
        nothing,
    ),
    ("initrd-missing", Source::Quote, |m| m.initrd = None, nothing),
    ("ima", Source::Both, unchanged, |o| {
        if let Some(quoted) = &mut o.quoted {
            let mut register = quoted[2];
            register =
                Digest48::of(&[register.as_bytes().as_slice(), Digest48::of(b"IMA").as_bytes()].concat());
            quoted[2] = register;
        }
    }),
    ("separator-duplicated", Source::Both, unchanged, |o| {
        rewrite(o, 1, |events| {
            let at = events
                .iter()
                .position(|event| event.event_type == EventType::SEPARATOR)
                .unwrap();
            events.insert(at, events[at].clone());
        });
    }),
    ("boot-option-failed", Source::Both, unchanged, |o| {
        rewrite(o, 1, |events| {
            let calling = events[1].clone();
            let mut returning = calling.clone();
            returning.digest = Digest48::of(b"Returning from EFI Application from Boot Option");
            events.splice(3..3, [returning, calling]);
        });
    }),
    ("launch-document", Source::Quote, unchanged, |o| {
        o.launch_document = Some(Digest48::of(b"another launch document"));
    }),
];

fn with_network_card(spec: &LaunchSpec) -> Vec<DeviceSpec> {
    let mut devices = spec.pcie_devices();
    devices.push(DeviceSpec::new(DeviceKind::VirtioNet));
    devices
}

/// The header alone: as if the tables of both versions were the same.
fn with_described_rtmr0(quoted: Option<[Digest48; 3]>) -> Option<[Digest48; 3]> {
    let own = observed(&mut described(), Source::Quote).quoted?;
    quoted.map(|[_, rtmr1, rtmr2]| [own[0], rtmr1, rtmr2])
}

#[test]
fn injected_single_causes_are_named_first() {
    let mut missed = Vec::new();
    for (position, (id, source, inject, tamper)) in CAUSES.iter().enumerate() {
        let explanation = explained(*source, &items, inject, tamper);
        assert!(!explanation.agrees, "{position} {id}");
        let first = explanation.causes.first().map(|cause| cause.id);
        if first != Some(id) {
            let named: Vec<_> = explanation
                .causes
                .iter()
                .map(|cause| (cause.id, &cause.title))
                .collect();
            missed.push(format!("{position} {id} ({source:?}): {named:?}"));
        }
    }
    eprintln!(
        "{} of {} injected causes are named first",
        CAUSES.len() - missed.len(),
        CAUSES.len()
    );
    // At least 19 of 20.
    assert!(missed.len() * 20 <= CAUSES.len(), "{missed:#?}");
}

#[test]
fn a_memory_size_is_named_in_mib() {
    let explanation = explained(
        Source::Quote,
        &items,
        |machine| machine.spec.memory_mib = (1 << 20).try_into().unwrap(),
        nothing,
    );
    assert_eq!(explanation.causes[0].certainty, Certainty::Reproduced);
    assert!(
        explanation.causes[0].change.contains("memory_mib = 1048576"),
        "{:?}",
        explanation.causes[0]
    );
}

#[test]
fn evidence_that_agrees_has_no_cause() {
    for source in [Source::Quote, Source::Log, Source::Both] {
        let explanation = explained(source, &items, unchanged, nothing);
        assert_eq!(
            (explanation.agrees, explanation.causes.len()),
            (true, 0),
            "{explanation:?}"
        );
    }
}

/// Two things at once: each has to be named, with a log that tells them apart.
#[test]
fn two_causes_in_one_log_are_both_named() {
    let explanation = explained(
        Source::Log,
        &items,
        |machine| {
            machine.spec.memory_mib = 16384.try_into().unwrap();
            machine.command_line.push_str(" quiet");
        },
        nothing,
    );
    let ids: Vec<_> = explanation.causes.iter().map(|cause| cause.id).collect();
    assert!(
        ids.contains(&"memory") && ids.contains(&"command-line"),
        "{ids:?}"
    );
}

/// Without tables for other machines the log still tells that it is the tables.
#[test]
fn other_hardware_without_tables_for_it_is_told_by_the_log() {
    let explanation = explained(
        Source::Log,
        &no_other_items,
        |machine| machine.spec.vcpus = 9.try_into().unwrap(),
        nothing,
    );
    assert_eq!(explanation.causes[0].id, "acpi", "{:?}", explanation.causes);
}

/// The event of the memory map names the memory, and says nothing of the tables beside it.
#[test]
fn another_memory_size_does_not_hide_other_hardware_in_the_same_register() {
    let explanation = explained(
        Source::Log,
        &no_other_items,
        |machine| {
            machine.spec.memory_mib = 16384.try_into().unwrap();
            machine.spec.vcpus = 9.try_into().unwrap();
        },
        nothing,
    );
    let causes = explanation.causes.iter().map(|cause| (cause.id, cause.certainty));
    let causes: Vec<_> = causes.collect();
    assert_eq!(
        causes,
        [("memory", Certainty::Seen), ("acpi", Certainty::Seen)],
        "{:?}",
        explanation.causes
    );
}
