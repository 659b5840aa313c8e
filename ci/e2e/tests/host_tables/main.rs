//! A host's ACPI tables against the guest's memory. The tables are not confidential code's: QEMU makes them, and
//! AML in them runs in the kernel. Here QEMU adds a table of an attacker, whose programs try to reach memory of
//! the guest and tell the host through an I/O port how far they came. In a TD this would be the way to all
//! prompts; the kernel's own patches (`image/recipe/patches`) close it. [`processors`] does the same with a table that
//! holds no program.
//!
//! Each attack says a small letter when it starts and the capital when it has had its way. On a kernel without
//! the patch all of them do.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use cocoon_e2e::{Image, describe, eventually};
use cocoon_measurements::Manifest;

mod processors;

/// With 512 MiB of RAM below 4 GiB; OVMF keeps a range at 8.5 MiB as "ACPI NVS".
const MEMORY_MIB: u32 = 512;
/// No device of QEMU's is there.
const PORT: &str = "0x4c0";

/// A program in the attacker's table.
struct Attack {
    /// What it says when it starts; the capital, when it is through.
    letter: char,
    /// The memory in which it finds its field `WORD`.
    region: &'static str,
    program: &'static str,
}

/// The one that has to work: a register of a device. QEMU's own AML reads this one too.
const DEVICE: Attack = Attack {
    letter: 'd',
    region: "OperationRegion (AREA, SystemMemory, 0xFED00000, 4)",
    program: "Local0 = WORD",
};

const ATTACKS: [Attack; 5] = [
    // Reads RAM.
    Attack {
        letter: 'r',
        region: "OperationRegion (AREA, SystemMemory, 0x10000000, 4)",
        program: "Local0 = WORD",
    },
    // Writes it.
    Attack {
        letter: 'w',
        region: "OperationRegion (AREA, SystemMemory, 0x10000000, 4)",
        program: "WORD = 0x0BADC0DE",
    },
    // Reads the last two bytes of RAM and two that are behind it.
    Attack {
        letter: 'e',
        region: "OperationRegion (AREA, SystemMemory, 0x1FFFFFFE, 4)",
        program: "Local0 = WORD",
    },
    // Reads what firmware keeps for itself.
    Attack {
        letter: 'n',
        region: "OperationRegion (AREA, SystemMemory, 0x00880000, 4)",
        program: "Local0 = WORD",
    },
    // Writes another table, where the kernel reads later how much memory to map.
    Attack {
        letter: 't',
        region: "DataTableRegion (AREA, \"APIC\", \"\", \"\")",
        program: "WORD = 0x0BADC0DE",
    },
];

#[test]
fn aml_of_the_host_does_not_reach_the_guests_memory() {
    let Some(image) = Image::from_env() else { return };
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let boot = Boot::start(&image, folder.path(), &beside_qemus(folder.path(), &table()));
    boot.wait_for_agent();

    let told = fs::read_to_string(&boot.told).expect("what the table told");
    let mut letters = vec!['d', 'D'];
    letters.extend(ATTACKS.map(|attack| attack.letter));
    assert_eq!(
        told.chars().collect::<Vec<_>>(),
        letters,
        "capitals had their way"
    );
    let console = boot.console();
    for refusal in [
        "Refused access to memory of the guest at 0x10000000, 4 bytes",
        "Refused access to memory of the guest at 0x1ffffffe, 4 bytes",
        "Refused access to memory of the guest at 0x880000, 4 bytes",
        "Refused access to a table",
    ] {
        assert!(console.contains(refusal), "no {refusal:?} in:\n{console}");
    }
}

/// The tables that QEMU makes when nobody attacks do nothing that is refused.
#[test]
fn qemus_own_tables_reach_for_no_memory() {
    let Some(image) = Image::from_env() else { return };
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let empty = "DefinitionBlock (\"\", \"SSDT\", 2, \"COCOON\", \"NOTHING\", 1) { }";
    let boot = Boot::start(&image, folder.path(), &beside_qemus(folder.path(), empty));
    boot.wait_for_agent();
    let console = boot.console();
    assert!(!console.contains("Refused"), "{console}");
}

/// On a kernel without the patch the machine stands still: it waits for an answer in the attacker's mailbox, and for
/// interrupts from a piece of RAM. The reset vector would have the attacker's code run in the kernel's place when a
/// processor is stopped.
#[test]
fn the_hosts_table_of_processors_places_nothing_in_the_guests_memory() {
    let Some(image) = Image::from_env() else { return };
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let boot = Boot::start(&image, folder.path(), &processors::hostile(folder.path()));
    boot.wait_for_agent();
    let console = boot.console();
    for refusal in [
        "Refused access to memory of the guest at 0x10001000, 4096 bytes",
        "Refused a mailbox in the table of processors",
    ] {
        assert!(console.contains(refusal), "no {refusal:?} in:\n{console}");
    }
}

