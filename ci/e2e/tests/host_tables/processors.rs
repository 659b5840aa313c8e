//! QEMU's own tables with an attacker's table of processors (MADT) in the place of the true one. What QEMU is given
//! comes behind its own, and the kernel takes the first of a kind. So QEMU is told to make none, and firmware finds
//! these, in the form in which it reads QEMU's (hw/acpi/bios-linker-loader.c).

use std::{fs, path::Path, time::Duration};

use cocoon_measurements::{
    FwCfgFiles,
    acpi::{MachineShape, MachineType, ReadMethod, Slot, generate},
};

/// In RAM: where the kernel is to write to start its second processor.
const MAILBOX: u64 = 0x1000_0000;
/// In RAM: what the kernel is to take for the registers of its local APIC.
const LOCAL_APIC: u32 = 0x1000_1000;
/// In RAM: where a processor that is stopped is to run on.
const RESET_VECTOR: u64 = 0x1000_2000;

const LIMIT: Duration = Duration::from_secs(60);
const COMMAND_BYTES: usize = 128;
const ADD_CHECKSUM: u32 = 3;
/// In a command, behind its number and the name of a file: where to put the sum, and what it is over.
const SUM_AT: usize = 4 + 56;
const HEADER_BYTES: usize = 36;
/// In a table's header.
const LENGTH_AT: usize = 4;
const HEADER_SUM_AT: usize = 9;

/// QEMU's arguments for a machine of two processors with these tables.
pub(super) fn hostile(folder: &Path) -> Vec<String> {
    let made = tables_of_qemu();
    let file = |name: &str| made.get(name).expect("QEMU makes it").to_vec();
    let (mut tables, mut loader) = (file(FwCfgFiles::ACPI_TABLES), file(FwCfgFiles::TABLE_LOADER));
    replace(&mut tables, &mut loader);
    let mut arguments = vec!["-smp".into(), "2".into(), "-machine".into(), "acpi=off".into()];
    for (name, content) in [
        (FwCfgFiles::ACPI_TABLES, tables),
        (FwCfgFiles::TABLE_LOADER, loader),
        (FwCfgFiles::ACPI_RSDP, file(FwCfgFiles::ACPI_RSDP)),
    ] {
        let path = folder.join(name.replace('/', "-"));
        fs::write(&path, content).expect("writing the tables");
        arguments.extend(["-fw_cfg".into(), format!("name={name},file={}", path.display())]);
    }
    arguments
}

fn tables_of_qemu() -> FwCfgFiles {
    let shape = MachineShape {
        machine: MachineType::Q35,
        vcpus: 2,
        memory_mib: super::MEMORY_MIB,
        smm: true,
        pic: true,
        hpet: true,
        serial: true,
        slots: vec![Slot::Endpoint],
        hole64_gib: 32,
        window_gib: 32,
        // Where Debian 12's OVMF puts it.
        config_window_mib: 0xb00,
    };
    generate(Path::new("qemu-system-x86_64"), &shape, ReadMethod::Dma, LIMIT).expect("QEMU's tables")
}

/// Appends the attacker's table, and leads the list of tables and the order for its sum to it.
fn replace(tables: &mut Vec<u8>, loader: &mut [u8]) {
    let (start, sum_order) = find(tables, loader, b"APIC");
    let length = u32_at(tables, start + LENGTH_AT) as usize;
    let hostile = hostile_madt(&tables[start..start + length]);
    let new = tables.len();

    let (list, _) = find(tables, loader, b"RSDT");
    let end = list + u32_at(tables, list + LENGTH_AT) as usize;
    let mut places = (list + HEADER_BYTES..end).step_by(4);
    let place = places.find(|place| u32_at(tables, *place) as usize == start);
    put(tables, place.expect("the list has it"), new);
    for (value, at) in [new + HEADER_SUM_AT, new, hostile.len()]
        .into_iter()
        .zip([0, 4, 8])
    {
        put(loader, sum_order + at, value);
    }
    tables.extend(hostile);
}

/// Where a table begins, and where in the loader's script its checksum is ordered.
fn find(tables: &[u8], loader: &[u8], signature: &[u8; 4]) -> (usize, usize) {
    let commands = (0..loader.len()).step_by(COMMAND_BYTES);
    commands
        .filter(|command| u32_at(loader, *command) == ADD_CHECKSUM)
        .map(|command| (u32_at(loader, command + SUM_AT + 4) as usize, command + SUM_AT))
        .find(|(start, _)| tables[*start..].starts_with(signature))
        .expect("every table has a checksum")
}

/// The true table with another local APIC, and a mailbox and reset vector (type 16, version 1) before its entries.
fn hostile_madt(madt: &[u8]) -> Vec<u8> {
    let (head, entries) = madt.split_at(HEADER_BYTES + 8);
    let mut hostile = head.to_vec();
    hostile[HEADER_BYTES..][..4].copy_from_slice(&LOCAL_APIC.to_le_bytes());
    hostile.extend([16, 24, 1, 0, 0, 0, 0, 0]);
    hostile.extend(MAILBOX.to_le_bytes());
    hostile.extend(RESET_VECTOR.to_le_bytes());
    hostile.extend(entries);
    let length = hostile.len();
    put(&mut hostile, LENGTH_AT, length);
    hostile
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("QEMU's files are whole"))
}

fn put(bytes: &mut [u8], at: usize, value: usize) {
    let value = u32::try_from(value).expect("tables are small");
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
