//! The engine's process: started without privileges, watched and reaped.
//!
//! Its end of a socketpair is descriptor 3; it inherits nothing else. It gets its own user, no groups, no new
//! privileges, a bound on its memory, few files ([`landlock`]) and few system calls ([`seccomp`]). Code in it may
//! be hostile (it parses prompts): what it says is checked in [`crate::engine`].

mod landlock;
mod seccomp;

use std::{
    collections::HashSet,
    io,
    os::{
        fd::AsRawFd,
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use cocoon_protocol::engine::ENGINE_SOCKET_FD;
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tracing::{info, warn};

use crate::{
    console::EXPORT,
    engine::{EngineProcess, Spawn},
};
use landlock::Ruleset;

/// Open files that libtorch, the model and the tokenizer need, with room.
const OPEN_FILES_MAX: u64 = 256;

/// Children of this process that still run. As PID 1 it also inherits whatever those leave behind.
#[derive(Clone, Default)]
pub struct Children(Arc<Mutex<HashSet<i32>>>);

impl Children {
    /// Collects every child that has ended. Called on SIGCHLD; shares a lock with `Self::kill`, so that a
    /// signal never reaches a later process with the same number.
    pub fn reap(&self) {
        let mut alive = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if alive.remove(&pid.as_raw()) => {
                    warn!(target: EXPORT, "the engine exited with status {code}");
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) if alive.remove(&pid.as_raw()) => {
                    warn!(target: EXPORT, "the engine was ended by {signal}");
                }
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    fn kill(&self, pid: i32) {
        let alive = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if alive.contains(&pid) {
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
        let errors = if self.console {
            Stdio::inherit()
        } else {
            Stdio::null()
        };
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .env("OMP_NUM_THREADS", self.threads.to_string())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .uid(self.user)
            .gid(self.user);
        let limits = confine::Confinement {
            socket: theirs.as_raw_fd(),
            memory_bytes_max: self.memory_bytes_max,
            files: self.files()?,
            calls: seccomp::filter(),
        };
        confine::before_exec(&mut command, limits);
        // The lock is held across the start, so that the child cannot be reaped before it is known.
        let mut alive = self.children.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = command.spawn()?.id() as i32;
        alive.insert(pid);
        drop(alive);
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

impl EngineCommand {
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

    use super::{Command, ENGINE_SOCKET_FD, OPEN_FILES_MAX, Ruleset, io};

    /// What the child does to itself. Made before the fork: after it nothing can be allocated.
    pub(super) struct Confinement {
        pub(super) socket: i32,
        pub(super) memory_bytes_max: u64,
        pub(super) files: Ruleset,
        pub(super) calls: Vec<libc::sock_filter>,
    }

    /// Has the child confine itself between fork and exec. The standard library has by then set user and group
    /// and dropped all supplementary groups.
    pub(super) fn before_exec(command: &mut Command, confinement: Confinement) {
        let confine = move || {
            take_socket(confinement.socket)?;
            limit(libc::RLIMIT_CORE, 0)?;
            limit(libc::RLIMIT_NOFILE, OPEN_FILES_MAX)?;
            limit(libc::RLIMIT_DATA, confinement.memory_bytes_max)?;
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
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    const MEMORY_BYTES_MAX: u64 = 512 << 20;

    /// What Python needs to start.
    fn python(script: &str, readable: &[&str]) -> EngineCommand {
        let user = nix::unistd::getuid().as_raw();
        let needed = ["/usr/lib", "/lib", "/etc/ld.so.cache"];
        EngineCommand {
            program: "/usr/bin/python3".into(),
            arguments: ["-I", "-S", "-c", script].map(Into::into).into(),
            user: if user == 0 { 1000 } else { user },
            threads: 2,
            console: true,
            readable: needed.iter().chain(readable).map(PathBuf::from).collect(),
            linkers: vec!["/lib64/ld-linux-x86-64.so.2".into()],
            memory_bytes_max: MEMORY_BYTES_MAX,
            children: Children::default(),
        }
    }

    async fn output_of(script: &str, readable: &[&str]) -> String {
        let mut process = python(script, readable).spawn().unwrap();
        let mut text = String::new();
        process.socket.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn the_child_has_no_privileges_and_inherits_one_descriptor() {
        let leak = std::fs::File::open("/dev/null").unwrap();
        let inherited = nix::unistd::dup(&leak).unwrap();
        let script = "import os\n\
                      fds = ' '.join(sorted(os.listdir('/proc/self/fd')))\n\
                      status = open('/proc/self/status').read()\n\
                      os.write(3, f'{status}fds:\\t{fds}\\nenv:\\t{dict(os.environ)}\\n'.encode())\n";
        let status = output_of(script, &["/proc"]).await;
        drop(inherited);
        let value = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key)).unwrap();
            line.split_once('\t').unwrap().1.to_owned()
        };
        assert_eq!(value("NoNewPrivs:"), "1");
        assert_eq!(value("Seccomp:"), "2");
        assert_eq!(value("CapEff:"), "0000000000000000");
        assert_ne!(value("Uid:").split('\t').next(), Some("0"));
        // 4 is the listing itself.
        assert_eq!(value("fds:"), "0 1 2 3 4");
        assert!(value("env:").contains("'OMP_NUM_THREADS': '2'"));
        assert!(!value("env:").contains("CARGO"));
    }

    /// Each attempt answers with the name of its error, or with `done`.
    async fn attempts(attempts: &[&str], readable: &[&str]) -> Vec<String> {
        let mut script = "import os, ctypes, threading\n\
                          libc = ctypes.CDLL(None, use_errno=True)\n\
                          def call(number, *arguments):\n\
                          \x20   if libc.syscall(number, *arguments) < 0: raise OSError(ctypes.get_errno(), '')\n\
                          def attempt(what):\n\
                          \x20   try: what(); said = 'done'\n\
                          \x20   except Exception as error: said = type(error).__name__\n\
                          \x20   os.write(3, (said + '\\n').encode())\n"
            .to_owned();
        for attempt in attempts {
            script += &format!("attempt(lambda: {attempt})\n");
        }
        let heard = output_of(&script, readable).await;
        heard.lines().map(str::to_owned).collect()
    }

    async fn all_answer(expected: &str, tried: &[&str], readable: &[&str]) {
        let answers = attempts(tried, readable).await;
        assert_eq!(answers.len(), tried.len(), "{answers:?}");
        for (attempt, answer) in tried.iter().zip(answers) {
            assert_eq!(answer, expected, "{attempt}");
        }
    }

    #[tokio::test]
    async fn the_child_starts_threads_and_reads_what_it_was_granted() {
        let tried = [
            "[thread := threading.Thread(target=print), thread.start(), thread.join()]",
            "open('/etc/hostname').read()",
        ];
        all_answer("done", &tried, &["/etc/hostname"]).await;
    }

    #[tokio::test]
    async fn the_child_reaches_no_socket_process_or_other_system_call() {
        // socket (vsock, Unix, netlink), socketpair, fork, vfork, kill, ptrace, process_vm_readv, ioctl, mount,
        // unshare, memfd_create, io_uring_setup, bpf, perf_event_open, keyctl, userfaultfd, pidfd_getfd; and x32.
        let tried = [
            "call(41, 40, 1, 0)",
            "call(41, 1, 1, 0)",
            "call(41, 16, 3, 0)",
            "call(53, 1, 1, 0, 0)",
            "call(57)",
            "call(58)",
            "call(62, os.getppid(), 0)",
            "call(101, 0, 0, 0, 0)",
            "call(310, os.getppid(), 0, 0, 0, 0, 0)",
            "call(16, 3, 0x5401, 0)",
            "call(165, 0, 0, 0, 0, 0)",
            "call(272, 0x10000000)",
            "call(319, b'x', 0)",
            "call(425, 1, 0)",
            "call(321, 0, 0, 0)",
            "call(298, 0, 0, -1, -1, 0)",
            "call(250, 0, 0, 0, 0, 0)",
            "call(323, 0)",
            "call(438, 0, 0, 0)",
            "call(0x40000000 + 39)",
            "os.fork()",
        ];
        all_answer("PermissionError", &tried, &[]).await;
    }

    #[tokio::test]
    async fn the_child_opens_and_executes_nothing_that_it_was_not_granted() {
        let tried = [
            "open('/etc/passwd')",
            "open('/proc/self/environ')",
            "os.listdir('/')",
            "os.listdir('/dev')",
            "open('/dev/null', 'w')",
            "open('/tmp/cocoon-engine-was-here', 'w')",
            "open('/etc/hostname', 'r+')",
            "os.execv('/bin/true', ['true'])",
            "os.unlink('/etc/hostname')",
        ];
        all_answer("PermissionError", &tried, &["/etc/hostname"]).await;
    }

    #[tokio::test]
    async fn a_child_that_takes_more_memory_than_it_may_fails_alone() {
        let tried = [format!("bytearray({})", MEMORY_BYTES_MAX)];
        all_answer("MemoryError", &tried.each_ref().map(String::as_str), &[]).await;
        let tried = [format!("bytearray({})", MEMORY_BYTES_MAX / 4)];
        all_answer("done", &tried.each_ref().map(String::as_str), &[]).await;
    }

    #[tokio::test]
    async fn dropping_the_guard_kills_the_child() {
        let EngineProcess { mut socket, guard } =
            python("import time; time.sleep(600)", &[]).spawn().unwrap();
        drop(guard);
        assert_eq!(socket.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
