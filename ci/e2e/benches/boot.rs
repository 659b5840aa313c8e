//! Processor time from the kernel's start to the agent's first line, under emulation.
//!
//! `scripts/quickstart` builds what this boots; then, with COCOON_E2E_IMAGE and COCOON_E2E_MODEL set as `scripts/test`
//! sets them, `cargo bench --profile dev --workspace --bench boot`. What counts is the processor time that QEMU takes,
//! all its threads: on a busy machine it grows much less than the time that passes. The last thing that firmware does
//! before it starts the kernel is to ask QEMU how long the initrd is; QEMU's trace shows when.
//!
//! With two processors the second one is measured, too: firmware leaves it in a loop until the kernel takes it over.

#![allow(clippy::panic, reason = "a benchmark fails by panicking")]

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use cocoon_e2e::{Image, Node};

const TURNS: usize = 7;
const GOAL: Duration = Duration::from_secs(1);
const BOOT_MAX: Duration = Duration::from_secs(120);
/// How late a moment may be noticed.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Linux counts processor time for user space in units of 10 ms (USER_HZ is 100 on every x86).
const TICK: Duration = Duration::from_millis(10);

const QEMU_WITH_TRACE: &str = r#"#!/bin/sh
set -eu
echo $$ > "$(dirname "$0")/pid"
exec qemu-system-x86_64 "$@" -trace fw_cfg_select -D "$(dirname "$0")/trace"
"#;
const KERNEL_STARTS: &str = "key 0x000b";
const AGENT_SPEAKS: &str = "cocoon-agent";

fn main() {
    let Some(image) = Image::from_env() else { return };
    for vcpus in [1, 2] {
        let node = Node::configure(&image);
        let spec =
            format!("platform = \"simulated\"\nmachine = \"q35-1\"\nvcpus = {vcpus}\nmemory_mib = 1024\n");
        fs::write(node.path("launch.toml"), spec).expect("writing launch.toml");
        let qemu = node.write_program("qemu-with-trace", QEMU_WITH_TRACE);
        node.write_config(&image, &format!("[tools]\nqemu = \"{}\"", qemu.display()));
        // The first start also tries whether KVM can be used, in a machine of its own.
        node.up_and_serving();
        assert!(node.down().status.success());
        let mut times: Vec<_> = (0..TURNS).map(|_| boot(&node)).collect();
        times.sort_unstable();
        let (fastest, median) = (times[0], times[TURNS / 2]);
        let reached = if median <= GOAL { "reached" } else { "not reached" };
        println!(
            "{vcpus} vCPUs: fastest {fastest:.2?}, median {median:.2?} of {TURNS}; goal {GOAL:?}: {reached}"
        );
    }
}

fn boot(node: &Node) -> Duration {
    let (trace, console) = (node.path("trace"), node.path("state/console.log"));
    for stale in [&trace, &console] {
        let _ = fs::remove_file(stale);
    }
    thread::scope(|scope| {
        let up = scope.spawn(|| node.up());
        let start = moment(node, &trace, KERNEL_STARTS);
        let end = moment(node, &console, AGENT_SPEAKS);
        node.kill_process(pid(node));
        up.join().expect("the launcher ends with its guest");
        end - start
    })
}

/// QEMU's processor time when these words are first seen in a file.
fn moment(node: &Node, file: &Path, words: &str) -> Duration {
    let begin = Instant::now();
    loop {
        if fs::read(file).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(words)) {
            return processor_time(pid(node));
        }
        assert!(begin.elapsed() < BOOT_MAX, "no {words:?} in {}", file.display());
        thread::sleep(LOOK_EVERY);
    }
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
