//! Processor time from the kernel's start to the agent's first line, under emulation.
//!
//! `scripts/quickstart` builds what this boots; then, with COCOON_E2E_IMAGE and COCOON_E2E_MODEL set as `scripts/test`
//! sets them, `cargo bench --profile dev --workspace --bench boot`. With COCOON_E2E_RELEASE, the folder of an image for
//! the CPU, that is measured, too. It prints no line: there the agent's first words to the host count, which come after its
//! mounts, its event loop and a connection. What counts is the processor time that QEMU takes, all its threads: on a busy
//! machine it grows much less than the time that passes.
//!
//! Firmware's own time is measured in turns with it and taken off: it is what QEMU has taken when the same kernel file
//! is started, whose first instructions here are others, which tell so and wait. With two processors the second one
//! is measured, too: firmware leaves it in a loop until the kernel takes it over.

#![allow(clippy::panic, reason = "a benchmark fails by panicking")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use cocoon_e2e::{Image, Node};
use cocoon_measurements::Manifest;

const TURNS: usize = 7;
const GOAL: Duration = Duration::from_secs(1);
const BOOT_MAX: Duration = Duration::from_secs(120);
/// How late a moment may be noticed.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Linux counts processor time for user space in units of 10 ms (USER_HZ is 100 on every x86).
const TICK: Duration = Duration::from_millis(10);

/// QEMU as it was asked for, if there is a kernel beside this script with that one, and what is written to a port.
const QEMU: &str = r#"#!/bin/sh
set -eu
here=$(dirname "$0")
echo $$ > "$here/pid"
for argument; do
    shift
    case $argument in */kernel) [ ! -e "$here/kernel" ] || argument=$here/kernel ;; esac
    set -- "$@" "$argument"
done
exec qemu-system-x86_64 "$@" -chardev "file,id=told,path=$here/told" -device isa-debugcon,iobase=0x4c0,chardev=told
"#;
/// `mov dx, 0x4c0; mov al, '!'; out dx, al; jmp $`.
const TELL_AND_WAIT: [u8; 9] = [0x66, 0xba, 0xc0, 0x04, 0xb0, b'!', 0xee, 0xeb, 0xfe];
/// Where the agent's first line is seen, and what is in it: on the console of a dev image.
const ON_CONSOLE: (&str, &str) = ("state/console.log", "cocoon-agent");
/// Likewise its first words to the host: in what the launcher says.
const BY_LAUNCHER: (&str, &str) = ("said", "guest: agent");

fn main() {
    let Some(dev) = Image::from_env() else { return };
    let release = env::var_os("COCOON_E2E_RELEASE").map(|folder| Image {
        manifest: PathBuf::from(folder).join("manifest.json"),
        model: dev.model.clone(),
    });
    measure("dev", &dev, ON_CONSOLE);
    if let Some(release) = release {
        measure("release", &release, BY_LAUNCHER);
    }
}

fn measure(name: &str, image: &Image, (file, words): (&str, &str)) {
    let manifest = Manifest::load(&image.manifest).expect("the manifest");
    let kernel = Manifest::artifact_path(&image.manifest, &manifest.artifacts.kernel);
    let replaced = without_kernel(fs::read(kernel).expect("the kernel"));
    for vcpus in [1, 2] {
        let node = Node::configure(image);
        let spec =
            format!("platform = \"simulated\"\nmachine = \"q35-1\"\nvcpus = {vcpus}\nmemory_mib = 1024\n");
        fs::write(node.path("launch.toml"), spec).expect("writing launch.toml");
        let qemu = node.write_program("qemu", QEMU);
        node.write_config(image, &format!("[tools]\nqemu = \"{}\"", qemu.display()));
        // The first start also tries whether KVM can be used, in a machine of its own.
        node.up();
        node.down();

        let (mut firmware, mut all) = (vec![], vec![]);
        for _ in 0..TURNS {
            fs::write(node.path("kernel"), &replaced).expect("writing the kernel");
            firmware.push(boot(&node, &node.path("told"), "!"));
            fs::remove_file(node.path("kernel")).expect("it was written");
            all.push(boot(&node, &node.path(file), words));
        }
        report(name, vcpus, firmware, all);
    }
}

fn report(name: &str, vcpus: u32, mut firmware: Vec<Duration>, mut all: Vec<Duration>) {
    firmware.sort_unstable();
    all.sort_unstable();
    let beyond = |nth: usize| all[nth].saturating_sub(firmware[nth]);
    let (fastest, median) = (beyond(0), beyond(TURNS / 2));
    let reached = if median <= GOAL { "reached" } else { "not reached" };
    println!(
        "{name}, {vcpus} vCPUs: fastest {fastest:.2?}, median {median:.2?} of {TURNS}, beyond firmware's {:.2?}; \
         goal {GOAL:?}: {reached}",
        firmware[TURNS / 2]
    );
}

/// The same file, which firmware loads just so, with nothing behind its entry point (PE format: the header's place is
/// at 0x3c, the entry point 40 bytes behind it; a kernel has each section at the place in the file that it has in
/// memory).
fn without_kernel(mut kernel: Vec<u8>) -> Vec<u8> {
    let number =
        |at: usize| u32::from_le_bytes(*kernel[at..].first_chunk().expect("a kernel is longer")) as usize;
    let header = number(0x3c);
    assert!(
        kernel[header..].starts_with(b"PE\0\0"),
        "the kernel is no EFI program"
    );
    let entry = number(header + 40);
    kernel[entry..][..TELL_AND_WAIT.len()].copy_from_slice(&TELL_AND_WAIT);
    kernel
}

/// The processor time of a QEMU from its start until these words are in a file.
fn boot(node: &Node, file: &Path, words: &str) -> Duration {
    for stale in [file, &node.path("pid")] {
        let _ = fs::remove_file(stale);
    }
    thread::scope(|scope| {
        let said = fs::File::create(node.path(BY_LAUNCHER.0)).expect("a file for what the launcher says");
        let up = scope.spawn(|| node.up_command().stdout(Stdio::null()).stderr(said).status());
        let begin = Instant::now();
        while !fs::read(file).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(words)) {
            assert!(begin.elapsed() < BOOT_MAX, "no {words:?} in {}", file.display());
            thread::sleep(LOOK_EVERY);
        }
        let pid = pid(node);
        let time = processor_time(pid);
        // Where there is no TDX, a release image's guest ends by itself: it may be gone.
        let _ = node.kill_process(pid);
        let ended = up.join().expect("the launcher ends with its guest");
        ended.expect("the launcher runs");
        time
    })
}

fn pid(node: &Node) -> u64 {
    let text = fs::read_to_string(node.path("pid")).expect("QEMU was started");
    text.trim().parse().expect("a process id")
}

/// proc(5), `/proc/PID/stat`: fields 14 and 15, counted behind the name, which may hold blanks.
fn processor_time(pid: u64) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("QEMU runs");
    let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: u32 = ticks.map(|field| field.parse::<u32>().expect("a number")).sum();
    TICK * ticks
}