/// The kernel sets up and starts the clock that the table names. On one without the patch it did so in memory that
/// firmware keeps: it refuses RAM there by itself, and nothing else.
#[test]
fn the_hosts_table_of_the_clock_places_nothing_in_the_guests_memory() {
    let Some(image) = Image::from_env() else { return };
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let boot = Boot::start(&image, folder.path(), &clock_at_firmwares(folder.path()));
    boot.wait_for_agent();
    let console = boot.console();
    let refusal = "Refused access to memory of the guest at 0x880000, 1024 bytes";
    assert!(console.contains(refusal), "no {refusal:?} in:\n{console}");
}

/// A guest that boots without anybody to talk to; killed when dropped.
struct Boot {
    qemu: Child,
    console: PathBuf,
    told: PathBuf,
}

impl Boot {
    /// `tables` are QEMU's arguments that bring the host's.
    fn start(image: &Image, folder: &Path, tables: &[String]) -> Self {
        let manifest = Manifest::load(&image.manifest).expect("the manifest");
        let artifact = |artifact| Manifest::artifact_path(&image.manifest, artifact);
        let (console, told) = (folder.join("console"), folder.join("told"));
        let with = |text: &str, path: &Path| format!("{text}{}", path.display());
        let root = artifact(&manifest.artifacts.root);
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-cpu", "max", "-machine", "q35"])
            .args(["-m", &MEMORY_MIB.to_string()])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .arg("-bios")
            .arg(artifact(&manifest.artifacts.firmware))
            .arg("-kernel")
            .arg(artifact(&manifest.artifacts.kernel))
            .args(["-append", &manifest.command_line])
            .args(["-serial", &with("file:", &console)])
            .args([
                "-drive",
                &with("if=none,id=root,format=raw,readonly=on,file=", &root),
            ])
            .args(["-device", "virtio-blk-pci,drive=root"])
            .args(tables)
            .args(["-chardev", &with("file,id=told,path=", &told)])
            .args(["-device", &format!("isa-debugcon,iobase={PORT},chardev=told")])
            .stdin(Stdio::null())
            .spawn()
            .expect("starting QEMU");
        Self { qemu, console, told }
    }

    fn console(&self) -> String {
        let bytes = fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The kernel boots on, whatever a table tried.
    fn wait_for_agent(&self) {
        eventually("the agent's first line", || {
            self.console().contains("cocoon-agent INFO: Agent after")
        });
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        // Ended by itself, or not: either way it is gone afterwards.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// The attacker's table, in ACPI's source language: a device for each attack, whose `_INI` the kernel runs.
fn table() -> String {
    let mut devices = String::new();
    for (index, attack) in [DEVICE].iter().chain(&ATTACKS).enumerate() {
        let Attack {
            letter,
            region,
            program,
        } = attack;
        let (start, done) = (u32::from(*letter), u32::from(letter.to_ascii_uppercase()));
        let _ = write!(
            devices,
            r#"
            Device (AT{index:02}) {{
                Name (_HID, "COCO{index:04}")
                {region}
                Field (AREA, DWordAcc, NoLock, Preserve) {{ WORD, 32 }}
                Method (_INI) {{ TELL = {start}  {program}  TELL = {done} }}
            }}"#
        );
    }
    format!(
        r#"DefinitionBlock ("", "SSDT", 2, "COCOON", "HOSTILE", 1) {{
            Scope (\_SB) {{
                OperationRegion (PORT, SystemIO, {PORT}, 1)
                Field (PORT, ByteAcc, NoLock, Preserve) {{ TELL, 8 }}
                {devices}
            }}
        }}"#
    )
}

/// QEMU's arguments for a table of a clock (HPET) in memory that firmware keeps, in place of QEMU's (IA-PC HPET
/// specification 1.0a, section 3.2.4; QEMU adds the header).
fn clock_at_firmwares(folder: &Path) -> Vec<String> {
    let mut body = 0x8086_a201_u32.to_le_bytes().to_vec();
    // Registers in memory, 64 bits wide.
    body.extend([0, 64, 0, 0]);
    body.extend(0x0088_0000_u64.to_le_bytes());
    // Number, shortest period, no page protection.
    body.extend([0; 4]);
    let path = folder.join("hpet");
    fs::write(&path, body).expect("writing the table");
    let table = format!("sig=HPET,rev=1,data={}", path.display());
    ["-machine", "hpet=off", "-acpitable", &table]
        .map(String::from)
        .to_vec()
}

/// QEMU's arguments for a table of the attacker's beside its own.
fn beside_qemus(folder: &Path, table: &str) -> [String; 2] {
    let source = folder.join("table.asl");
    fs::write(&source, table).expect("writing the table");
    let output = Command::new("iasl")
        .arg(&source)
        .output()
        .expect("running iasl (Debian: apt-get install acpica-tools)");
    assert!(output.status.success(), "{}", describe(&output));
    let table = folder.join("table.aml");
    ["-acpitable".into(), format!("file={}", table.display())]
}
