//! A release image boots and says nothing: of kernel and agent no byte on any console that a host can attach, and the
//! agent runs as far as it can on a machine that is no confidential one.
//!
//! `COCOON_E2E_RELEASE` names the folder that `cocoon-image build --profile cpu` wrote; `ci/release-boot` sets it.
//! Without it the test skips with a message: building that image takes half an hour.

use std::{env, fs, path::Path};

use cocoon_e2e::{Image, Node, describe};
use serde_json::Value;

/// `cocoon-launch` exits with this when the guest does not come up.
const EXIT_GUEST: i32 = 4;

/// QEMU as it was asked for, with every further device that a kernel might write to.
const CONSOLES: [&str; 4] = ["state/console.log", "serial", "virtio", "parallel"];
const QEMU_WITH_CONSOLES: &str = r#"#!/bin/sh
set -eu
dir=$(dirname "$0")
exec qemu-system-x86_64 "$@" -serial "file:$dir/serial" \
    -device virtio-serial-pci -chardev "file,id=virtio,path=$dir/virtio" -device virtconsole,chardev=virtio \
    -parallel "file:$dir/parallel"
"#;

/// Firmware clears what it takes for a terminal, before it starts the kernel.
const CLEAR_SCREEN: [&str; 3] = ["\u{1b}[2J", "\u{1b}[01;01H", "\u{1b}[=3h"];

/// What would make a kernel talk that can.
const LOUD: &str = "console=ttyS0 console=ttyS1 console=hvc0 console=lp0 earlyprintk=serial,ttyS0 \
                    earlycon=uart8250,io,0x3f8 ignore_loglevel debug initcall_debug";

#[test]
fn a_release_image_starts_its_agent_and_prints_nothing() {
    let Some(image) = release() else { return };
    let node = Node::configure(&image);
    boots_silently(&node, &image);
}

/// Another command line is another RTMR2, so no client would take this guest. But neither can a host make it talk.
#[test]
fn a_command_line_cannot_make_a_release_kernel_talk() {
    let Some(image) = release() else { return };
    let node = Node::configure(&image);
    let loud = image.copy_to(&node.path("loud"));
    let text = fs::read(&loud.manifest).expect("the manifest");
    let mut manifest: Value = serde_json::from_slice(&text).expect("the manifest is JSON");
    let line = manifest["command_line"].as_str().expect("a command line");
    manifest["command_line"] = format!("{LOUD} {}", line.replacen("quiet ", "", 1)).into();
    fs::write(&loud.manifest, manifest.to_string()).expect("writing the manifest");
    boots_silently(&node, &loud);
}

/// The agent tells over vsock why it stops, and so it has been started. It has descriptors 0 to 2, because Rust's
/// start-up code opens `/dev/null` for the missing ones, and ends the program, and with it the guest, where it cannot.
fn boots_silently(node: &Node, image: &Image) {
    let qemu = node.write_program("qemu-with-consoles", QEMU_WITH_CONSOLES);
    node.write_config(image, &format!("[tools]\nqemu = \"{}\"", qemu.display()));
    let up = node.up();
    assert_eq!(up.status.code(), Some(EXIT_GUEST), "{}", describe(&up));
    let says = String::from_utf8_lossy(&up.stderr);
    assert!(
        says.contains("the agent in the guest says: looking for a trusted platform"),
        "{says}"
    );
    for console in CONSOLES {
        let bytes = fs::read(node.path(console)).expect("QEMU makes the file");
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let after_firmware = CLEAR_SCREEN
            .iter()
            .fold(text, |text, code| text.replace(code, ""));
        assert_eq!(after_firmware, "", "{console} was written to");
    }
    assert_eq!(
        node.processes(),
        Vec::<String>::new(),
        "something is left running"
    );
}

fn release() -> Option<Image> {
    let Some(folder) = env::var_os("COCOON_E2E_RELEASE") else {
        eprintln!("SKIP: COCOON_E2E_RELEASE is not set; ci/release-boot FOLDER sets it");
        return None;
    };
    let model = env::var_os("COCOON_E2E_MODEL").expect("COCOON_E2E_MODEL, which ci/release-boot sets");
    Some(Image {
        manifest: Path::new(&folder).join("manifest.json"),
        model: model.into(),
    })
}
