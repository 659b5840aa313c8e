//! The prediction against firmware that measures: Debian's OVMF boots the dev image's own kernel, command line
//! and root with a software TPM, and RTMR1 and RTMR2 as predicted have to be what it measured.
//!
//! TDX firmware extends RTMRs where other firmware extends PCRs (edk2 OvmfPkg/Tcg/TdTcg2Dxe): what goes to PCR 2
//! to 6 goes to RTMR1, PCR 8 to 15 to RTMR2. One thing differs: each of PCR 0 to 7 gets a separator before the
//! boot option is started, RTMR1 one for all. RTMR0 and MRTD hold what only a TDX machine has; the public event
//! logs and quotes cover them.

use std::{fs, ops::RangeInclusive, path::Path, process::Command};

use cocoon_e2e::{Image, Node, describe};
use cocoon_evidence::{Digest48, Register};
use cocoon_measurements::{
    FwCfgFiles, LaunchInputs, LaunchSpec, Manifest, PredictedRegister, PredictedRegisters,
    eventlog::{EventLog, EventType, HashAlgorithm, LogKind, LoggedRegister},
    measure,
    replay::Replay,
};
use cocoon_protocol::simulated::FirmwareMeasurements;
use serde_json::Value;

const RTMR1_PCRS: RangeInclusive<u32> = 2..=6;
const RTMR2_PCRS: RangeInclusive<u32> = 8..=15;

/// TCG PC Client Platform Firmware Profile 1.06, section 10.4.1.
const EV_SEPARATOR: EventType = EventType(4);
/// TCG Algorithm Registry.
const SHA384: HashAlgorithm = HashAlgorithm(0xc);

/// Type and digest of each event of a register.
type Events = Vec<(u32, Digest48)>;

#[test]
fn firmware_measures_what_is_predicted() {
    let Some(image) = Image::from_env() else { return };
    let node = node_with_tpm(&image, &image);
    let verified = node.verify("policy.toml");
    assert!(verified.status.success(), "{}", describe(&verified));

    let measured = Measured::of(&node.firmware_measurements());
    let predicted = predict(&image.manifest);
    assert_is_predicted("RTMR1", &measured.rtmr1, &predicted.rtmr1);
    assert_is_predicted("RTMR2", &measured.rtmr2, &predicted.rtmr2);
    // Without an initrd one event makes RTMR2, so that the TPM itself holds that register.
    assert_eq!(Some(measured.pcr9), predicted.rtmr2.sole_value());
}

/// The twin: were something else than the measurement compared, this would go unnoticed.
#[test]
fn firmware_measures_another_kernel_and_command_line_as_such() {
    let Some(image) = Image::from_env() else { return };
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let tampered = image.copy_to(&folder.path().join("tampered"));
    tamper(&tampered.manifest);
    let node = node_with_tpm(&image, &tampered);
    let measured = Measured::of(&node.firmware_measurements());

    let honest = predict(&image.manifest);
    assert!(!alternatives(&honest.rtmr1).contains(&measured.rtmr1));
    assert!(!alternatives(&honest.rtmr2).contains(&measured.rtmr2));
    assert_ne!(Some(measured.pcr9), honest.rtmr2.sole_value());
    let tampered = predict(&tampered.manifest);
    assert_is_predicted("RTMR1", &measured.rtmr1, &tampered.rtmr1);
    assert_is_predicted("RTMR2", &measured.rtmr2, &tampered.rtmr2);
}

/// Boots one image with a TPM, under the configuration and policy of another.
fn node_with_tpm(configured: &Image, booted: &Image) -> Node {
    let node = Node::configure(configured);
    let qemu = node.qemu_with_tpm();
    node.write_config(booted, &format!("[tools]\nqemu = \"{}\"", qemu.display()));
    node.up_and_serving();
    node
}

/// Another byte of the kernel that nobody executes, and another word on the command line.
fn tamper(manifest: &Path) {
    let text = fs::read(manifest).expect("the manifest");
    let mut value: Value = serde_json::from_slice(&text).expect("the manifest is JSON");
    let line = value["command_line"].as_str().expect("a command line");
    value["command_line"] = format!("{line} loglevel=7").into();
    let kernel = value["artifacts"]["kernel"]["file"].as_str().expect("a kernel");
    let kernel = manifest.with_file_name(kernel);
    let mut bytes = fs::read(&kernel).expect("the kernel");
    bytes[0x180] ^= 1;
    fs::write(&kernel, bytes).expect("writing the kernel");
    fs::write(manifest, value.to_string()).expect("writing the manifest");
}

/// What firmware and kernel measured, as a TDX machine would have it.
struct Measured {
    rtmr1: Events,
    rtmr2: Events,
    pcr9: Digest48,
}

