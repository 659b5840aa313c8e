//! The tables that [`generate`] makes against those that OVMF reads when it boots the same machine.
//!
//! QEMU builds its tables once, at the firmware's first read, and keeps them: after the firmware has booted, qtest
//! reads the very bytes that the firmware read. Runs where the distribution's OVMF and QEMU are, or those that
//! COCOON_OVMF and COCOON_QEMU name.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    EDK2_CONFIG_WINDOW_MIB, EDK2_WINDOW_GIB, FIRMWARE_STAND_IN, MachineShape, MachineType, QemuBuild,
    ReadMethod, Slot, generate, pci::config_window_mib, qtest::Qtest, read_files, shape::NEVER_RUN,
    stand_ins,
};
use crate::FwCfgFiles;

const LIMIT: Duration = Duration::from_secs(240);

/// The first line that OVMF's boot manager prints; the tables were read before.
const BOOTED: &[u8] = b"BdsDxe";

/// 46 address bits and 1 GiB pages, as every TDX host has.
const PROCESSOR: &str = "max,phys-bits=46";

fn programs() -> Option<(PathBuf, PathBuf)> {
    let named = |name, stock: &str| std::env::var_os(name).map_or_else(|| stock.into(), PathBuf::from);
    let (qemu, ovmf) = (
        named("COCOON_QEMU", "qemu-system-x86_64"),
        named("COCOON_OVMF", "/usr/share/ovmf/OVMF.fd"),
    );
    let here = QemuBuild::of(&qemu).is_ok() && ovmf.is_file();
    if !here {
        eprintln!("skipped: QEMU or OVMF is not here; COCOON_QEMU and COCOON_OVMF can name them");
    }
    here.then_some((qemu, ovmf))
}

/// Boots the machine with a real firmware.
fn booted(qemu: &Path, ovmf: &Path, shape: &MachineShape) -> (FwCfgFiles, u32) {
    let folder = stand_ins().unwrap();
    std::fs::copy(ovmf, folder.path().join(FIRMWARE_STAND_IN)).unwrap();
    let console = folder.path().join("console");
    let mut arguments = shape.arguments(folder.path());
    arguments.retain(|argument| argument != NEVER_RUN);
    let mut replace = |option: &str, value: &str| {
        let at = arguments.iter().position(|argument| argument == option).unwrap();
        arguments[at + 1] = value.to_owned();
    };
    replace("-cpu", PROCESSOR);
    replace("-serial", &format!("file:{}", console.display()));
    let started = Instant::now();
    let mut qtest = Qtest::start(qemu, &arguments, LIMIT).unwrap();
    while !has(&console, BOOTED) {
        assert!(started.elapsed() < LIMIT, "OVMF does not boot");
        std::thread::sleep(Duration::from_millis(200));
    }
    let config_window_mib = config_window_mib(&mut qtest);
    (
        read_files(&mut qtest, ReadMethod::Dma).unwrap(),
        config_window_mib,
    )
}

fn has(console: &Path, words: &[u8]) -> bool {
    let said = std::fs::read(console).unwrap_or_default();
    said.windows(words.len()).any(|part| part == words)
}

fn machine(slots: &[Slot], hole64_gib: u32) -> MachineShape {
    MachineShape {
        machine: MachineType::Q35,
        vcpus: 2,
        memory_mib: 512,
        smm: false,
        pic: false,
        hpet: false,
        serial: true,
        slots: slots.to_vec(),
        hole64_gib,
        window_gib: EDK2_WINDOW_GIB,
        config_window_mib: EDK2_CONFIG_WINDOW_MIB,
    }
}

fn check(shape: &MachineShape) {
    let Some((qemu, ovmf)) = programs() else { return };
    let (read, config_window_mib) = booted(&qemu, &ovmf, shape);
    // Debian 12 has the older place, from 2022.11.
    assert!([2816, EDK2_CONFIG_WINDOW_MIB].contains(&config_window_mib));
    let shape = MachineShape {
        config_window_mib,
        ..shape.clone()
    };
    let made = generate(&qemu, &shape, ReadMethod::Dma, LIMIT).unwrap();
    let tables = [
        FwCfgFiles::TABLE_LOADER,
        FwCfgFiles::ACPI_RSDP,
        FwCfgFiles::ACPI_TABLES,
        FwCfgFiles::BOOT_MENU,
        "bootorder",
    ];
    for name in tables {
        assert!(read.get(name) == made.get(name), "{name} of {shape:?}");
    }
}

#[test]
fn ovmf_reads_the_tables_that_were_made_for_the_launchers_machine() {
    check(&machine(&[Slot::Endpoint; 3], 32));
}

#[test]
fn ovmf_reads_the_tables_that_were_made_for_a_machine_with_gpus() {
    let slots = [Slot::Endpoint, Slot::Endpoint, Slot::RootPort, Slot::RootPort];
    check(&machine(&slots, 1024));
}

#[test]
fn ovmf_reads_the_tables_that_were_made_for_a_machine_without_devices() {
    check(&machine(&[], 32));
}

#[test]
fn tables_read_without_what_firmware_does_are_not_those_that_ovmf_reads() {
    let Some((qemu, ovmf)) = programs() else { return };
    let shape = machine(&[Slot::Endpoint], 32);
    let folder = stand_ins().unwrap();
    let mut untouched = Qtest::start(&qemu, &shape.arguments(folder.path()), LIMIT).unwrap();
    let untouched = read_files(&mut untouched, ReadMethod::Dma).unwrap();
    let (read, _) = booted(&qemu, &ovmf, &shape);
    assert_ne!(
        untouched.get(FwCfgFiles::ACPI_TABLES),
        read.get(FwCfgFiles::ACPI_TABLES)
    );
}
