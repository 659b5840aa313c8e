//! The program against a library that pretends to be NVIDIA's (fake_nvml.c).

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::{fd::AsRawFd as _, unix::net::UnixStream, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::OnceLock,
    time::Duration,
};

use cocoon_evidence::GpuEvidence;
use cocoon_protocol::{
    FrameError,
    gpu::{FromGpu, GPU_SOCKET_FD, ToGpu},
    read_frame, write_frame,
};
use tempfile::TempDir;

const NONCE: [u8; 32] = [7; 32];

fn fake() -> &'static Path {
    static LIBRARY: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = LIBRARY.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libnvidia-ml.so.1");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake_nvml.c");
        let arguments = ["-shared", "-fPIC", "-Wall", "-Werror", "-o"];
        let status = Command::new("cc")
            .args(arguments)
            .arg(&path)
            .arg(source)
            .status()
            .unwrap();
        assert!(status.success());
        (folder, path)
    });
    path
}

/// The program, and the agent's end of its socket.
struct Gpu {
    child: Child,
    socket: UnixStream,
}

impl Gpu {
    fn start(library: &Path, environment: &[(&str, &str)]) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cocoon-gpu"));
        command
            .arg(library)
            .envs(environment.iter().copied())
            .stderr(Stdio::null());
        hand_over(&mut command, theirs.as_raw_fd());
        Self {
            child: command.spawn().unwrap(),
            socket: ours,
        }
    }

    fn fake(environment: &[(&str, &str)]) -> Self {
        Self::start(fake(), environment)
    }

    fn ask(&mut self, message: &ToGpu) -> FromGpu {
        write_frame(&mut self.socket, message).unwrap();
        self.hear()
    }

    fn hear(&mut self) -> FromGpu {
        read_frame(&mut self.socket).unwrap()
    }

    fn collect(&mut self) -> FromGpu {
        self.ask(&ToGpu::Collect { nonce: NONCE })
    }

    /// It says nothing more and exits.
    fn end(mut self) -> ExitStatus {
        assert!(matches!(
            read_frame::<FromGpu>(&mut self.socket),
            Err(FrameError::Closed)
        ));
        self.child.wait().unwrap()
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[allow(
    unsafe_code,
    reason = "leaves a descriptor open for the child, as the agent does"
)]
fn hand_over(command: &mut Command, socket: i32) {
    unsafe extern "C" {
        fn dup2(from: i32, to: i32) -> i32;
    }
    let duplicate = move || {
        // SAFETY: a system call on integers.
        match unsafe { dup2(socket, GPU_SOCKET_FD) } {
            GPU_SOCKET_FD => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: `duplicate` makes one system call.
    unsafe { command.pre_exec(duplicate) };
}

fn reason(message: FromGpu) -> String {
    match message {
        FromGpu::Nothing { reason } => format!("nothing: {reason}"),
        FromGpu::Failed { reason } => format!("failed: {reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_gpu_answers_under_the_nonce() {
    let mut gpu = Gpu::fake(&[("FAKE_COUNT", "2")]);
    let FromGpu::Evidence { items } = gpu.collect() else {
        panic!("no evidence");
    };
    assert_eq!(items.len(), 2);
    for (device, item) in (1..).zip(&items) {
        assert_eq!(
            (&item.report[..32], item.report[32], item.report.len()),
            (&NONCE[..], device, 40)
        );
        assert_eq!((item.certificates[0], item.certificates.len()), (device, 40));
        assert!(item.confidential_compute && !item.dev_tools);
    }
}

#[test]
fn the_state_is_told_as_it_is() {
    let state = |environment: &[(&str, &str)]| {
        let mut gpu = Gpu::fake(environment);
        let FromGpu::Evidence { items } = gpu.collect() else {
            panic!("no evidence");
        };
        let [
            GpuEvidence {
                confidential_compute,
                dev_tools,
                ..
            },
        ] = items[..]
        else {
            panic!("not one GPU");
        };
        (confidential_compute, dev_tools)
    };
    assert_eq!(state(&[("FAKE_CC", "0")]), (false, false));
    assert_eq!(state(&[("FAKE_TOOLS", "1")]), (true, true));
    assert_eq!(
        state(&[("FAKE_ENVIRONMENT", "1")]),
        (false, false),
        "a simulated environment"
    );
}

#[test]
fn no_library_no_driver_and_no_gpu_are_clear_states() {
    let mut none = Gpu::start(Path::new("/nonexistent/libnvidia-ml.so.1"), &[]);
    assert!(reason(none.collect()).starts_with("nothing: there is no NVIDIA library"));
    assert!(none.end().success());
    let mut not_loaded = Gpu::fake(&[("FAKE_INIT", "9")]);
    let words = "nothing: the NVIDIA driver is not loaded: Driver Not Loaded (9)";
    assert_eq!(reason(not_loaded.collect()), words);
    let mut empty = Gpu::fake(&[("FAKE_COUNT", "0")]);
    assert_eq!(reason(empty.collect()), "nothing: the NVIDIA driver knows no GPU");
}

#[test]
fn a_library_that_is_another_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("other.c"), folder.path().join("other.so"));
    fs::write(&source, "int other(void) { return 0; }").unwrap();
    let mut cc = Command::new("cc");
    assert!(
        cc.args(["-shared", "-o"])
            .arg(&library)
            .arg(&source)
            .status()
            .unwrap()
            .success()
    );
    let mut other = Gpu::start(&library, &[]);
    let words = reason(other.collect());
    assert!(
        words.starts_with("failed: the NVIDIA library has no function nvmlInit_v2"),
        "{words}"
    );
}

#[test]
fn lengths_and_counts_that_lie_are_refused() {
    for (name, value) in [
        ("FAKE_LENGTH", "8193"),
        ("FAKE_LENGTH", "-1"),
        ("FAKE_COUNT", "17"),
    ] {
        let words = reason(Gpu::fake(&[(name, value)]).collect());
        assert!(words.starts_with("failed: the NVIDIA driver returned"), "{words}");
    }
}

#[test]
fn a_failing_driver_is_told_in_its_words() {
    let words = reason(Gpu::fake(&[("FAKE_INIT", "999")]).collect());
    assert_eq!(words, "failed: starting NVML: NVML says: Some Error (999)");
}

#[test]
fn gpus_that_do_not_become_ready_are_refused() {
    let mut gpu = Gpu::fake(&[("FAKE_STUCK", "1")]);
    gpu.collect();
    assert!(reason(gpu.ask(&ToGpu::SetReady)).starts_with("failed: a GPU was reset"));
}

#[test]
fn a_reset_and_a_critical_error_end_the_watch() {
    for (content, words) in [
        ("reset", "failed: a GPU was reset"),
        ("79", "failed: a GPU reported critical error XID 79"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let trouble = folder.path().join("trouble");
        let mut gpu = Gpu::fake(&[("FAKE_TROUBLE", trouble.to_str().unwrap())]);
        gpu.collect();
        assert_eq!(gpu.ask(&ToGpu::SetReady), FromGpu::Ready);
        fs::write(folder.path().join("new"), content).unwrap();
        fs::rename(folder.path().join("new"), trouble).unwrap();
        let heard = reason(gpu.hear());
        assert!(heard.starts_with(words), "{heard}");
        assert!(gpu.end().success());
    }
}

#[test]
fn gpus_are_not_set_ready_before_their_evidence_was_taken() {
    let mut gpu = Gpu::fake(&[]);
    write_frame(&mut gpu.socket, &ToGpu::SetReady).unwrap();
    assert!(!gpu.end().success());
}

#[test]
fn without_an_agent_the_program_ends() {
    let gpu = Gpu::fake(&[]);
    gpu.socket.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(!gpu.end().success());
}
