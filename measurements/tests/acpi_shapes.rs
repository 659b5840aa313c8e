//! Which inputs change QEMU's tables, over more than 100 machines: exactly those that `docs/ACPI.md` lists.
//!
//! Runs the QEMU that COCOON_QEMU names, or else `qemu-system-x86_64`; without one the tests say so and pass.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use cocoon_evidence::Digest48;
use cocoon_measurements::{
    FwCfgFiles,
    acpi::{
        FindError, Freshness, MachineShape, MachineTables, MachineType, QemuBuild, ReadMethod, Slot,
        TableCache, TablesFile, generate,
    },
};

const LIMIT: Duration = Duration::from_secs(120);

fn qemu() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("COCOON_QEMU") {
        return Some(named.into());
    }
    let stock = PathBuf::from("qemu-system-x86_64");
    if QemuBuild::of(&stock).is_ok() {
        return Some(stock);
    }
    eprintln!("skipped: no qemu-system-x86_64 here, and COCOON_QEMU names none");
    None
}

fn base() -> MachineShape {
    MachineShape {
        machine: MachineType::Q35,
        vcpus: 2,
        memory_mib: 1024,
        smm: false,
        pic: false,
        hpet: false,
        serial: true,
        slots: vec![Slot::Endpoint; 3],
        hole64_gib: 32,
        window_gib: 57344,
        config_window_mib: 3584,
    }
}

fn with(change: impl FnOnce(&mut MachineShape)) -> MachineShape {
    let mut shape = base();
    change(&mut shape);
    shape
}

fn tables(shape: &MachineShape) -> FwCfgFiles {
    let qemu = qemu().expect("the caller checked");
    generate(&qemu, shape, ReadMethod::Dma, LIMIT)
        .map_err(|error| format!("{shape:?}: {error:?}"))
        .expect("QEMU makes the tables")
}

/// Machines whose tables all differ.
fn distinct_shapes() -> Vec<MachineShape> {
    let mut shapes = vec![];
    for vcpus in (1..=64).chain([65, 96, 127, 128, 192, 254]) {
        shapes.push(with(|shape| shape.vcpus = vcpus));
    }
    let gib = |count: u32| count << 10;
    for memory_mib in [
        256,
        512,
        2046,
        2048,
        2814,
        2816,
        3072,
        4096,
        8192,
        16384,
        32768,
        65536,
        131_072,
        262_144,
        524_288,
        gib(1000),
        gib(1010),
        gib(1024),
        gib(1536),
        gib(2048),
    ] {
        shapes.push(with(|shape| shape.memory_mib = memory_mib));
    }
    for count in [0, 1, 2, 4, 8, 16, 28] {
        shapes.push(with(|shape| shape.slots = vec![Slot::Endpoint; count]));
    }
    for count in 1..=8 {
        shapes.push(with(|shape| {
            shape.slots.extend(vec![Slot::RootPort; count]);
            shape.hole64_gib = 2048;
        }));
    }
    shapes.push(with(|shape| {
        shape.slots = vec![Slot::RootPort, Slot::Endpoint, Slot::Endpoint, Slot::Endpoint];
        shape.hole64_gib = 2048;
    }));
    for hole64_gib in [1, 16, 33, 64, 256, 512, 1024, 4096] {
        shapes.push(with(|shape| shape.hole64_gib = hole64_gib));
    }
    for window_gib in [32, 64, 768, 896, 7168] {
        shapes.push(with(|shape| shape.window_gib = window_gib));
    }
    for bits in 1..8 {
        shapes.push(with(|shape| {
            shape.smm = bits & 1 != 0;
            shape.hpet = bits & 2 != 0;
            shape.serial = bits & 4 == 0;
        }));
    }
    shapes
}

#[test]
fn each_machine_has_its_own_tables_and_has_them_again() {
    if qemu().is_none() {
        return;
    }
    let started = Instant::now();
    let shapes = distinct_shapes();
    assert!(shapes.len() >= 100, "{}", shapes.len());
    let mut seen: BTreeMap<Vec<u8>, &MachineShape> = BTreeMap::new();
    for shape in &shapes {
        let files = tables(shape);
        assert_eq!(
            files,
            tables(shape),
            "QEMU makes other tables the second time: {shape:?}"
        );
        let all: Vec<u8> = files
            .iter()
            .flat_map(|(_, bytes)| Digest48::of(bytes).0)
            .collect();
        if let Some(other) = seen.insert(all, shape) {
            panic!("{shape:?} has the tables of {other:?}");
        }
    }
    let count = shapes.len();
    eprintln!(
        "{count} machines, each twice, in {:.1} s",
        started.elapsed().as_secs_f32()
    );
}

#[test]
fn bytes_read_one_by_one_are_those_read_by_dma() {
    let Some(qemu) = qemu() else { return };
    for shape in [base(), with(|shape| shape.slots.push(Slot::RootPort))] {
        let slow = generate(&qemu, &shape, ReadMethod::Bytes, LIMIT).unwrap();
        assert_eq!(slow, tables(&shape));
    }
}

