//! SEV-SNP launch digests: the published ones, `sev`'s own computation, and hostile firmware. The firmware is a
//! public vector in the folder that `COCOON_VECTORS` names; without it these tests pass with a message.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use cocoon_evidence::Digest48;
use cocoon_measurements::snp::{
    SnpDigest, SnpError, SnpFirmwareInput, SnpKernel, SnpLaunchInputs, SnpVmm, snp_launch_digest,
};
use proptest::{
    prelude::{Strategy, any, prop},
    prop_assert_eq, proptest,
};
use sev::measurement::{
    snp::{SnpMeasurementArgs, snp_calc_launch_digest},
    vcpu_types::CpuType,
    vmsa::{GuestFeatures, VMMType},
};

fn firmware(name: &str) -> Option<(PathBuf, Vec<u8>)> {
    let Some(folder) = std::env::var_os("COCOON_VECTORS") else {
        eprintln!("skipped: COCOON_VECTORS does not name a folder with public test vectors");
        return None;
    };
    let path = Path::new(&folder).join("snp/virtee_sev").join(name);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Some((path, bytes))
}

/// Kernel and initrd of the published digests are empty.
fn kernel(command_line: &str) -> Option<SnpKernel<'_>> {
    Some(SnpKernel {
        kernel: &[],
        initrd: &[],
        command_line,
    })
}

fn inputs(bytes: &[u8]) -> SnpLaunchInputs<'_> {
    SnpLaunchInputs {
        firmware: SnpFirmwareInput::Whole(bytes),
        kernel: kernel(""),
        vcpus: 1,
        vcpu_type: "EPYC-v4",
        guest_features: 1,
        vmm: SnpVmm::Qemu,
    }
}

/// Launch digest after the pages of the firmware whose last page is the vector.
const OVMF_DIGEST: &str =
    "086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c467a50da6d466b74";

#[test]
fn published_launch_digests() {
    let Some((_, bytes)) = firmware("ovmf_AmdSev_suffix.bin") else {
        return;
    };
    let tail = SnpFirmwareInput::Tail {
        bytes: &bytes,
        digest: OVMF_DIGEST.parse().unwrap(),
    };
    let whole = SnpFirmwareInput::Whole(&bytes);
    let (none, serial) = (kernel(""), kernel("console=ttyS0 loglevel=7"));
    let (qemu, ec2) = (SnpVmm::Qemu, SnpVmm::Ec2);
    let published = [
        (
            tail,
            none,
            1,
            0x01,
            qemu,
            "ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e9fc98646d4a07a9079397fa3852819b5",
        ),
        (
            tail,
            none,
            1,
            0x21,
            qemu,
            "329c8ce0972ae52343b64d34a434a86f245dfd74f5ed7aae15d22efc78fb9683632b9b50e4e1d7fa41179ef98a7ef198",
        ),
        (
            whole,
            serial,
            1,
            0x01,
            qemu,
            "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa",
        ),
        (
            whole,
            serial,
            1,
            0x21,
            qemu,
            "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977",
        ),
        (
            whole,
            none,
            1,
            0x01,
            ec2,
            "7d3756157c805bf6adf617064c8552e8c1688fa1c8756f11cbf56ba5d25c9270fb69c0505c1cbe1c5c66c0e34c6ed3be",
        ),
        (
            whole,
            none,
            1,
            0x21,
            ec2,
            "6ae80856486b1396af8c82a40351d6ed76a20c785e9c7fa4ffa27c22d5d6313b4b3b458cd3c9968e6f89fb5d8450d7a6",
        ),
        (
            whole,
            None,
            1,
            0x01,
            qemu,
            "19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d",
        ),
        (
            whole,
            None,
            1,
            0x21,
            qemu,
            "e1e1ca029dd7973ab9513295be68198472dcd4fc834bd9af9b63f6e8a1674dbf281a9278a4a2ebe0eed9f22adbcd0e2b",
        ),
        (
            whole,
            none,
            4,
            0x01,
            qemu,
            "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5",
        ),
        (
            whole,
            none,
            4,
            0x21,
            qemu,
            "4953b1fb416fa874980e8442b3706d345926d5f38879134e00813c5d7abcbe78eafe7b422907be0b4698e2414a631942",
        ),
    ];
    for (index, (firmware, kernel, vcpus, guest_features, vmm, expected)) in published.into_iter().enumerate()
    {
        let launch = SnpLaunchInputs {
            firmware,
            kernel,
            vcpus,
            guest_features,
            vmm,
            ..inputs(&bytes)
        };
        let digest = snp_launch_digest(&launch).unwrap().digest;
        assert_eq!(digest.to_string(), expected, "row {index}");
    }
}

