//! What a provider may try with what is booted. Each has to end at the client, or before.

use std::{fs, path::Path};

use cocoon_e2e::{Image, Node, describe};
use serde_json::Value;

/// `cocoon` exits with this when a value is not what the policy says.
const EXIT_POLICY: i32 = 10;
/// `cocoon-launch` exits with this when the guest does not come up.
const EXIT_GUEST: i32 = 4;

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

/// The byte lies in the agent's own program, behind the domain tag that it hashes for its certificate: it
/// is read before the endpoint can be served, and dm-verity has to stop it there.
#[test]
fn a_flipped_byte_in_the_root_does_not_serve() {
    let Some(image) = Image::from_env() else { return };
    let node = Node::configure(&image);
    let copy = tampered(&image, &node, |dir, manifest| {
        let root = dir.join(manifest["artifacts"]["root"]["file"].as_str().expect("a root"));
        let mut bytes = fs::read(&root).expect("the root");
        let tag = b"cocoon-tls-v1";
        let offset = bytes
            .windows(tag.len())
            .position(|window| window == tag)
            .expect("the agent is in the root");
        bytes[offset] ^= 1;
        fs::write(&root, bytes).expect("writing the root");
    });
    node.write_config(&copy, "");
    let up = node.up();
    assert_eq!(up.status.code(), Some(EXIT_GUEST), "{}", describe(&up));
    assert_eq!(node.verify("policy.toml").status.code(), Some(20));
    assert_eq!(
        node.processes(),
        Vec::<String>::new(),
        "something is left running"
    );
}
