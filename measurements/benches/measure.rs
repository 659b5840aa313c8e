//! How much longer MRTD and a whole prediction take than hashing the bytes that they have to hash.
//!
//! `cargo bench -p cocoon-measurements --bench measure` prints both times and their ratio, measured in turns so
//! that a busy machine slows both, and fails over a ratio of 1.1.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use cocoon_evidence::Digest48;
use cocoon_measurements::{
    Firmware, FwCfgFiles, LaunchInputs, LaunchPlatform, LaunchSpec, MachineProfile, PageOrder, measure,
};
use sha2::{Digest as _, Sha384};

/// The most that measuring may cost beyond hashing.
const RATIO_MAX: f64 = 1.1;
const ROUNDS: u32 = 60;

const FIRMWARE_BYTES: usize = 2 << 20;
const CODE_BYTES: usize = 0x1e_0000;
const KERNEL_BYTES: usize = 8 << 20;
const TABLES_BYTES: usize = 128 << 10;

/// Sections of edk2's build with 2 MiB: data offset, raw bytes, address, memory bytes, type, attributes.
const SECTIONS: [(u32, u32, u64, u64, u32, u32); 6] = [
    (0x2_0000, 0x1e_0000, 0xffe2_0000, 0x1e_0000, 0, 1),
    (0, 0x2_0000, 0xffe0_0000, 0x2_0000, 1, 0),
    (0, 0, 0x81_0000, 0x1_0000, 3, 0),
    (0, 0, 0x80_b000, 0x2000, 3, 0),
    (0, 0, 0x80_9000, 0x2000, 2, 0),
    (0, 0, 0x80_0000, 0x6000, 3, 0),
];
const PAGES_ADDED: usize = 538;
const PAGES_MEASURED: usize = 480;
/// TDH.MEM.PAGE.ADD hashes 128 bytes a page, TDH.MR.EXTEND 384 bytes for each of its 16 pieces.
const MRTD_BYTES: usize = PAGES_ADDED * 128 + PAGES_MEASURED * 16 * 384;

fn main() -> ExitCode {
    let (firmware, kernel) = (firmware(), kernel());
    let mut tables = FwCfgFiles::default();
    for (name, bytes) in [
        (FwCfgFiles::TABLE_LOADER, 4096),
        (FwCfgFiles::ACPI_RSDP, 20),
        (FwCfgFiles::ACPI_TABLES, TABLES_BYTES),
    ] {
        tables
            .insert(name, vec![0x41; bytes])
            .expect("a short item with a valid name");
    }
    let spec = spec();
    let inputs = LaunchInputs {
        firmware: &firmware,
        kernel: &kernel,
        initrd: None,
        command_line: "ro quiet",
        spec: &spec,
        tables: Some(&tables),
        smbios: None,
    };
    let parsed = Firmware::parse(&firmware).expect("the firmware above has metadata");
    // Both page orders, the sections' own digests, the variables, the kernel and the tables.
    let prediction_bytes = 2 * MRTD_BYTES + FIRMWARE_BYTES + KERNEL_BYTES + TABLES_BYTES + 4096 + 20;

    println!(
        "{:<34} {:>10} {:>12} {:>12} {:>7}",
        "", "bytes", "hashing", "measuring", "ratio"
    );
    let ratios = [
        compare("MRTD, single pass", MRTD_BYTES, || {
            parsed.mrtd(PageOrder::SinglePass)
        }),
        compare("MRTD, two passes", MRTD_BYTES, || parsed.mrtd(PageOrder::TwoPass)),
        compare("whole prediction, both page orders", prediction_bytes, || {
            let prediction = measure(inputs).expect("the inputs above can be measured");
            prediction.registers.rtmr1.alternatives()[0].value
        }),
    ];
    match ratios.iter().all(|ratio| *ratio <= RATIO_MAX) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Prints one line and returns the ratio of the shortest times: what else runs can only lengthen one.
fn compare(name: &str, bytes: usize, measuring: impl Fn() -> Digest48) -> f64 {
    let same_bytes = vec![0x5a; bytes];
    let (mut hash_best, mut measure_best) = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        hash_best = hash_best.min(time(|| Digest48(Sha384::digest(&same_bytes).into())));
        measure_best = measure_best.min(time(&measuring));
    }
    let ratio = measure_best.as_secs_f64() / hash_best.as_secs_f64();
    let milliseconds = |time: Duration| format!("{:.3} ms", time.as_secs_f64() * 1e3);
    println!(
        "{name:<34} {bytes:>10} {:>12} {:>12} {ratio:>7.3}",
        milliseconds(hash_best),
        milliseconds(measure_best),
    );
    ratio
}

fn time(work: impl Fn() -> Digest48) -> Duration {
    let start = Instant::now();
    std::hint::black_box(work());
    start.elapsed()
}

fn spec() -> LaunchSpec {
    let mut spec = LaunchSpec::new(
        LaunchPlatform::Tdx,
        MachineProfile::Q35V1,
        4.try_into().expect("4 vCPUs are in range"),
        8192.try_into().expect("8 GiB are in range"),
    );
    spec.qemu.version = Some("10.2.0".parse().expect("a supported version"));
    spec
}

/// Firmware of 2 MiB with TDVF metadata: the descriptor, found through the table of entries that ends 32 bytes
/// before the end.
fn firmware() -> Vec<u8> {
    let mut image: Vec<u8> = (0..FIRMWARE_BYTES).map(|at| (at >> 3) as u8).collect();
    let mut descriptor = [b"TDVF".as_slice(), &208u32.to_le_bytes(), &1u32.to_le_bytes()].concat();
    descriptor.extend((SECTIONS.len() as u32).to_le_bytes());
    for (offset, raw, gpa, memory, kind, attributes) in SECTIONS {
        descriptor.extend([offset, raw].map(u32::to_le_bytes).concat());
        descriptor.extend([gpa, memory].map(u64::to_le_bytes).concat());
        descriptor.extend([kind, attributes].map(u32::to_le_bytes).concat());
    }
    let at = CODE_BYTES;
    image[at..at + descriptor.len()].copy_from_slice(&descriptor);
    let mut table = ((FIRMWARE_BYTES - at) as u32).to_le_bytes().to_vec();
    table.extend(22u16.to_le_bytes());
    table.extend(METADATA_OFFSET);
    table.extend(40u16.to_le_bytes());
    table.extend(TABLE_FOOTER);
    let end = FIRMWARE_BYTES - 32;
    image[end - table.len()..end].copy_from_slice(&table);
    image
}

/// e47a6535-984a-4798-865e-4685a7bf8ec2 and 96b582de-1fb2-45f7-baea-a366c55a082d.
const METADATA_OFFSET: [u8; 16] = [
    0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2,
];
const TABLE_FOOTER: [u8; 16] = [
    0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d,
];

/// A PE32+ image without sections, all of it trailing bytes, with a Linux setup header.
fn kernel() -> Vec<u8> {
    let mut image = vec![0x90; KERNEL_BYTES];
    image[..0x200].fill(0);
    for (at, bytes) in [
        (0, b"MZ".as_slice()),
        (0x3c, &[0x40]),
        (0x40, b"PE\0\0"),
        (0x54, &[240]),
        (0x58, &[0x0b, 0x02]),
        (0x58 + 60, &[0, 2]),
        (0x58 + 108, &[16]),
        (0x1f1, &[4]),
        (0x202, b"HdrS\x0f\x02"),
    ] {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }
    image
}
