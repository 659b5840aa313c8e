//! Boots real nodes for the end-to-end tests, with the programs that a user runs.
//!
//! The image and the model volume come from `scripts/test`, through COCOON_E2E_IMAGE and COCOON_E2E_MODEL.
//! Without them a test skips with a message; if they are set and missing, it fails.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use cocoon_protocol::{
    host::UsageRecord,
    simulated::{FAULT_PORT, FIRMWARE_LOG_PORT, FirmwareMeasurements, InjectFault},
};
use serde_json::Value;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(60);

/// QEMU as it was asked for, and a software TPM beside it that ends when QEMU does.
const QEMU_WITH_TPM: &str = r#"#!/bin/sh
set -eu
tpm=$(mktemp -d "$(dirname "$0")/tpm.XXXXXX")
swtpm socket --tpm2 --tpmstate "dir=$tpm" --ctrl "type=unixio,path=$tpm/control" --terminate --daemon
exec qemu-system-x86_64 "$@" -chardev "socket,id=tpm,path=$tpm/control" \
    -tpmdev emulator,id=tpm0,chardev=tpm -device tpm-crb,tpmdev=tpm0
"#;

/// QEMU as it was asked for, and a second monitor for the test.
const QEMU_WITH_MONITOR: &str = r#"#!/bin/sh
set -eu
exec qemu-system-x86_64 "$@" -qmp "unix:$(dirname "$0")/monitor,server=on,wait=off"
"#;

/// The account that the provider is paid at; any will do, it only receives.
pub const PAYOUT_ADDRESS: &str = "0:00000000000000000000000000000000000000000000000000000000000e2e00";

/// What the tests boot.
#[derive(Debug, Clone)]
pub struct Image {
    /// `cocoon-image build` wrote this.
    pub manifest: PathBuf,
    /// `cocoon-image model pack` wrote this.
    pub model: PathBuf,
}

impl Image {
    /// The image under test; `None`, with a message, where none was built.
    ///
    /// # Panics
    /// The variables are set but the files are not there.
    pub fn from_env() -> Option<Self> {
        let (Some(image), Some(model)) = (
            std::env::var_os("COCOON_E2E_IMAGE"),
            std::env::var_os("COCOON_E2E_MODEL"),
        ) else {
            eprintln!(
                "SKIP: COCOON_E2E_IMAGE and COCOON_E2E_MODEL are not set; scripts/test builds and sets them"
            );
            return None;
        };
        let image = Self {
            manifest: Path::new(&image).join("manifest.json"),
            model: model.into(),
        };
        for path in [&image.manifest, &image.model] {
            assert!(
                path.is_file(),
                "{} is not there; scripts/test builds it",
                path.display()
            );
        }
        Some(image)
    }
}

impl Image {
    /// A copy of the image in another folder, to be tampered with; the model stays where it is.
    pub fn copy_to(&self, dir: &Path) -> Self {
        fs::create_dir(dir).expect("a folder for the copy");
        let original = self.manifest.parent().expect("a manifest lies in a folder");
        for entry in fs::read_dir(original).expect("the image's folder").flatten() {
            fs::copy(entry.path(), dir.join(entry.file_name())).expect("copying the image");
        }
        Self {
            manifest: dir.join("manifest.json"),
            model: self.model.clone(),
        }
    }
}

/// One node with its configuration, wallet and policy in a folder of its own; stopped when dropped.
#[derive(Debug)]
pub struct Node {
    dir: TempDir,
    port: u16,
}

impl Node {
    /// Configures a node, predicts it and writes its policy; boots nothing.
    pub fn configure(image: &Image) -> Self {
        let node = Self {
            dir: TempDir::new().expect("a temporary folder"),
            port: free_port(),
        };
        node.write_config(image, "");
        fs::write(
            node.path("launch.toml"),
            "platform = \"simulated\"\nmachine = \"q35-1\"\nvcpus = 2\nmemory_mib = 1024\n",
        )
        .expect("writing launch.toml");
        node.succeed(
            "cocoon-launch",
            ["document", "--config", "node.toml", "--out", "launch.json"],
        );
        node.succeed(
            "cocoon-launch",
            ["root", "--config", "node.toml", "--out", "root.pem"],
        );
        node.predict(&image.manifest);
        node
    }

    /// Writes node.toml; `more` is added to its `[settlement]` section, or opens further ones.
    pub fn write_config(&self, image: &Image, more: &str) {
        let (manifest, model, port) = (image.manifest.display(), image.model.display(), self.port);
        let config = format!(
            "state_dir = \"state\"\nspec = \"launch.toml\"\n\
             [image]\nmanifest = \"{manifest}\"\n\
             [model]\nname = \"cocoon-demo\"\nvolume = \"{model}\"\nnumeric_profile = \"f32\"\n\
             [prices]\ninput_nano_per_kilotoken = 1000000000\noutput_nano_per_kilotoken = 3000000000\n\
             [limits]\ncontext_tokens_max = 256\noutput_tokens_max = 96\nrequests_max = 4\n\
             [listen]\naddress = \"127.0.0.1:{port}\"\n\
             [settlement]\nnetwork = \"local\"\npayout_address = \"{PAYOUT_ADDRESS}\"\n{more}\n"
        );
        fs::write(self.path("node.toml"), config).expect("writing node.toml");
    }

