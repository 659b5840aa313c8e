//! Processor time from the kernel's start to the agent's first line, under emulation.
//!
//! `scripts/quickstart` builds what this boots; then, with COCOON_E2E_IMAGE and COCOON_E2E_MODEL set as `scripts/test`
//! sets them, `cargo bench --profile dev --workspace --bench boot`. With COCOON_E2E_RELEASE, the folder of an image for
//! the CPU, that is measured, too. It prints no line: there the agent's first words to the host count, which come after its
//! mounts, its event loop and a connection. What counts is the processor time that QEMU takes, all its threads: on a busy
//! machine it grows much less than the time that passes.
//!
//! Firmware's own time is taken off: what QEMU has taken when the kernel is entered, in the same boot. The kernel's file
//! is given a few instructions more, which run first and tell so. With two processors the second one is measured, too:
//! firmware leaves it in a loop until the kernel takes it over.

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

const TURNS: usize = 9;
const GOAL: Duration = Duration::from_secs(1);
const BOOT_MAX: Duration = Duration::from_secs(120);
/// How late a moment may be noticed.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Linux counts processor time for user space in units of 10 ms (USER_HZ is 100 on every x86).
const TICK: Duration = Duration::from_millis(10);

/// QEMU as it was asked for, with the kernel beside this script, and with what is written to a port.
const QEMU: &str = r#"#!/bin/sh
set -eu
here=$(dirname "$0")
echo $$ > "$here/pid"
for argument; do
    shift
    case $argument in */kernel) argument=$here/kernel ;; esac
    set -- "$@" "$argument"
done
exec qemu-system-x86_64 "$@" -chardev "file,id=told,path=$here/told" -device isa-debugcon,iobase=0x4c0,chardev=told
"#;
/// `push rax; push rdx; mov dx, 0x4c0; mov al, '!'; out dx, al; pop rdx; pop rax; jmp`, and how far to jump.
const TELL: [u8; TELL_SIZE as usize] = [
    0x50, 0x52, 0x66, 0xba, 0xc0, 0x04, 0xb0, b'!', 0xee, 0x5a, 0x58, 0xe9, 0, 0, 0, 0,
];
const TELL_SIZE: u32 = 16;
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
    let telling = telling(fs::read(kernel).expect("the kernel"));
    for vcpus in [1, 2] {
        let node = Node::configure(image);
        let spec =
            format!("platform = \"simulated\"\nmachine = \"q35-1\"\nvcpus = {vcpus}\nmemory_mib = 1024\n");
        fs::write(node.path("launch.toml"), spec).expect("writing launch.toml");
        fs::write(node.path("kernel"), &telling).expect("writing the kernel");
        let qemu = node.write_program("qemu", QEMU);
        node.write_config(image, &format!("[tools]\nqemu = \"{}\"", qemu.display()));
        // The first start also tries whether KVM can be used, in a machine of its own.
        node.up();
        node.down();

        let boots = (0..TURNS).map(|_| boot(&node, &node.path(file), words));
        let (firmware, beyond) = boots.unzip();
        report(name, vcpus, firmware, beyond);
    }
}

fn report(name: &str, vcpus: u32, mut firmware: Vec<Duration>, mut beyond: Vec<Duration>) {
    firmware.sort_unstable();
    beyond.sort_unstable();
    let (fastest, median) = (beyond[0], beyond[TURNS / 2]);
    let reached = if median <= GOAL { "reached" } else { "not reached" };
    println!(
        "{name}, {vcpus} vCPUs: fastest {fastest:.2?}, median {median:.2?} of {TURNS}, beyond firmware's {:.2?}; \
         goal {GOAL:?}: {reached}",
        firmware[TURNS / 2]
    );
}

/// The same file with another entry point, which tells that it was entered and goes on at the first one. (PE format:
/// the header's place is at 0x3c; in it the number of sections at 6, the size of the rest of it at 20, the entry point
/// at 40; a section's place is 20 bytes into its own header, the size of what is there at 16. A kernel has each section
/// at the place in the file that it has in memory, and code is followed by zeros up to a page.)
fn telling(mut kernel: Vec<u8>) -> Vec<u8> {
    let word = |at: usize| u32::from_le_bytes(*kernel[at..].first_chunk().expect("a kernel is longer"));
    let number = |at: usize| word(at) as usize;
    let header = number(0x3c);
    assert!(
        kernel[header..].starts_with(b"PE\0\0"),
        "the kernel is no EFI program"
    );
    let entry = word(header + 40);
    let sections = header + 24 + (number(header + 20) & 0xffff);
    let text = (0..number(header + 6) & 0xffff)
        .map(|nth| sections + 40 * nth)
        .find(|section| kernel[*section..].starts_with(b".text\0"))
        .expect("a kernel has code");
    let end = word(text + 20) + word(text + 16);
    let start = end - TELL_SIZE;
    let tail = &kernel[..end as usize];
    assert!(
        tail.ends_with(&[0; 2 * TELL_SIZE as usize]),
        "no room behind the kernel's code"
    );
    let mut put = |at: u32, bytes: &[u8]| kernel[at as usize..][..bytes.len()].copy_from_slice(bytes);
    put(start, &TELL);
    put(end - 4, &entry.wrapping_sub(end).to_le_bytes());
    put(header as u32 + 40, &start.to_le_bytes());
    kernel
}

/// The processor time of a QEMU from its start until the kernel is entered, and from then until these words are in a
/// file.
fn boot(node: &Node, file: &Path, words: &str) -> (Duration, Duration) {
    let told = node.path("told");
    for stale in [file, &told, &node.path("pid")] {
        let _ = fs::remove_file(stale);
    }
    thread::scope(|scope| {
        let said = fs::File::create(node.path(BY_LAUNCHER.0)).expect("a file for what the launcher says");
        let up = scope.spawn(|| node.up_command().stdout(Stdio::null()).stderr(said).status());
        let begin = Instant::now();
        let time_at = |file: &Path, words: &str| {
            while !fs::read(file).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(words)) {
                assert!(begin.elapsed() < BOOT_MAX, "no {words:?} in {}", file.display());
                thread::sleep(LOOK_EVERY);
            }
            processor_time(pid(node))
        };
        let firmware = time_at(&told, "!");
        let all = time_at(file, words);
        // Where there is no TDX, a release image's guest ends by itself: it may be gone.
        let _ = node.kill_process(pid(node));
        let ended = up.join().expect("the launcher ends with its guest");
        ended.expect("the launcher runs");
        (firmware, all - firmware)
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
