//! The guest's other processes: the engine's, started without privileges, and `cocoon-gpu`; watched and reaped.
//!
//! A child's end of a socketpair is descriptor 3; it inherits nothing else. The engine gets its own user, no
//! groups, no new privileges, bounds on its memory and threads, few files (`landlock`) and few system calls
//! (`seccomp`). Code in it may be hostile (it parses prompts): what it says is checked in [`crate::engine`].

mod landlock;
mod seccomp;

use std::{
    collections::HashMap,
    io,
    os::{
        fd::AsRawFd,
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use cocoon_protocol::{engine::ENGINE_SOCKET_FD, gpu::GPU_SOCKET_FD};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getuid},
};
use tracing::{info, warn};

use crate::{
    console::EXPORT,
    engine::{EngineProcess, Spawn},
    gpu::{GpuProcess, Gpus},
};
use landlock::Ruleset;

// Children find their socket at one place.
const _: () = assert!(ENGINE_SOCKET_FD == GPU_SOCKET_FD);

/// The engine, among [`Children`].
pub(crate) const ENGINE: &str = "the engine";

/// Open files that libtorch, the model and the tokenizer need, with room.
const OPEN_FILES_MAX: u64 = 256;

/// Of its first thread's stack, as Linux starts every program with. It could otherwise raise that limit and take by it
/// what its heap may not have; the stacks of other threads count as heap.
const STACK_BYTES_MAX: u64 = 8 << 20;

/// Threads of the engine for each that computes: OpenMP's, and at most as many of libtorch's other pool and of the
/// tokenizer's; all that twice, since an engine that was killed may still be ending when the next one starts.
const THREADS_FOR_EACH_MAX: u64 = 8;
/// The rest: the one that reads, and a few of the driver's for each GPU. The guest has 32768 process ids or more: most
/// stay for the agent, which ends when it cannot start a thread.
const OTHER_THREADS_MAX: u64 = 256;

/// Children of this process that still run. As PID 1 it also inherits whatever those leave behind.
#[derive(Clone, Default)]
pub struct Children(Arc<Mutex<HashMap<i32, &'static str>>>);

impl Children {
    /// Collects every child that has ended. Called on SIGCHLD; shares a lock with `Self::kill`, so that a
    /// signal never reaches a later process with the same number.
    pub fn reap(&self) {
        let mut alive = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => {
                    if let Some(name) = alive.remove(&pid.as_raw()) {
                        warn!(target: EXPORT, "{name} exited with status {code}");
                    }
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    if let Some(name) = alive.remove(&pid.as_raw()) {
                        warn!(target: EXPORT, "{name} was ended by {signal}");
                    }
                }
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    /// The lock is held across the start, so that the child cannot be reaped before it is known.
    fn start(&self, command: &mut Command, name: &'static str) -> io::Result<i32> {
        let mut alive = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = command.spawn()?.id() as i32;
        alive.insert(pid, name);
        Ok(pid)
    }

    /// Has every child of this name crash.
    #[cfg(feature = "simulated")]
    pub(crate) fn abort(&self, name: &str) {
        let alive = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (pid, _) in alive.iter().filter(|(_, known)| **known == name) {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGABRT);
        }
    }

    fn kill(&self, pid: i32) {
        let alive = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if alive.contains_key(&pid) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// How to start the engine.
pub struct EngineCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments; none in the guest.
    pub arguments: Vec<String>,
    /// User and group of the process.
    pub user: u32,
    /// For OpenMP: threads beyond the cores make libtorch collapse.
    pub threads: usize,
    /// Whether standard error is the agent's, that is the console of a dev image.
    pub console: bool,
    /// Files and folders that it may read, beside itself. What is missing is left out.
    pub readable: Vec<PathBuf>,
    /// Programs that it may execute, beside itself: the dynamic linker.
    pub linkers: Vec<PathBuf>,
    /// Most memory of its own: heap, stacks, weights that are not used as they lie in the file.
    pub memory_bytes_max: u64,
    /// Where the process is registered.
    pub children: Children,
}

impl Spawn for EngineCommand {
    fn spawn(&self) -> io::Result<EngineProcess> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .env("OMP_NUM_THREADS", self.threads.to_string())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors(self.console))
            .uid(self.user)
            .gid(self.user);
        let limits = confine::Confinement {
            socket: theirs.as_raw_fd(),
            memory_bytes_max: self.memory_bytes_max,
            threads_max: self.threads_max(),
            files: self.files()?,
            calls: seccomp::filter(),
        };
        confine::before_exec(&mut command, limits);
        let pid = self.children.start(&mut command, ENGINE)?;
        info!(target: EXPORT, "the engine runs with {} threads", self.threads);
        Ok(EngineProcess {
            socket: tokio::net::UnixStream::from_std(ours)?,
            guard: Box::new(KillOnDrop {
                pid,
                children: self.children.clone(),
            }),
        })
    }
}

/// How to start `cocoon-gpu`.
pub struct GpuCommand {
    /// The program.
    pub program: PathBuf,
    /// Whether standard error is the agent's, that is the console of a dev image.
    pub console: bool,
    /// Where the process is registered.
    pub children: Children,
}