#[test]
fn published_launch_digests_of_firmware_without_kernel_hashes() {
    let Some((_, bytes)) = firmware("ovmf_OvmfX64_suffix.bin") else {
        return;
    };
    let published = [
        (
            0x01,
            "da0296de8193586a5512078dcd719eccecbd87e2b825ad4148c44f665dc87df21e5b49e21523a9ad993afdb6a30b4005",
        ),
        (
            0x21,
            "28797ae0afaba4005a81e629acebfb59e6687949d6be44007cd5506823b0dd66f146aaae26ff291eed7b493d8a64c385",
        ),
    ];
    for (guest_features, expected) in published {
        let launch = SnpLaunchInputs {
            kernel: None,
            guest_features,
            ..inputs(&bytes)
        };
        assert_eq!(snp_launch_digest(&launch).unwrap().digest.to_string(), expected);
    }
    // Such firmware would boot whatever kernel the host gives it.
    assert_eq!(snp_launch_digest(&inputs(&bytes)), Err(SnpError::NoKernelHashes));
}

#[test]
fn every_step_is_named_and_the_last_value_is_the_digest() {
    let Some((_, bytes)) = firmware("ovmf_AmdSev_suffix.bin") else {
        return;
    };
    let launch = SnpLaunchInputs {
        vcpus: 3,
        ..inputs(&bytes)
    };
    let SnpDigest { digest, steps } = snp_launch_digest(&launch).unwrap();
    assert_eq!(steps.last().unwrap().value, digest);
    let steps = steps
        .iter()
        .map(|step| (step.name.as_str(), step.page_type, step.pages));
    let steps = steps.collect::<Vec<_>>();
    assert_eq!(steps[0], ("firmware", "normal", 1));
    assert!(steps.contains(&("kernel hashes", "normal", 1)), "{steps:?}");
    assert!(steps.contains(&("CPUID table", "cpuid", 1)) && steps.contains(&("secrets", "secrets", 1)));
    assert_eq!(
        steps[steps.len() - 1],
        ("save areas of the other processors", "vmsa", 2)
    );
}

/// What `sev` computes from the same files.
fn by_sev(launch: &SnpLaunchInputs, ovmf: &Path, folder: &Path) -> Digest48 {
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let digest = snp_calc_launch_digest(SnpMeasurementArgs {
        vcpus: launch.vcpus,
        vcpu_type: CpuType::try_from(launch.vcpu_type).unwrap(),
        ovmf_file: ovmf.to_owned(),
        guest_features: GuestFeatures(launch.guest_features),
        kernel_file: launch.kernel.map(|kernel| file("kernel", kernel.kernel)),
        initrd_file: launch.kernel.map(|kernel| file("initrd", kernel.initrd)),
        append: launch.kernel.map(|kernel| kernel.command_line),
        ovmf_hash_str: None,
        vmm_type: Some(match launch.vmm {
            SnpVmm::Qemu => VMMType::QEMU,
            SnpVmm::Ec2 => VMMType::EC2,
        }),
    });
    digest.unwrap().get_hex_ld().parse().unwrap()
}

