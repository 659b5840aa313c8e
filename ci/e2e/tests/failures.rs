//! What goes wrong on an honest machine: each ends with what was attempted, why it failed and what to do, a
//! documented exit code, nothing left running and nothing lost. docs/TROUBLESHOOTING.md lists them.

use std::{
    fs::{self, File},
    io::Write as _,
    net::TcpListener,
    path::PathBuf,
    process::Command,
};

use cocoon_e2e::{Image, Node, describe, eventually};
use serde_json::Value;

const EXIT_USAGE: i32 = 2;
const EXIT_MISSING: i32 = 3;
const EXIT_BOOT: i32 = 4;
const EXIT_BUSY: i32 = 5;

/// `up` has to end with this code and say all of these words, and leave nothing running.
fn up_fails(node: &Node, code: i32, words: &[&str]) {
    let up = node.up();
    let text = describe(&up);
    assert_eq!(up.status.code(), Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not said\n{text}");
    }
    assert_eq!(
        node.processes(),
        Vec::<String>::new(),
        "something is left running"
    );
}

#[test]
fn a_missing_qemu_is_named_with_its_package() {
    let Some(image) = Image::from_env() else { return };
    let node = Node::configure(&image);
    node.write_config(&image, "[tools]\nqemu = \"/nonexistent/qemu\"");
    up_fails(&node, EXIT_MISSING, &["/nonexistent/qemu", "qemu-system-x86"]);
}

#[test]
fn a_taken_port_is_named() {
    let Some(image) = Image::from_env() else { return };
    let node = Node::configure(&image);
    let address = node.url().replace("https://", "");
    let _taken = TcpListener::bind(&address).expect("the node's port");
    up_fails(&node, EXIT_BUSY, &[&address]);
}

#[test]
fn a_missing_model_volume_is_named() {
    let Some(image) = Image::from_env() else { return };
    let node = Node::configure(&image);
    let missing = Image {
        model: node.path("no-such-model.img"),
        ..image
    };
    node.write_config(&missing, "");
    up_fails(&node, EXIT_USAGE, &["no-such-model"]);
}

#[test]
fn a_kernel_that_is_none_is_refused_before_boot() {
    let Some(image) = Image::from_env() else { return };
    let node = Node::configure(&image);
    let copy = image.copy_to(&node.path("image"));
    let manifest: Value =
        serde_json::from_slice(&fs::read(&copy.manifest).expect("the manifest")).expect("JSON");
    let kernel = manifest["artifacts"]["kernel"]["file"]
        .as_str()
        .expect("a kernel");
    fs::write(copy.manifest.with_file_name(kernel), "not a kernel").expect("writing the kernel");
    node.write_config(&copy, "");
    up_fails(&node, EXIT_USAGE, &["kernel"]);
}

/// dm-verity refuses the first block of the model; the guest says so and powers off.
#[test]
fn an_unreadable_model_ends_the_boot_with_its_reason() {
    let Some(image) = Image::from_env() else { return };
    let node = Node::configure(&image);
    let model = node.path("model.img");
    let mut bytes = fs::read(&image.model).expect("the model volume");
    bytes[1024] ^= 1;
    fs::write(&model, bytes).expect("writing the model volume");
    fs::copy(image.model.with_extension("json"), model.with_extension("json")).expect("its description");
    node.write_config(&Image { model, ..image }, "");
    up_fails(&node, EXIT_BOOT, &["model volume"]);
}

/// The answer is given, the record waits in the guest, and is stored and paid once there is room.
#[test]
fn a_full_disk_loses_no_record() {
    let Some(image) = Image::from_env() else { return };
    let node = Node::configure(&image);
    let Some(state) = SmallDisk::mount(&node) else {
        return;
    };
    node.succeed(
        "cocoon-launch",
        ["root", "--config", "node.toml", "--out", "root.pem"],
    );
    node.predict(&image.manifest);
    node.up_and_serving();
    // A cap for all answers of this test: locking another grant would need room on the disk as well.
    let ask = || {
        let mut command = node.chat_command("policy.toml", "What is Cocoon?");
        let answer = command.args(["--max-ton", "5"]).output().expect("cocoon runs");
        assert!(answer.status.success(), "{}", describe(&answer));
    };
    ask();
    eventually("the first record is settled", || node.balance_nano() > 0);
    let before = node.balance_nano();

    state.fill();
    // The journal's last page still has room for some.
    let answers = (2..10).find(|&answers| {
        ask();
        std::thread::sleep(std::time::Duration::from_secs(2));
        node.records().len() < answers
    });
    let answers = answers.expect("records do not fit on a full disk");

    state.free();
    eventually("every record is stored", || node.records().len() == answers);
    eventually("they are settled", || node.balance_nano() > before);
    assert!(node.down().status.success());
}

/// A file system of a few megabytes under a node's state; when dropped, the node is stopped and it is unmounted.
struct SmallDisk<'a> {
    node: &'a Node,
    path: PathBuf,
}

impl<'a> SmallDisk<'a> {
    fn mount(node: &'a Node) -> Option<Self> {
        let path = node.path("state");
        fs::create_dir_all(&path).expect("a mount point");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"])
            .arg(&path)
            .status();
        if !mount.is_ok_and(|status| status.success()) {
            eprintln!("SKIP: mounting a small disk needs root");
            return None;
        }
        Some(Self { node, path })
    }

    fn fill(&self) {
        let mut file = File::create(self.path.join("filler")).expect("a file to fill the disk");
        for size in [1 << 16, 1 << 12, 1 << 6, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.path.join("filler")).expect("removing the filler");
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // Unmounted first, a node that still runs could not be found any more.
        let _ = self.node.down();
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}
