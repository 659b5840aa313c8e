//! `predict` for TDX and SEV-SNP, as an auditor runs it: real firmware and a file of tables in, registers, launch
//! digest and policy out. What is expected comes from elsewhere: MRTD from an independent script, the hand-off block
//! from a public event log, the launch digest from `sev`.
//! Without `COCOON_VECTORS` the tests that need vectors pass with a message.

use std::{fs, path::Path, process::Output};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use cocoon_evidence::{Digest32, Digest48};
use cocoon_verify::Policy;
use serde_json::{Value, json};
use sev::measurement::{
    snp::{SnpMeasurementArgs, snp_calc_launch_digest},
    vcpu_types::CpuType,
    vmsa::{GuestFeatures, VMMType},
};

use super::Inputs;

pub(crate) fn vector(name: &str) -> Option<Vec<u8>> {
    let Some(folder) = std::env::var_os("COCOON_VECTORS") else {
        eprintln!("skipped: COCOON_VECTORS does not name a folder with public test vectors");
        return None;
    };
    Some(fs::read(Path::new(&folder).join(name)).unwrap())
}

const TDX: &str = "platform = \"tdx\"\nmachine = \"q35-1\"\nvcpus = 2\nmemory_mib = 2048\n";
const QEMU: &str = "\n[qemu]\nversion = \"10.2.0\"\n";
const XFAM: &str = "\n[td]\nxfam = \"0x00000000000618e7\"\n";