    /// Writes the policy for the image of this manifest.
    pub fn predict(&self, manifest: &Path) {
        let manifest = manifest.to_str().expect("a UTF-8 path");
        self.succeed(
            "cocoon-measure",
            [
                "predict",
                "--manifest",
                manifest,
                "--spec",
                "launch.toml",
                "--launch-document",
                "launch.json",
                "--root",
                "root.pem",
                "--policy-out",
                "policy.toml",
            ],
        );
    }

    /// Boots and waits until the node serves, or fails.
    pub fn up(&self) -> Output {
        self.up_command().output().expect("the launcher runs")
    }

    /// [`Self::up`], for a test that runs it itself.
    pub fn up_command(&self) -> Command {
        self.command("cocoon-launch", ["up", "--config", "node.toml", "--detach"])
    }

    /// Boots a node that has to come up.
    pub fn up_and_serving(&self) {
        self.succeed("cocoon-launch", ["up", "--config", "node.toml", "--detach"]);
    }

    /// Stops the node.
    pub fn down(&self) -> Output {
        self.run("cocoon-launch", ["down", "--config", "node.toml"])
    }

    /// `cocoon-launch status --json`.
    pub fn status(&self) -> Value {
        let output = self.succeed("cocoon-launch", ["status", "--config", "node.toml", "--json"]);
        serde_json::from_slice(&output.stdout).expect("status prints JSON")
    }

    /// What the provider's account holds, nanoTON. A node whose chain is busy for some seconds tells none.
    pub fn balance_nano(&self) -> u64 {
        let mut balance = None;
        eventually("status tells the provider's balance", || {
            let provider = self.status()["provider"].take();
            balance = provider["balance_nano"].as_u64();
            if balance.is_none() {
                eprintln!("no balance yet: {}", provider["error"]);
            }
            balance.is_some()
        });
        balance.expect("it was told")
    }

    /// `cocoon verify` with the policy in this file of the node's folder.
    pub fn verify(&self, policy: &str) -> Output {
        self.run("cocoon", ["verify", &self.url(), "--policy", policy])
    }

    /// `cocoon chat` with the node's own policy.
    pub fn chat(&self, question: &str) -> Output {
        self.chat_with("policy.toml", question)
    }

    /// `cocoon chat` with another policy.
    pub fn chat_with(&self, policy: &str, question: &str) -> Output {
        self.chat_command(policy, question)
            .output()
            .expect("cocoon runs; scripts/test builds it")
    }

    /// `cocoon chat`, to be run by the caller.
    pub fn chat_command(&self, policy: &str, question: &str) -> Command {
        if !self.path("wallet").exists() {
            self.succeed("cocoon", ["wallet", "new", "--out", "wallet"]);
        }
        let mut command = Command::new(program_path("cocoon"));
        command.current_dir(self.dir.path());
        command.env("XDG_STATE_HOME", self.dir.path());
        command.args(["chat", &self.url(), "--policy", policy, "--wallet", "wallet"]);
        command.args([
            "--ton-config",
            "state/global.config.json",
            "--receipt-out",
            "receipt.json",
            question,
        ]);
        command
    }

    /// `cocoon proxy` for this node on any free port, to be started by the caller.
    pub fn proxy_command(&self) -> Command {
        if !self.path("wallet").exists() {
            self.succeed("cocoon", ["wallet", "new", "--out", "wallet"]);
        }
        let mut command = Command::new(program_path("cocoon"));
        command.current_dir(self.dir.path());
        command.args(["proxy", "--upstream", &self.url(), "--listen", "127.0.0.1:0"]);
        command.args(["--policy", "policy.toml", "--wallet", "wallet", "--max-ton", "50"]);
        command.args(["--ton-config", "state/global.config.json"]);
        command
    }

    /// The usage records that the host has acknowledged, oldest first.
    pub fn records(&self) -> Vec<UsageRecord> {
        let output = self.succeed("cocoon-launch", ["records", "--config", "node.toml"]);
        let lines = String::from_utf8(output.stdout).expect("records are text");
        lines
            .lines()
            .map(|line| serde_json::from_str(line).expect("a record is JSON"))
            .collect()
    }

    /// Command lines of processes that work for this node.
    pub fn processes(&self) -> Vec<String> {
        let state = self.path("state");
        let state = state.to_str().expect("a UTF-8 path");
        let entries = fs::read_dir("/proc").expect("/proc").flatten();
        let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        lines
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .filter(|line| line.contains(state) || line.contains(&*self.path("node.toml").to_string_lossy()))
            .collect()
    }

    /// Kills the engine inside the guest, as a crash would; only `dev` images take this.
    pub fn kill_engine(&self) {
        self.inject(InjectFault::KillEngine);
    }