impl Gpus for GpuCommand {
    /// It stays root: setting GPUs ready is an administrator's call. Nobody but the driver speaks to it, and what it
    /// runs comes from the verified root.
    fn start(&self) -> io::Result<Option<GpuProcess>> {
        if !self.program.try_exists()? {
            return Ok(None);
        }
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors(self.console));
        confine::keep_one_descriptor(&mut command, theirs.as_raw_fd());
        let pid = self.children.start(&mut command, "cocoon-gpu")?;
        Ok(Some(GpuProcess {
            socket: tokio::net::UnixStream::from_std(ours)?,
            guard: Box::new(KillOnDrop {
                pid,
                children: self.children.clone(),
            }),
        }))
    }
}

fn errors(console: bool) -> Stdio {
    if console { Stdio::inherit() } else { Stdio::null() }
}

impl EngineCommand {
    /// The kernel counts the threads of all processes of a user: only where the engine has one of its own do they say
    /// anything about the engine.
    fn threads_max(&self) -> Option<u64> {
        let is_its_own = self.user != getuid().as_raw();
        is_its_own.then(|| THREADS_FOR_EACH_MAX * self.threads as u64 + OTHER_THREADS_MAX)
    }

    fn files(&self) -> io::Result<Ruleset> {
        let ruleset = Ruleset::new()?;
        for program in self.linkers.iter().chain([&self.program]) {
            ruleset.allow_executing(program)?;
        }
        self.readable
            .iter()
            .map(|path| ruleset.allow_reading(path))
            // Not granting what is not there takes nothing away.
            .find(|allowed| {
                allowed
                    .as_ref()
                    .is_err_and(|error| error.kind() != io::ErrorKind::NotFound)
            })
            .unwrap_or(Ok(()))
            .map(|()| ruleset)
    }
}

struct KillOnDrop {
    pid: i32,
    children: Children,
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.children.kill(self.pid);
    }
}

#[allow(
    unsafe_code,
    reason = "runs between fork and exec, where only system calls are allowed"
)]
mod confine {
    use std::os::unix::process::CommandExt as _;

    use super::{Command, ENGINE_SOCKET_FD, OPEN_FILES_MAX, Ruleset, STACK_BYTES_MAX, io};

    /// What the child does to itself. Made before the fork: after it nothing can be allocated.
    pub(super) struct Confinement {
        pub(super) socket: i32,
        pub(super) memory_bytes_max: u64,
        pub(super) threads_max: Option<u64>,
        pub(super) files: Ruleset,
        pub(super) calls: Vec<libc::sock_filter>,
    }

    /// The child ends with its parent, gains no privileges and has one descriptor.
    pub(super) fn keep_one_descriptor(command: &mut Command, socket: i32) {
        let confine = move || {
            take_socket(socket)?;
            limit(libc::RLIMIT_CORE, 0)?;
            // SAFETY: system calls on integers.
            unsafe {
                check(libc::setsid())?;
                check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
                check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
            }
        };
        // SAFETY: `confine` is async-signal-safe: it makes system calls and touches no lock and no heap.
        unsafe { command.pre_exec(confine) };
    }

    /// Has the child confine itself between fork and exec. The standard library has by then set user and group
    /// and dropped all supplementary groups.
    pub(super) fn before_exec(command: &mut Command, confinement: Confinement) {
        let confine = move || {
            take_socket(confinement.socket)?;
            limit(libc::RLIMIT_CORE, 0)?;
            limit(libc::RLIMIT_NOFILE, OPEN_FILES_MAX)?;
            limit(libc::RLIMIT_DATA, confinement.memory_bytes_max)?;
            limit(libc::RLIMIT_STACK, STACK_BYTES_MAX)?;
            if let Some(threads_max) = confinement.threads_max {
                limit(libc::RLIMIT_NPROC, threads_max)?;
            }
            let program = libc::sock_fprog {
                len: confinement.calls.len() as u16,
                filter: confinement.calls.as_ptr().cast_mut(),
            };
            // SAFETY: system calls on integers, but for the last, which reads the program during the call.
            unsafe {
                check(libc::setsid())?;
                check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
                check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
                confinement.files.apply()?;
                check(libc::prctl(
                    libc::PR_SET_SECCOMP,
                    libc::SECCOMP_MODE_FILTER,
                    &raw const program,
                ))
            }
        };
        // SAFETY: `confine` is async-signal-safe: it makes system calls and touches no lock and no heap.
        unsafe { command.pre_exec(confine) };
    }

    /// Leaves the child its socket, and of everything else only what exec closes.
    fn take_socket(socket: i32) -> io::Result<()> {
        // SAFETY: system calls on integers.
        unsafe {
            // dup2 of a descriptor onto itself would leave close-on-exec set.
            if socket == ENGINE_SOCKET_FD {
                check(libc::fcntl(socket, libc::F_SETFD, 0))?;
            } else {
                check(libc::dup2(socket, ENGINE_SOCKET_FD))?;
            }
            // Marked rather than closed: the standard library reports a failed exec through one of them, and
            // the ruleset is still needed.
            let rest = (ENGINE_SOCKET_FD + 1) as libc::c_uint;
            check(libc::syscall(
                libc::SYS_close_range,
                rest,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            ))
        }
    }

    fn check(result: impl Into<i64>) -> io::Result<()> {
        if result.into() < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn limit(what: libc::__rlimit_resource_t, value: u64) -> io::Result<()> {
        let limit = libc::rlimit {
            rlim_cur: value,
            rlim_max: value,
        };
        // SAFETY: the kernel reads the struct during the call.
        check(unsafe { libc::setrlimit(what, &raw const limit) })
    }
}

#[cfg(test)]
mod tests;
