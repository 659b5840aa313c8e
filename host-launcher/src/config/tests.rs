//! A node.toml that is right makes one document; one that is wrong is told what to do.

use cocoon_evidence::Digest32;

use super::*;

const NODE: &str = r#"
state_dir = "state"
spec = "launch.toml"
[image]
manifest = "manifest.json"
[model]
name = "demo"
volume = "model.img"
numeric_profile = "f32"
[prices]
input_nano_per_kilotoken = 1000
output_nano_per_kilotoken = 2000
[limits]
context_tokens_max = 512
output_tokens_max = 128
requests_max = 2
[settlement]
network = "local"
payout_address = "0:0000000000000000000000000000000000000000000000000000000000000001"
[listen]
address = "127.0.0.1:0"
"#;

/// A folder with everything that node.toml names; the files are as small as can be.
pub(crate) fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    let mut kernel = vec![0; 0x300];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    let root_hash = Digest32::of(b"root hash");
    let table = format!(
        "1 /dev/vda /dev/vda 4096 4096 1 1 sha256 {root_hash} {}",
        Digest32::ZERO
    );
    let artifact = |file: &str, bytes: &[u8]| {
        write(file, bytes);
        serde_json::json!({"file": file, "bytes": bytes.len(), "sha256": Digest32::of(bytes)})
    };
    let manifest = serde_json::json!({
        "version": 1,
        "profile": "dev",
        "command_line": format!("console=ttyS0 dm-mod.create=\"root,,0,ro,0 8 verity {table} 1 panic_on_corruption\""),
        "artifacts": {
            "firmware": artifact("firmware.fd", b"firmware"),
            "kernel": artifact("kernel", &kernel),
            "root": artifact("root.img", b"root"),
        },
        "root_verity": {"data_blocks": 1, "salt": Digest32::ZERO, "root_hash": root_hash},
        "inputs": {},
        "input_digest": Digest32::ZERO,
        "files": [],
    });
    write("manifest.json", manifest.to_string().as_bytes());
    write(
        "launch.toml",
        b"platform = \"simulated\"\nmachine = \"q35-1\"\nvcpus = 2\nmemory_mib = 512\n",
    );
    write("model.img", &[0; 8192]);
    let verity = serde_json::json!({"data_blocks": 1, "salt": Digest32::ZERO, "root_hash": Digest32::ZERO});
    let volume = serde_json::json!({"name": "packed", "verity": verity});
    write("model.json", volume.to_string().as_bytes());
    write("node.toml", NODE.as_bytes());
    dir
}

pub(crate) fn config() -> (tempfile::TempDir, Config) {
    let dir = folder();
    let config = Config::load(&dir.path().join("node.toml")).unwrap();
    (dir, config)
}

const CODE: ContractCode = ContractCode {
    hash: Digest32([7; 32]),
    depth: 3,
};

#[test]
fn a_configuration_makes_the_same_document_every_time() {
    let (_dir, config) = config();
    let bytes = config.launch_document(CODE).unwrap();
    assert_eq!(bytes, config.launch_document(CODE).unwrap());
    let document = LaunchDocument::parse(&bytes).unwrap();
    assert_eq!(document.model.name, "demo");
    assert_eq!(document.settlement.network, NetworkId::LOCAL);
    assert_eq!(document.settlement.contract_code, CODE);
}

#[test]
fn mistakes_are_named_with_what_to_do() {
    let check = |from: &str, to: &str, says: &str| {
        let dir = folder();
        let path = dir.path().join("node.toml");
        assert!(NODE.contains(from), "{from}");
        fs::write(&path, NODE.replace(from, to)).unwrap();
        let error = anyhow::Error::from(Config::load(&path).unwrap_err());
        assert!(format!("{error:#}").contains(says), "{error:#}");
    };
    check("[prices]", "[pirces]", "did you mean `prices`?");
    check("volume =", "vol = 1\nvolume =", "unknown field `vol`");
    check("manifest.json", "missing.json", "missing.json");
    check("launch.toml", "model.json", "is not a LaunchSpec");
    check("model.img", "other.img", "other.json");
    check("\"local\"", "\"mainnet\"", "simulated platform proves nothing");
    check("\"local\"", "\"other\"", "unknown variant `other`");
    check("0:00", "-1:00", "raw form, basechain");
    check(
        "[listen]",
        "[chain]\naddress = \"10.0.0.1:1\"\n[listen]",
        "loopback",
    );
    check(
        "[listen]",
        "[chain]\nglobal_config = \"g\"\n[listen]",
        "runs the chain itself",
    );
    check(
        "[listen]",
        "[tdx]\ncollateral = \"c\"\n[listen]",
        "is for platform = \"tdx\"",
    );
    let long = "x".repeat(120);
    check("\"state\"", &format!("\"{long}\""), "choose a shorter one");
}

#[test]
fn values_out_of_range_do_not_make_a_document() {
    let (_dir, mut config) = config();
    config.limits.output_tokens_max = 100_000;
    let error = anyhow::Error::from(config.launch_document(CODE).unwrap_err());
    assert!(format!("{error:#}").contains("limits.output_tokens_max"));
}

#[test]
fn wrong_files_are_told_apart() {
    let check = |name: &str, bytes: &[u8], says: &str| {
        let dir = folder();
        fs::write(dir.path().join(name), bytes).unwrap();
        let error = Config::load(&dir.path().join("node.toml")).unwrap_err();
        let error = anyhow::Error::from(error);
        assert!(format!("{error:#}").contains(says), "{error:#}");
    };
    check("kernel", b"\x7fELF", "is not a Linux kernel");
    check("root.img", b"", "is empty or not a file");
    check("model.img", &[0; 4096], "copy or pack it again");
    check("model.json", b"{}", "does not describe a model volume");
}

#[test]
fn a_node_is_found_even_if_its_image_is_gone() {
    let (dir, config) = config();
    fs::remove_file(dir.path().join("manifest.json")).unwrap();
    fs::remove_file(dir.path().join("model.img")).unwrap();
    let found = Config::state_dir_of(&dir.path().join("node.toml")).unwrap();
    assert_eq!(found, config.state_dir);
}

#[test]
fn a_changed_kernel_is_not_refused_here_because_clients_refuse_it() {
    let dir = folder();
    let path = dir.path().join("kernel");
    let mut kernel = fs::read(&path).unwrap();
    kernel[0] ^= 1;
    fs::write(&path, kernel).unwrap();
    Config::load(&dir.path().join("node.toml")).unwrap();
}