    /// Breaks something in the guest, which only one of a `dev` image lets happen.
    pub fn inject(&self, fault: InjectFault) {
        let mut stream = self.dial_guest(FAULT_PORT);
        cocoon_protocol::write_frame(&mut stream, &fault).expect("sending the fault");
        // The guest closes once it is done.
        let _ = stream.read(&mut [0]);
    }

    /// A program for `[tools] qemu` in `node.toml`: QEMU with a TPM that is made anew for each start, which the
    /// guest's firmware then measures into.
    pub fn qemu_with_tpm(&self) -> PathBuf {
        self.write_program("qemu-with-tpm", QEMU_WITH_TPM)
    }

    /// A program to be used as QEMU, which [`Node::disk_reads`] needs.
    pub fn qemu_with_monitor(&self) -> PathBuf {
        self.write_program("qemu-with-monitor", QEMU_WITH_MONITOR)
    }

    /// A script in the node's folder, to be named under `[tools]` in `node.toml`.
    pub fn write_program(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let program = self.path(name);
        fs::write(&program, text).expect("writing the program");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("making it executable");
        program
    }

    /// Read requests that each of the guest's disks has had, as QEMU counts them.
    pub fn disk_reads(&self) -> Vec<u64> {
        let mut monitor = UnixStream::connect(self.path("monitor")).expect("QEMU's second monitor");
        monitor.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        for command in ["qmp_capabilities", "query-blockstats"] {
            let line = format!("{{\"execute\": \"{command}\"}}\n");
            monitor.write_all(line.as_bytes()).expect("asking QEMU");
        }
        let lines = BufReader::new(monitor).lines();
        let mut answers = lines.map(|line| line.expect("QEMU answers"));
        let answer = answers
            .find(|line| line.contains("rd_operations"))
            .expect("QEMU counts reads");
        let answer: Value = serde_json::from_str(&answer).expect("QEMU speaks JSON");
        let disks = answer["return"].as_array().expect("a list of disks").iter();
        disks
            .filter_map(|disk| disk["stats"]["rd_operations"].as_u64())
            .collect()
    }

    /// What the firmware measured into its TPM; only `dev` images tell.
    pub fn firmware_measurements(&self) -> FirmwareMeasurements {
        let mut stream = self.dial_guest(FIRMWARE_LOG_PORT);
        cocoon_protocol::read_frame(&mut stream).expect("the guest has a TPM; else its console says why not")
    }

    fn dial_guest(&self, port: u32) -> UnixStream {
        let mut stream = UnixStream::connect(self.path("state/run/guest")).expect("the vsock backend");
        // In one piece: the backend takes what it reads first for the whole line.
        let request = format!("CONNECT {port}\n");
        stream
            .write_all(request.as_bytes())
            .expect("asking for the guest's port");
        let mut answer = [0; 1];
        while answer != *b"\n" {
            stream.read_exact(&mut answer).expect("the guest listens");
        }
        stream
    }

    /// Kills a process that belongs to this node, as a power cut would. Says whether it was still there.
    pub fn kill_process(&self, pid: u64) -> bool {
        let status = Command::new("kill").args(["-9", &pid.to_string()]).status();
        status.expect("kill runs").success()
    }

    /// Where clients connect to.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// A file in the node's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs one of Cocoon's programs in the node's folder.
    pub fn run<S: AsRef<OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = S>) -> Output {
        let output = self.command(program, arguments).output();
        output.expect("Cocoon's programs run; scripts/test builds them")
    }

    fn command<S: AsRef<OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(program_path(program));
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env("XDG_STATE_HOME", self.dir.path());
        command
    }

    /// [`Self::run`] of something that has to succeed.
    pub fn succeed<S: AsRef<OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = S>) -> Output {
        let output = self.run(program, arguments);
        assert!(output.status.success(), "{program} failed\n{}", describe(&output));
        output
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.down();
    }
}

/// Waits until something is so.
///
/// # Panics
/// It is not within a minute, which is much longer than anything here takes.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Both streams of a finished program, for a test's message.
pub fn describe(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!(
        "{}\n--- stdout\n{}\n--- stderr\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    )
}

/// Programs are built beside the tests: `target/PROFILE/deps/TEST` and `target/PROFILE/PROGRAM`.
fn program_path(program: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let profile = test
        .ancestors()
        .nth(2)
        .expect("a test lies in target/PROFILE/deps");
    profile.join(program)
}

/// A port that nobody else takes between two starts of the node: outside of the range that the kernel gives to
/// whoever asks for any port (`net.ipv4.ip_local_port_range`), from where an own port could be lost to another
/// test while the node is down.
fn free_port() -> u16 {
    const PORTS: std::ops::Range<u16> = 20_000..32_000;
    // Tests are processes of their own: each begins elsewhere.
    let first = usize::try_from(std::process::id()).expect("a process id") % PORTS.len();
    let mut candidates = PORTS.cycle().skip(first).take(PORTS.len());
    candidates
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port on loopback")
}
