//! What a provider may try with what is booted. Each has to end at the client, or before.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
};

use cocoon_e2e::{Image, Node, describe};
use cocoon_measurements::Manifest;
use serde_json::Value;

/// `cocoon` exits with this when a value is not what the policy says.
const EXIT_POLICY: i32 = 10;
/// `cocoon-launch` exits with this when the guest does not come up.
const EXIT_GUEST: i32 = 4;
/// `cocoon` exits with this when nobody answers.
const EXIT_CONNECT: i32 = 20;
/// Of dm-verity, for data and hashes.
const BLOCK_BYTES: u64 = 4096;
/// Of EROFS.
const SUPERBLOCK_OFFSET: u64 = 1024;

/// Boots what `tamper` made of the image under the policy of the original; nothing may be served.
fn refused_by_client(tamper: impl FnOnce(&Path, &mut Value), register: &str) {
    let Some(image) = Image::from_env() else { return };
    let node = Node::configure(&image);
    let copy = tampered(&image, &node, tamper);
    node.write_config(&copy, "");
    node.up_and_serving();

    let verified = node.verify("policy.toml");
    assert_eq!(
        verified.status.code(),
        Some(EXIT_POLICY),
        "{}",
        describe(&verified)
    );
    let table = String::from_utf8_lossy(&verified.stdout);
    let row = table
        .lines()
        .find(|line| line.contains(register) && line.contains("FAIL"));
    assert!(row.is_some(), "{register} is not named\n{table}");

    let asked = node.chat("What is Cocoon?");
    assert_eq!(asked.status.code(), Some(EXIT_POLICY), "{}", describe(&asked));
    assert!(asked.stdout.is_empty());
    assert!(node.records().is_empty(), "something was served");
}

/// Copies the image into the node's folder, lets `tamper` change it, and returns the copy.
fn tampered(image: &Image, node: &Node, tamper: impl FnOnce(&Path, &mut Value)) -> Image {
    let copy = image.copy_to(&node.path("tampered"));
    let text = fs::read(&copy.manifest).expect("the manifest");
    let mut value: Value = serde_json::from_slice(&text).expect("the manifest is JSON");
    tamper(&node.path("tampered"), &mut value);
    fs::write(&copy.manifest, value.to_string()).expect("writing the manifest");
    copy
}

#[test]
fn another_command_line_is_refused() {
    refused_by_client(
        |_, manifest| {
            let line = manifest["command_line"]
                .as_str()
                .expect("a command line")
                .to_owned();
            manifest["command_line"] = Value::String(line + " loglevel=7");
        },
        "RTMR2",
    );
}

#[test]
fn another_kernel_is_refused() {
    refused_by_client(
        |dir, manifest| {
            let kernel = dir.join(
                manifest["artifacts"]["kernel"]["file"]
                    .as_str()
                    .expect("a kernel"),
            );
            let mut bytes = fs::read(&kernel).expect("the kernel");
            // Inside the zero padding of the real-mode part: measured, never executed in an EFI boot.
            let offset = 0x180;
            bytes[offset] ^= 1;
            fs::write(&kernel, bytes).expect("writing the kernel");
        },
        "RTMR1",
    );
}

/// One bit, in each kind of thing that the root consists of: the kernel reads the first three before it starts the
/// agent, the agent's own constants are read for its certificate, and libraries when the engine starts or when all of
/// the root is locked in memory. dm-verity has to name the block, and the guest has to end.
#[test]
fn a_flipped_bit_anywhere_in_the_root_ends_the_guest() {
    let Some(image) = Image::from_env() else { return };
    let node = Node::configure(&image);
    let copy = image.copy_to(&node.path("tampered"));
    node.write_config(&copy, "");
    let manifest = Manifest::load(&copy.manifest).expect("the manifest");
    let path = Manifest::artifact_path(&copy.manifest, &manifest.artifacts.root);
    let root = File::options().read(true).write(true).open(&path);
    let root = root.expect("the root");
    for (place, offset) in places(&manifest, &path) {
        flip(&root, offset);
        refused_by_kernel(&node, place, offset / BLOCK_BYTES);
        flip(&root, offset);
    }
}

fn places(manifest: &Manifest, root: &Path) -> [(&'static str, u64); 6] {
    let content = fs::read(root).expect("the root");
    let (blocks, all_blocks) = (
        manifest.root_verity.data_blocks,
        content.len() as u64 / BLOCK_BYTES,
    );
    let constant = b"cocoon-tls-v1";
    let constant = content
        .windows(constant.len())
        .position(|window| window == constant);
    // libtorch has more than half of all blocks, so the one in the middle is its.
    let largest = manifest
        .files
        .iter()
        .max_by_key(|file| file.bytes)
        .expect("files");
    assert!(largest.path.contains("libtorch") && largest.bytes > blocks * BLOCK_BYTES / 2);
    [
        ("the superblock", SUPERBLOCK_OFFSET),
        ("the first inode", BLOCK_BYTES),
        ("the top of the hash tree", blocks * BLOCK_BYTES),
        ("the last leaf of the hash tree", (all_blocks - 1) * BLOCK_BYTES),
        (
            "the agent's constants",
            constant.expect("the agent is in the root") as u64,
        ),
        ("a library", blocks / 2 * BLOCK_BYTES),
    ]
}

fn refused_by_kernel(node: &Node, place: &str, block: u64) {
    let up = node.up();
    assert_eq!(up.status.code(), Some(EXIT_GUEST), "{place}: {}", describe(&up));
    let console = fs::read_to_string(node.path("state/console.log")).expect("the guest's console");
    let says = format!("block {block} is corrupted");
    assert!(console.contains(&says), "{place}: {says:?} is not in\n{console}");
    assert_eq!(
        node.verify("policy.toml").status.code(),
        Some(EXIT_CONNECT),
        "{place}"
    );
    assert_eq!(
        node.processes(),
        Vec::<String>::new(),
        "{place}: something is left running"
    );
}

fn flip(file: &File, offset: u64) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("reading the root");
    byte[0] ^= 0x40;
    file.write_all_at(&byte, offset).expect("writing the root");
}