#[test]
fn agrees_with_sev_on_any_launch() {
    let Some((path, bytes)) = firmware("ovmf_AmdSev_suffix.bin") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let types = [
        "EPYC",
        "EPYC-v4",
        "EPYC-Rome",
        "EPYC-Milan-v2",
        "EPYC-Genoa",
        "EPYC-Turin",
    ];
    let blob = || prop::collection::vec(any::<u8>(), 0..64);
    let launches = (
        prop::option::of((blob(), blob(), "([!-~]([ -~]{0,20}[!-~])?)?")),
        1u32..9,
        prop::sample::select(types.to_vec()),
        any::<u64>().prop_map(|features| features | 1),
        prop::sample::select(vec![SnpVmm::Qemu, SnpVmm::Ec2]),
    );
    proptest!(|((kernel, vcpus, vcpu_type, guest_features, vmm) in launches)| {
        let kernel = kernel.as_ref().map(|(kernel, initrd, command_line)| SnpKernel { kernel, initrd, command_line });
        let launch = SnpLaunchInputs { kernel, vcpus, vcpu_type, guest_features, vmm, ..inputs(&bytes) };
        prop_assert_eq!(snp_launch_digest(&launch).unwrap().digest, by_sev(&launch, &path, folder.path()));
    });
}

#[test]
fn the_command_line_is_measured_as_qemu_hashes_it() {
    let Some((path, bytes)) = firmware("ovmf_AmdSev_suffix.bin") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let with = |line| SnpLaunchInputs {
        kernel: kernel(line),
        ..inputs(&bytes)
    };
    let digest = |line| snp_launch_digest(&with(line)).unwrap().digest;
    assert_ne!(digest("quiet "), digest("quiet"));
    // sev trims, and so gives the digest of another launch.
    assert_eq!(by_sev(&with("quiet "), &path, folder.path()), digest("quiet"));
    assert_eq!(snp_launch_digest(&with("a\0b")), Err(SnpError::CommandLine(1)));
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let Some((_, bytes)) = firmware("ovmf_AmdSev_suffix.bin") else {
        return;
    };
    let launch = inputs(&bytes);
    for vcpus in [0, 4097] {
        assert_eq!(
            snp_launch_digest(&SnpLaunchInputs { vcpus, ..launch }),
            Err(SnpError::Vcpus(vcpus))
        );
    }
    let features = SnpLaunchInputs {
        guest_features: 0x20,
        ..launch
    };
    assert_eq!(snp_launch_digest(&features), Err(SnpError::GuestFeatures(0x20)));
    let xeon = SnpLaunchInputs {
        vcpu_type: "SapphireRapids",
        ..launch
    };
    assert_eq!(
        snp_launch_digest(&xeon),
        Err(SnpError::VcpuType("SapphireRapids".into()))
    );
}

#[test]
fn hostile_firmware_is_refused_or_measured_but_never_panics() {
    let Some((_, bytes)) = firmware("ovmf_AmdSev_suffix.bin") else {
        return;
    };
    // Every byte of the tables, and the footer's surroundings, with every value of its bits.
    for at in bytes.len() - 0x560..bytes.len() {
        for value in [0x00, 0x01, 0x7f, 0x80, 0xff, bytes[at] ^ 1] {
            let mut changed = bytes.clone();
            changed[at] = value;
            let _ = snp_launch_digest(&inputs(&changed));
        }
    }
    proptest!(|(changes in prop::collection::vec((0usize..0x560, any::<u8>()), 1..16))| {
        let mut changed = bytes.clone();
        let end = changed.len() - 1;
        for (at, value) in changes {
            changed[end - at] = value;
        }
        let _ = snp_launch_digest(&inputs(&changed));
    });
    for length in [0, 1, 4095, 17 << 20] {
        let short = vec![0; length];
        assert!(
            matches!(snp_launch_digest(&inputs(&short)), Err(SnpError::Firmware(_))),
            "{length}"
        );
    }
    let empty = vec![0; 4096];
    let error = snp_launch_digest(&inputs(&empty)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "firmware: offset 0xfce: no table of GUIDs ends here"
    );
}