/// Which of loader, RSDP and tables an input changes, and which other files.
#[test]
fn documented_inputs_change_the_files_that_the_document_says() {
    if qemu().is_none() {
        return;
    }
    let base_files = tables(&base());
    let check = |name: &str, change: fn(&mut MachineShape), expected: &[&str]| {
        let other = tables(&with(change));
        let names = base_files.iter().chain(other.iter()).map(|(name, _)| name);
        let mut changed: Vec<&str> = names
            .filter(|name| base_files.get(name) != other.get(name))
            .collect();
        changed.sort_unstable();
        changed.dedup();
        assert_eq!(changed, expected, "{name}");
    };
    const LENGTHS: [&str; 3] = [
        FwCfgFiles::ACPI_RSDP,
        FwCfgFiles::ACPI_TABLES,
        FwCfgFiles::TABLE_LOADER,
    ];
    const ALL: [&str; 4] = [
        FwCfgFiles::ACPI_RSDP,
        FwCfgFiles::ACPI_TABLES,
        FwCfgFiles::SMBIOS_TABLES,
        FwCfgFiles::TABLE_LOADER,
    ];
    check("nothing", |_| {}, &[]);
    check("vcpus", |shape| shape.vcpus = 3, &ALL);
    check(
        "memory",
        |shape| shape.memory_mib = 1026,
        &[FwCfgFiles::ACPI_TABLES, FwCfgFiles::SMBIOS_TABLES],
    );
    check("smm", |shape| shape.smm = true, &[FwCfgFiles::ACPI_TABLES]);
    check("hpet", |shape| shape.hpet = true, &LENGTHS);
    check("serial", |shape| shape.serial = false, &LENGTHS);
    check("one slot less", |shape| shape.slots.truncate(2), &LENGTHS);
    check("a root port", |shape| shape.slots[2] = Slot::RootPort, &LENGTHS);
    check(
        "hole64",
        |shape| shape.hole64_gib = 64,
        &[FwCfgFiles::ACPI_TABLES],
    );
    check(
        "configuration space",
        |shape| shape.config_window_mib = 2816,
        &[FwCfgFiles::ACPI_TABLES],
    );
    check(
        "window",
        |shape| shape.window_gib = 64,
        &[FwCfgFiles::ACPI_TABLES],
    );
}

#[test]
fn without_64_bit_memory_the_window_does_not_matter() {
    if qemu().is_none() {
        return;
    }
    let empty = |window_gib| {
        tables(&with(|shape| {
            shape.slots.clear();
            shape.window_gib = window_gib;
        }))
    };
    assert_eq!(empty(32), empty(57344));
}

#[test]
fn a_direct_boot_puts_the_kernels_loader_first() {
    if qemu().is_none() {
        return;
    }
    let files = tables(&base());
    assert_eq!(
        files.get("bootorder"),
        Some(b"/rom@genroms/linuxboot_dma.bin\0".as_slice())
    );
    assert_eq!(files.get(FwCfgFiles::BOOT_MENU), Some([0, 0].as_slice()));
}

#[test]
fn kept_tables_are_those_that_were_made_and_need_no_machine() {
    let Some(qemu) = qemu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let cache = TableCache::new(folder.path());
    let (made, freshness) = cache.tables(&qemu, &base(), LIMIT).unwrap();
    assert_eq!(freshness, Freshness::Made);
    let (kept, freshness) = cache.tables(&qemu, &base(), LIMIT).unwrap();
    assert_eq!((&kept, freshness), (&made, Freshness::Kept));
    let (_, freshness) = cache
        .tables(&qemu, &with(|shape| shape.vcpus = 1), LIMIT)
        .unwrap();
    assert_eq!(freshness, Freshness::Made);
}

#[test]
fn kept_tables_that_somebody_changed_are_refused() {
    let Some(qemu) = qemu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let cache = TableCache::new(folder.path());
    let (made, _) = cache.tables(&qemu, &base(), LIMIT).unwrap();
    let kept = std::fs::read_dir(folder.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let other_machine = MachineTables {
        shape: with(|shape| shape.vcpus = 1),
        ..made
    };
    let file = TablesFile {
        machines: vec![other_machine],
    };
    std::fs::write(&kept, file.to_json()).unwrap();
    assert!(
        cache
            .tables(&qemu, &base(), LIMIT)
            .unwrap_err()
            .to_string()
            .contains("delete it")
    );
}

#[test]
fn a_published_file_answers_for_its_machines_only() {
    let Some(qemu) = qemu() else { return };
    let machine = |shape: MachineShape| MachineTables {
        qemu: QemuBuild::of(&qemu).unwrap(),
        files: tables(&shape),
        shape,
    };
    let one = with(|shape| shape.vcpus = 1);
    let file = TablesFile {
        machines: vec![machine(base()), machine(one.clone())],
    };
    let json = file.to_json();
    assert!(json.len() < 64 * 1024, "{} bytes for two machines", json.len());
    let read = TablesFile::parse(&json).unwrap();
    assert_eq!(read, file);
    assert_eq!(read.find(&one, None).unwrap().files, tables(&one));
    let absent = with(|shape| shape.vcpus = 5);
    assert!(matches!(read.find(&absent, None), Err(FindError::Missing(_))));
}
