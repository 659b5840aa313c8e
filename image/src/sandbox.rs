//! Runs programs inside the builder root, cut off from this machine.
//!
//! They see the root (read-only), what is bound into it, an empty network, their own processes, a machine name that
//! is always the same and an environment that is spelled out. `unshare` of util-linux makes user, network, mount,
//! process, IPC and UTS namespaces, so neither root nor a daemon is needed, and works the same for root; the second
//! half, [`enter`], runs inside them as this program's own hidden subcommand. The kernel has to allow unprivileged
//! user namespaces, or the build has to run as root.
//!
//! This keeps an honest build from picking up what happens to lie around. It is no defence against a compiler
//! that is malicious: the lock decides what runs in here.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::statvfs::{FsFlags, statvfs},
    unistd::{chdir, chroot, sethostname},
};

/// Where the build happens; the only place in the root that can be written and keeps what is written.
pub const BUILD: &str = "/build";
/// Folders that something is mounted on.
pub const MOUNT_POINTS: [&str; 8] = [
    BUILD,
    "/dev",
    "/inputs",
    "/libtorch",
    "/proc",
    "/source",
    "/tmp",
    "/vendor",
];
/// The hidden subcommand that leads to [`enter`].
pub const SUBCOMMAND: &str = "enter";

const DEVICES: [&str; 4] = ["null", "zero", "random", "urandom"];
const PATH: &str = "/rust/bin:/usr/bin:/usr/sbin";
/// The machine's name inside: many build systems note it down.
const HOST_NAME: &str = "builder";
/// 2026-01-01, in everything that insists on a date.
pub const SOURCE_DATE_EPOCH: &str = "1767225600";

/// A folder of this machine that is seen inside.
#[derive(Debug, Clone)]
pub struct Bind {
    /// On this machine.
    pub from: PathBuf,
    /// In the root; one of [`MOUNT_POINTS`].
    pub to: String,
    /// Whether programs may write to it.
    pub writable: bool,
}

/// A way to run programs in a root.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// The root's folder.
    pub root: PathBuf,
    /// The program whose subcommand [`SUBCOMMAND`] calls [`enter`].
    pub helper: PathBuf,
    /// What is bound into the root.
    pub binds: Vec<Bind>,
}

/// Why a program was not started inside.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// A mount was refused.
    #[error("cannot mount {what} on {}", on.display())]
    Mount {
        /// What.
        what: String,
        /// Where.
        on: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The namespace's own name was refused.
    #[error("cannot name the machine {HOST_NAME} inside")]
    Name(#[source] io::Error),
    /// The program is not in the root.
    #[error("cannot run {program} in {}", root.display())]
    Start {
        /// The program.
        program: String,
        /// The root.
        root: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Sandbox {
    /// A command that runs `program` inside, in [`BUILD`], with these variables beside the few that are always
    /// there. Arguments may be added to it; variables may not: the environment outside is not the one inside.
    pub fn command(&self, program: &str, variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "--net", "--mount", "--pid", "--ipc"])
            .args(["--uts", "--fork", "--kill-child=KILL", "--"])
            .arg(&self.helper)
            .arg(SUBCOMMAND)
            .arg("--root")
            .arg(&self.root);
        for Bind { from, to, writable } in &self.binds {
            let flag = if *writable { "--bind" } else { "--bind-read-only" };
            command.arg(flag).arg(from).arg(to);
        }
        command.env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.args(["--", "/usr/bin/env", "-i"]);
        let always = [
            ("HOME", BUILD),
            ("LC_ALL", "C"),
            ("PATH", PATH),
            ("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH),
            ("TZ", "UTC"),
        ];
        for (name, value) in always.iter().chain(variables) {
            command.arg(format!("{name}={value}"));
        }
        command.arg(program);
        command
    }
}

/// Mounts everything, changes into the root, runs the program and waits for it. Called in fresh namespaces
/// only. The program is not the namespace's first process, so that an interrupt from the terminal ends it.
///
/// # Errors
/// See [`EnterError`].
pub fn enter(root: &Path, binds: &[Bind], command: &[String]) -> Result<ExitStatus, EnterError> {
    sethostname(HOST_NAME).map_err(|errno| EnterError::Name(errno.into()))?;
    bind(root, root, false)?;
    make_devices(&root.join("dev"))?;
    mount_new("tmpfs", &root.join("tmp"), None)?;
    mount_new("proc", &root.join("proc"), None)?;
    for Bind { from, to, writable } in binds {
        bind(from, &root.join(to.trim_start_matches('/')), *writable)?;
    }
    let (program, arguments) = command.split_first().expect("the subcommand demands one");
    let start = |source: io::Error| EnterError::Start {
        program: program.clone(),
        root: root.to_owned(),
        source,
    };
    chroot(root).map_err(|errno| start(errno.into()))?;
    chdir(BUILD).map_err(|errno| start(errno.into()))?;
    Command::new(program).args(arguments).status().map_err(start)
}

fn make_devices(folder: &Path) -> Result<(), EnterError> {
    // Not for everybody to write, as temporary folders are: there, Linux refuses to open with O_CREAT, which is what a
    // shell's `>` does, whatever belongs to neither the folder's owner nor the program. A device is the machine's
    // root's, who is not in the user namespace of somebody else.
    mount_new("tmpfs", folder, Some("mode=755"))?;
    for device in DEVICES {
        let to = folder.join(device);
        File::create(&to).map_err(|source| mount_error(device, &to, source))?;
        bind(&Path::new("/dev").join(device), &to, true)?;
    }
    let shared = folder.join("shm");
    fs::create_dir(&shared).map_err(|source| mount_error("tmpfs", &shared, source))?;
    mount_new("tmpfs", &shared, None)
}

fn mount_new(kind: &str, on: &Path, options: Option<&str>) -> Result<(), EnterError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some(kind), on, Some(kind), flags, options).map_err(|errno| mount_error(kind, on, errno.into()))
}

fn bind(from: &Path, to: &Path, writable: bool) -> Result<(), EnterError> {
    let what = from.display().to_string();
    let failed = |errno: Errno| mount_error(&what, to, errno.into());
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(failed)?;
    if writable {
        return Ok(());
    }
    // A user namespace may add flags to what it got from outside, never remove one.
    let kept = statvfs(to).map_err(failed)?.flags();
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    for (found, flag) in [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        flags.set(flag, kept.contains(found));
    }
    mount(None::<&str>, to, None::<&str>, flags, None::<&str>).map_err(failed)
}

fn mount_error(what: &str, on: &Path, source: io::Error) -> EnterError {
    EnterError::Mount {
        what: what.to_owned(),
        on: on.to_owned(),
        source,
    }
}