impl Measured {
    /// The log counts only because its replay equals every register of the TPM.
    fn of(measurements: &FirmwareMeasurements) -> Self {
        let log = EventLog::parse(&measurements.log, Some(LogKind::Tpm)).expect("the log of a TPM");
        let replay = Replay::of(log);
        let bank = replay.banks.iter().find(|bank| bank.algorithm == SHA384);
        let bank = bank.expect("the log has SHA-384 digests");
        for (pcr, value) in measurements.registers.range(0..=15) {
            let replayed = &bank.registers[&LoggedRegister::Pcr(*pcr)];
            assert_eq!(
                replayed,
                value.as_bytes(),
                "PCR {pcr} is not the replay of the log"
            );
        }
        let mut rtmr1 = events(&replay.log, RTMR1_PCRS);
        keep_one_separator(&mut rtmr1);
        Self {
            rtmr1,
            rtmr2: events(&replay.log, RTMR2_PCRS),
            pcr9: measurements.registers[&9],
        }
    }
}

fn events(log: &EventLog, pcrs: RangeInclusive<u32>) -> Events {
    let extended = log.events.iter().filter(|event| event.is_extended());
    let ours =
        extended.filter(|event| matches!(event.register, LoggedRegister::Pcr(pcr) if pcrs.contains(&pcr)));
    ours.map(|event| {
        let digest = event.digest(SHA384).expect("a SHA-384 digest").bytes.as_slice();
        let digest = digest.try_into().expect("48 bytes");
        (event.event_type.0, Digest48(digest))
    })
    .collect()
}

fn keep_one_separator(events: &mut Events) {
    let mut seen = false;
    events.retain(|(event_type, _)| {
        let separator = *event_type == EV_SEPARATOR.0;
        !(separator && std::mem::replace(&mut seen, true))
    });
}

/// RTMR1 and RTMR2 on a TDX machine with the QEMU that is installed here.
///
/// Of the tables only RTMR0 depends, which is not compared: these are placeholders.
fn predict(manifest_path: &Path) -> PredictedRegisters {
    let manifest = Manifest::load(manifest_path).expect("the manifest");
    let read = |artifact| fs::read(Manifest::artifact_path(manifest_path, artifact)).expect("an artifact");
    let spec = format!(
        "platform = \"tdx\"\nmachine = \"q35-1\"\nvcpus = 2\nmemory_mib = 1024\n[qemu]\nversion = \"{}\"\n",
        qemu_version()
    );
    let spec: LaunchSpec = toml::from_str(&spec).expect("a LaunchSpec");
    let mut tables = FwCfgFiles::default();
    for name in [
        FwCfgFiles::TABLE_LOADER,
        FwCfgFiles::ACPI_RSDP,
        FwCfgFiles::ACPI_TABLES,
    ] {
        tables.insert(name, vec![0; 32]).expect("a small item");
    }
    let (firmware, kernel) = (
        read(&manifest.artifacts.firmware),
        read(&manifest.artifacts.kernel),
    );
    let inputs = LaunchInputs {
        firmware: &firmware,
        kernel: &kernel,
        initrd: None,
        command_line: &manifest.command_line,
        spec: &spec,
        tables: Some(&tables),
        smbios: None,
    };
    measure(inputs).expect("a prediction").registers
}

/// A LaunchSpec knows QEMU from 8.0 on, before which there is no TDX; Debian 12's 7.2 treats kernels like 8.0.
fn qemu_version() -> String {
    let output = Command::new("qemu-system-x86_64").arg("--version").output();
    let text = String::from_utf8(output.expect("QEMU").stdout).expect("its version is text");
    let version = text.strip_prefix("QEMU emulator version ").expect("a version");
    let version = version.split([' ', '\n']).next().expect("a version");
    if version.starts_with("7.") {
        return "8.0.0".into();
    }
    version.into()
}

fn alternatives(register: &PredictedRegister) -> Vec<Events> {
    let alternatives = register.alternatives().iter();
    alternatives
        .map(|alternative| {
            let events = alternative.events.iter();
            let events: Events = events
                .map(|event| {
                    let number = event.type_number.expect("an event of a log");
                    (number, event.digest.expect("it extends the register"))
                })
                .collect();
            let replayed = Register::replay(events.iter().map(|(_, digest)| digest)).value();
            assert_eq!(
                replayed, alternative.value,
                "the register is not what its events make"
            );
            events
        })
        .collect()
}

fn assert_is_predicted(name: &str, measured: &Events, predicted: &PredictedRegister) {
    let alternatives = alternatives(predicted);
    assert!(
        alternatives.contains(measured),
        "{name}: firmware measured {measured:#?}, predicted are {alternatives:#?}"
    );
}
