//! What an image consists of: manifest, firmware and kernel.

use std::sync::LazyLock;

use cocoon_fuzz_seeds as seeds;
use cocoon_measurements::{
    FwCfgFiles, Initrd, LaunchInputs, LaunchSpec, Manifest, measure,
    snp::{SnpFirmwareInput, SnpKernel, SnpLaunchInputs, SnpVmm, snp_launch_digest},
};

const COMMAND_LINE: &str = "quiet";

/// The firmware's variables and the kernel's setup header count, as a QEMU that writes to it hands it over.
static TDX: LazyLock<LaunchSpec> = LazyLock::new(|| {
    toml::from_str(
        "platform = \"tdx\"\nmachine = \"q35-1\"\nvcpus = 2\nmemory_mib = 1024\n\
         [qemu]\nversion = \"9.2\"\n[firmware]\nlayout = \"a1\"\nsecure_boot = \"on\"\n",
    )
    .expect("it is a LaunchSpec")
});
static SIMULATED: LazyLock<LaunchSpec> = LazyLock::new(|| {
    toml::from_str("platform = \"simulated\"\nmachine = \"q35-1\"\nvcpus = 2\nmemory_mib = 1024\n")
        .expect("it is a LaunchSpec")
});
static TABLES: LazyLock<FwCfgFiles> = LazyLock::new(|| {
    let mut tables = FwCfgFiles::default();
    for name in [
        FwCfgFiles::TABLE_LOADER,
        FwCfgFiles::ACPI_RSDP,
        FwCfgFiles::ACPI_TABLES,
    ] {
        tables.insert(name, vec![1]).expect("it is a name");
    }
    tables
});
static FIRMWARE: LazyLock<Vec<u8>> = LazyLock::new(seeds::firmware);
static KERNEL: LazyLock<Vec<u8>> = LazyLock::new(seeds::kernel);

/// Whether the launch can be measured on both platforms.
fn measure_parts(firmware: &[u8], kernel: &[u8]) -> bool {
    let [simulated, tdx] = [&SIMULATED, &TDX].map(|spec| {
        measure(LaunchInputs {
            firmware,
            kernel,
            initrd: Some(Initrd::of(&[])),
            command_line: COMMAND_LINE,
            spec,
            tables: Some(&TABLES),
            smbios: None,
        })
        .is_ok()
    });
    simulated && tdx
}

fn snp_measure(firmware: &[u8], kernel: &[u8]) -> bool {
    snp_launch_digest(&SnpLaunchInputs {
        firmware: SnpFirmwareInput::Whole(firmware),
        kernel: Some(SnpKernel {
            kernel,
            initrd: &[],
            command_line: COMMAND_LINE,
        }),
        vcpus: 1,
        vcpu_type: "EPYC-v4",
        guest_features: 1,
        vmm: SnpVmm::Qemu,
    })
    .is_ok()
}

/// manifest.json: what is accepted can be written and is accepted again.
pub fn manifest(bytes: &[u8]) -> bool {
    let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) else {
        return false;
    };
    if manifest.check().is_err() {
        return false;
    }
    let written = serde_json::to_vec(&manifest).expect("a manifest is JSON");
    let again: Manifest = serde_json::from_slice(&written).expect("what was written is a manifest");
    assert!(again.check().is_ok());
    true
}

/// TDVF metadata, hand-off block, variables, MRTD and RTMR0; and SEV metadata with SNP's launch digest.
pub fn firmware(bytes: &[u8]) -> bool {
    let on_tdx = measure_parts(bytes, &KERNEL);
    snp_measure(bytes, &KERNEL) && on_tdx
}

/// A kernel's setup header, as it is and as QEMU writes to it, and the Authenticode digest of its PE image.
pub fn kernel(bytes: &[u8]) -> bool {
    measure_parts(&FIRMWARE, bytes)
}
