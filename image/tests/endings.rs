//! How `cocoon-image` ends when it is told to, or when the disk is full: nothing is left behind, and nothing half
//! written stands under a final name.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// As long as something is waited for; a test that has to wait longer fails.
const WAIT: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(20);

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..WAIT.as_millis() / TICK.as_millis() {
        if condition() {
            return;
        }
        thread::sleep(TICK);
    }
    panic!("{what} did not happen");
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_cocoon-image"))
}

fn tell_to_end(child: Child, signal: Signal) -> Output {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    child.wait_with_output().unwrap()
}

/// A model whose weights take long to pack and no space.
fn large_model(folder: &Path) {
    fs::create_dir(folder).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        fs::write(folder.join(name), "{}").unwrap();
    }
    let weights = fs::File::create(folder.join("model.safetensors")).unwrap();
    weights.set_len(1 << 40).unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn packing_that_is_told_to_end_leaves_nothing() {
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let dir = tempfile::tempdir().unwrap();
        let (model, out) = (dir.path().join("model"), dir.path().join("out"));
        large_model(&model);
        fs::create_dir(&out).unwrap();
        let mut pack = program();
        pack.args(["model", "pack"])
            .arg(&model)
            .arg("--out")
            .arg(out.join("model.img"));
        let pack = pack.stderr(Stdio::piped()).spawn().unwrap();
        let started = || {
            fs::read_dir(&out)
                .unwrap()
                .flatten()
                .any(|file| file.metadata().unwrap().len() > 0)
        };
        eventually("packing", started);
        let output = tell_to_end(pack, signal);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains("stopped by a signal"), "{said}");
        assert_eq!(names(&out), [""; 0]);
    }
}

/// A cargo that notes who it and its own child are, and never ends.
fn endless_cargo(folder: &Path) {
    let script =
        "#!/bin/sh\nsleep 600 &\necho $$ $! > \"$NOTES.new\" && mv \"$NOTES.new\" \"$NOTES\"\nwait\n";
    let cargo = folder.join("cargo");
    fs::write(&cargo, script).unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn the_programs_it_runs_are_killed_with_all_that_they_started() {
    let dir = tempfile::tempdir().unwrap();
    let sbom = bill_by_endless_cargo(&dir);
    let output = tell_to_end(sbom, Signal::SIGTERM);
    assert_eq!(output.status.code(), Some(143), "{output:?}");
    noted(&dir).into_iter().for_each(ends);
}

/// `cocoon-image sbom`, waiting for a cargo that never ends.
fn bill_by_endless_cargo(dir: &TempDir) -> Child {
    let notes = dir.path().join("notes");
    endless_cargo(dir.path());
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let mut sbom = program();
    sbom.arg("sbom")
        .arg(image_of_this_source(dir))
        .arg("--source")
        .arg(source());
    let sbom = sbom
        .env("PATH", path)
        .env("NOTES", &notes)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("cargo", || notes.exists());
    sbom
}

/// The process ids of the endless cargo and of its child.
fn noted(dir: &TempDir) -> Vec<i32> {
    let noted = fs::read_to_string(dir.path().join("notes")).unwrap();
    let pids: Vec<i32> = noted.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 2);
    pids
}

fn ends(pid: i32) {
    // Whoever adopts a killed process may take its time to notice.
    let gone = || match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(_) => true,
        Ok(stat) => stat.contains(") Z "),
    };
    eventually("the end of a program", gone);
}

/// Nothing of this program runs after SIGKILL: the kernel ends the program that it waited for.
#[test]
fn the_program_it_runs_ends_with_it_when_it_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let sbom = bill_by_endless_cargo(&dir);
    let output = tell_to_end(sbom, Signal::SIGKILL);
    assert_eq!(output.status.code(), None, "{output:?}");
    let pids = noted(&dir);
    ends(pids[0]);
    // What that has started is in nobody's hands outside of the builder root.
    kill(Pid::from_raw(pids[1]), Signal::SIGKILL).unwrap();
}

#[test]
fn waiting_for_another_build_ends_when_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let lock = fs::File::create(dir.path().join("image.lock")).unwrap();
    lock.lock().unwrap();
    let mut unpack = program();
    unpack.args(["lock", "unpack", "--cache"]).arg(dir.path());
    let mut unpack = unpack
        .arg("--source")
        .arg(source())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(unpack.stderr.take().unwrap()).lines();
    let first = said.next().unwrap().unwrap();
    assert!(first.contains("waiting for another image build"), "{first}");
    kill(
        Pid::from_raw(i32::try_from(unpack.id()).unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    let mut status = None;
    eventually("the end", || {
        status = unpack.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(143));
}

fn source() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The smallest manifest that says to be of an image built from this source tree.
fn image_of_this_source(dir: &TempDir) -> std::path::PathBuf {
    let sha256 = |path: &str| {
        let (_, sha256) = cocoon_image::input::hash_file(&source().join(path)).unwrap();
        sha256
    };
    let zeros = "0".repeat(64);
    let artifact = |file: &str| serde_json::json!({"file": file, "bytes": 1, "sha256": zeros});
    let table = format!("1 /dev/vda /dev/vda 4096 4096 1 1 sha256 {zeros} {zeros}");
    let manifest = serde_json::json!({
        "version": 1,
        "profile": "dev",
        "command_line": format!("dm-mod.create=\"root,,0,ro,0 8 verity {table} 0\""),
        "artifacts": {
            "firmware": artifact("firmware.fd"), "kernel": artifact("kernel"), "root": artifact("root.img"),
        },
        "root_verity": {"data_blocks": 1, "salt": zeros, "root_hash": zeros},
        "inputs": {},
        "input_digest": zeros,
        "origin": {
            "image_lock": sha256("image/recipe/image.lock"),
            "cargo_lock": sha256("Cargo.lock"),
        },
        "files": [],
    });
    let folder = dir.path().join("image");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
    folder
}

/// In namespaces of its own a test may mount a disk of any size.
#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    large_model(&model);
    let small = dir.path().join("small");
    fs::create_dir(&small).unwrap();
    let script = "mount -t tmpfs -o size=1m none \"$2\" || exit 99\n\
                  \"$0\" model pack \"$1\" --out \"$2/model.img\"; code=$?\nls -A \"$2\"; exit $code";
    let mut inside = Command::new("unshare");
    inside.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
    inside
        .arg(env!("CARGO_BIN_EXE_cocoon-image"))
        .args([&model, &small]);
    let output = inside.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("is there enough space?") && said.contains("No space left"),
        "{said}"
    );
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "something is left");
}

#[test]
fn a_reader_that_has_left_is_an_error_and_no_panic() {
    let cache = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut check = program();
    check
        .args(["lock", "check", "--cache"])
        .arg(cache.path())
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = check.stdout(writer).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("writing to standard output"), "{said}");
}