/// A PE32+ kernel with Linux' setup header of protocol 2.15.
pub(crate) fn linux() -> Vec<u8> {
    let mut image = super::kernel();
    image.resize(0x4000, 0x90);
    image[0x1f1] = 4;
    image[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
    image
}

/// What a release publishes for the machine of [`TDX`], here with contents that are easy to recognise.
fn tables(vcpus: u32) -> Value {
    let file = |bytes: &[u8]| {
        json!({
            "bytes": bytes.len(),
            "sha384": Digest48::of(bytes),
            "base64": BASE64_STANDARD.encode(bytes),
        })
    };
    json!({
        "schema": "cocoon.acpi-tables/1",
        "machines": [{
            "qemu": {"version": "QEMU emulator version 10.2.0", "program_sha256": Digest32::of(b"qemu")},
            "shape": {
                "machine": "q35", "vcpus": vcpus, "memory_mib": 2048, "smm": false, "pic": false, "hpet": false,
                "serial": true, "slots": ["endpoint", "endpoint", "endpoint"], "hole64_gib": 32,
                "window_gib": 57344, "config_window_mib": 3584,
            },
            "files": {
                "etc/table-loader": file(b"loader"),
                "etc/acpi/rsdp": file(b"rsdp"),
                "etc/acpi/tables": file(b"tables"),
            },
        }],
    })
}

/// Real firmware, and tables beside it.
fn tdx(spec: &str) -> Option<Inputs> {
    let firmware = vector("firmware/OVMF.inteltdx.fd")?;
    let inputs = Inputs::of(&firmware, &linux(), spec);
    fs::write(inputs.folder().join("tables.json"), tables(2).to_string()).unwrap();
    Some(inputs)
}

const POLICY: [&str; 4] = ["--tables", "tables.json", "--policy-out", "policy.toml"];

#[track_caller]
pub(crate) fn printed(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
pub(crate) fn refused(inputs: &Inputs, arguments: &[&str], code: i32, says: &str) {
    let output = inputs.run(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(says), "{stderr}");
    assert!(output.stdout.is_empty());
    assert!(!inputs.folder().join("policy.toml").exists());
}

/// As in the unit test of MRTD: an independent script over this firmware.
const SINGLE_PASS: &str =
    "88c63708f207ab01a46b4d9424ea92ab11f8826be30d208afbb58f174f2a19cdcfafb2b12a6a2c98be0740b808894d55";
const TWO_PASS: &str =
    "307c9a6831bdd6e6f56d9305f9598d238d42e864a9144f11c0a46ee42e62ed81eb9845511a80fa77b200743d85d977e3";
/// 2048 MiB with these sections: confidential-containers/trustee, CCEL_data_ovmf.
const HAND_OFF_BLOCK: &str =
    "0b8772e5b0b41b83e6044a68397e02f49fb47066b4fbe4917ea2c45c64f323fdacbb37948f821ebaf8bc9c938ba8a749";

#[test]
fn a_tdx_launch_is_predicted_as_others_computed_it() {
    let Some(inputs) = tdx(&[TDX, QEMU, XFAM].concat()) else {
        return;
    };
    let printed = printed(&inputs.run(&[&POLICY[..], &["--json"]].concat()));
    assert_eq!(
        (&printed["simulated"], &printed["platform"]),
        (&json!(false), &json!("tdx"))
    );
    let mrtd = printed["registers"]["mrtd"].as_array().unwrap();
    let mrtd: Vec<_> = mrtd
        .iter()
        .map(|one| (one["name"].as_str().unwrap(), one["value"].as_str().unwrap()))
        .collect();
    assert_eq!(mrtd, [("single-pass", SINGLE_PASS), ("two-pass", TWO_PASS)]);

    let events = printed["registers"]["rtmr0"][0]["events"].as_array().unwrap();
    let digests: Vec<_> = events
        .iter()
        .map(|event| event["digest"].as_str().unwrap())
        .collect();
    assert_eq!(digests[0], HAND_OFF_BLOCK);
    let acpi = [&b"loader"[..], b"rsdp", b"tables"].map(|bytes| Digest48::of(bytes).to_string());
    assert!(digests.windows(3).any(|three| *three == acpi), "{digests:?}");

    let policy = fs::read_to_string(inputs.folder().join("policy.toml")).unwrap();
    let policy = Policy::parse(&policy).unwrap();
    assert!(!policy.is_simulated());
    let terms = policy.terms().tdx().unwrap();
    let accepted: Vec<_> = terms.registers.mrtd.values().map(Digest48::to_string).collect();
    assert_eq!(accepted, [SINGLE_PASS, TWO_PASS]);
    for profile in ["single-pass", "two-pass"] {
        assert!(policy.to_toml().contains(&format!("profile = \"{profile}\"")));
    }
    assert_eq!(terms.td.attributes.to_string(), "0x0000000010000000");
    assert_eq!(terms.td.xfam.to_string(), "0x00000000000618e7");
    assert_eq!(
        printed["td"],
        json!({"attributes": "0x0000000010000000", "attributes_from": "default", "xfam": "0x00000000000618e7"})
    );
}

#[test]
fn one_page_order_makes_one_mrtd() {
    for (order, value) in [("single-pass", SINGLE_PASS), ("two-pass", TWO_PASS)] {
        let qemu = format!("{QEMU}page_order = \"{order}\"\n");
        let Some(inputs) = tdx(&[TDX, &qemu].concat()) else {
            return;
        };
        let printed = printed(&inputs.run(&["--tables", "tables.json", "--json"]));
        let mrtd = printed["registers"]["mrtd"].as_array().unwrap();
        assert_eq!((mrtd.len(), &mrtd[0]["value"]), (1, &json!(value)));
    }
}

#[test]
fn a_policy_for_tdx_never_holds_the_simulated_tds_features() {
    let Some(inputs) = tdx(&[TDX, QEMU].concat()) else {
        return;
    };
    refused(&inputs, &POLICY, 3, "does not state xfam in [td]");
    // Without a policy the registers are printed all the same, and say what is missing.
    let output = inputs.run(&["--tables", "tables.json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text.contains("XFAM           not stated in [td]"), "{text}");
    assert!(
        text.contains("0x0000000010000000  default: SEPT_VE_DISABLE alone"),
        "{text}"
    );

    let stated = "\n[td]\nattributes = \"0x8000000010000000\"\nxfam = \"0x00000000000000e7\"\n";
    let inputs = tdx(&[TDX, QEMU, stated].concat()).unwrap();
    assert_eq!(inputs.run(&POLICY).status.code(), Some(0));
    let policy = fs::read_to_string(inputs.folder().join("policy.toml")).unwrap();
    let terms = Policy::parse(&policy).unwrap();
    let td = &terms.terms().tdx().unwrap().td;
    assert_eq!(td.attributes.to_string(), "0x8000000010000000");
    assert_eq!(td.xfam.to_string(), "0x00000000000000e7");
}

#[test]
fn attributes_of_a_td_are_refused_where_there_is_none() {
    for platform in ["simulated", "snp"] {
        let spec = TDX.replace("tdx", platform) + XFAM;
        let inputs = Inputs::of(&[0x90; 0x4000], &linux(), &spec);
        refused(&inputs, &[], 3, "[td] is for platform = \"tdx\"");
    }
}

#[test]
fn tables_of_another_machine_or_with_a_changed_byte_are_refused() {
    let Some(inputs) = tdx(&[TDX, QEMU, XFAM].concat()) else {
        return;
    };
    let write = |tables: &Value| fs::write(inputs.folder().join("tables.json"), tables.to_string()).unwrap();
    write(&tables(3));
    refused(&inputs, &POLICY, 3, "no tables for this machine");
    for (key, other) in [
        ("memory_mib", json!(4096)),
        ("hpet", json!(true)),
        ("hole64_gib", json!(64)),
        ("slots", json!(["endpoint"])),
    ] {
        let mut changed = tables(2);
        changed["machines"][0]["shape"][key] = other;
        write(&changed);
        refused(&inputs, &POLICY, 3, "no tables for this machine");
    }
    let mut changed = tables(2);
    changed["machines"][0]["qemu"]["version"] = json!("QEMU emulator version 10.1.0");
    write(&changed);
    refused(&inputs, &POLICY, 3, "no tables for this machine");
    let mut changed = tables(2);
    changed["machines"][0]["files"]["etc/acpi/rsdp"]["base64"] = json!(BASE64_STANDARD.encode(b"rsdq"));
    write(&changed);
    refused(&inputs, &POLICY, 3, "its SHA-384 is");
    fs::remove_file(inputs.folder().join("tables.json")).unwrap();
    refused(&inputs, &POLICY, 3, "tables.json");
    refused(&inputs, &POLICY[2..], 5, "cocoon-measure acpi");
}

#[test]
fn an_snp_launch_digest_is_the_one_that_sev_computes() {
    let Some(firmware) = vector("snp/virtee_sev/ovmf_AmdSev_suffix.bin") else {
        return;
    };
    for (vcpus, features) in [(1, 0x1), (3, 0x21)] {
        let spec = format!(
            "platform = \"snp\"\nmachine = \"q35-1\"\nvcpus = {vcpus}\nmemory_mib = 2048\n\n[snp]\n\
             vcpu_type = \"EPYC-v4\"\nguest_features = \"{features:#x}\"\n"
        );
        let inputs = Inputs::of(&firmware, &linux(), &spec);
        let printed = printed(&inputs.run(&["--json"]));
        assert_eq!(
            (&printed["schema"], &printed["platform"]),
            (&json!("cocoon.predict/1"), &json!("snp"))
        );
        assert_eq!(
            printed["measurement"],
            by_sev(&inputs, vcpus, features).to_string()
        );
        let document = fs::read(inputs.folder().join("launch.json")).unwrap();
        assert_eq!(printed["host_data"], Digest32::of(&document).to_string());
    }
}

/// From the same files.
fn by_sev(inputs: &Inputs, vcpus: u32, features: u64) -> Digest48 {
    let path = |name: &str| inputs.folder().join(name);
    let manifest: Value = serde_json::from_slice(&fs::read(path("manifest.json")).unwrap()).unwrap();
    let digest = snp_calc_launch_digest(SnpMeasurementArgs {
        vcpus,
        vcpu_type: CpuType::try_from("EPYC-v4").unwrap(),
        ovmf_file: path("firmware.fd"),
        guest_features: GuestFeatures(features),
        kernel_file: Some(path("kernel")),
        initrd_file: None,
        append: Some(manifest["command_line"].as_str().unwrap()),
        ovmf_hash_str: None,
        vmm_type: Some(VMMType::QEMU),
    });
    digest.unwrap().get_hex_ld().parse().unwrap()
}

#[test]
fn an_snp_launch_refuses_what_is_tdxs() {
    let spec = TDX.replace("tdx", "snp") + "\n[snp]\nvcpu_type = \"EPYC-v4\"\n";
    let inputs = Inputs::of(&[0x90; 0x4000], &linux(), &spec);
    refused(
        &inputs,
        &["--tables", "tables.json"],
        3,
        "SEV-SNP measures no ACPI tables",
    );
    refused(&inputs, &POLICY[2..], 3, "--policy-out is for TDX");
    refused(&inputs, &[], 3, "cannot predict the launch digest");
}
