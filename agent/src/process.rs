//! The engine's process: started without privileges, watched and reaped.
//!
//! Its end of a socketpair is descriptor 3; it inherits nothing else. It gets its own user, no groups, no new
//! privileges and a seccomp filter that forbids sockets, since vsock, unlike files, asks for no permission.
//! Code in it may be hostile (it parses prompts): what it says is checked in [`crate::engine`].

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
        confine::before_exec(&mut command, theirs.as_raw_fd());
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

    use super::{Command, ENGINE_SOCKET_FD, OPEN_FILES_MAX, io};

    /// Registers what the child does to itself after fork. The standard library has by then set user and
    /// group and dropped all supplementary groups.
    pub(super) fn before_exec(command: &mut Command, socket: i32) {
        let confine = move || {
            // SAFETY: system calls on integers and on `FILTER`, which is static; nothing allocates.
            unsafe {
                check(libc::setsid())?;
                // dup2 of a descriptor onto itself would leave close-on-exec set.
                if socket == ENGINE_SOCKET_FD {
                    check(libc::fcntl(socket, libc::F_SETFD, 0))?;
                } else {
                    check(libc::dup2(socket, ENGINE_SOCKET_FD))?;
                }
                // Marked rather than closed: the standard library reports a failed exec through one of them.
                let rest = (ENGINE_SOCKET_FD + 1) as libc::c_uint;
                check(libc::syscall(
                    libc::SYS_close_range,
                    rest,
                    libc::c_uint::MAX,
                    libc::CLOSE_RANGE_CLOEXEC,
                ))?;
                limit(libc::RLIMIT_CORE, 0)?;
                limit(libc::RLIMIT_NOFILE, OPEN_FILES_MAX)?;
                check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
                check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
                let program = libc::sock_fprog {
                    len: FILTER.len() as u16,
                    filter: FILTER.as_ptr().cast_mut(),
                };
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

    const fn load(offset: u32) -> libc::sock_filter {
        let code = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
        libc::sock_filter {
            code,
            jt: 0,
            jf: 0,
            k: offset,
        }
    }

    const fn skip_if(test: u32, value: u32, yes: u8, no: u8) -> libc::sock_filter {
        let code = (libc::BPF_JMP | libc::BPF_K) as u16 | test as u16;
        libc::sock_filter {
            code,
            jt: yes,
            jf: no,
            k: value,
        }
    }

    const fn answer(action: u32) -> libc::sock_filter {
        let code = (libc::BPF_RET | libc::BPF_K) as u16;
        libc::sock_filter {
            code,
            jt: 0,
            jf: 0,
            k: action,
        }
    }

    /// `AUDIT_ARCH_X86_64` (include/uapi/linux/audit.h).
    const ARCH_X86_64: u32 = 0xc000_003e;
    /// System calls of the x32 ABI carry this bit.
    const X32: u32 = 0x4000_0000;
    const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EACCES as u32;

    /// Over `struct seccomp_data`: system call number at 0, architecture at 4. Everything is allowed but
    /// sockets, tracing others, and other system call tables.
    static FILTER: [libc::sock_filter; 9] = [
        load(4),
        skip_if(libc::BPF_JEQ, ARCH_X86_64, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(0),
        skip_if(libc::BPF_JGE, X32, 3, 0),
        skip_if(libc::BPF_JEQ, libc::SYS_socket as u32, 2, 0),
        skip_if(libc::BPF_JEQ, libc::SYS_ptrace as u32, 1, 0),
        answer(libc::SECCOMP_RET_ALLOW),
        answer(REFUSE),
    ];
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    async fn output_of(script: &str) -> String {
        let user = nix::unistd::getuid().as_raw();
        let command = EngineCommand {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            user: if user == 0 { 1000 } else { user },
            threads: 2,
            console: true,
            children: Children::default(),
        };
        let mut process = command.spawn().unwrap();
        let mut text = String::new();
        process.socket.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn the_child_has_no_privileges_and_inherits_one_descriptor() {
        let leak = std::fs::File::open("/dev/null").unwrap();
        let inherited = nix::unistd::dup(&leak).unwrap();
        let status = output_of("cat /proc/self/status >&3; ls /proc/self/fd >&3; env >&3").await;
        drop(inherited);
        let value = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key)).unwrap();
            line.split_once('\t').unwrap().1.to_owned()
        };
        assert_eq!(value("NoNewPrivs:"), "1");
        assert_eq!(value("Seccomp:"), "2");
        assert_eq!(value("CapEff:"), "0000000000000000");
        assert_ne!(value("Uid:").split('\t').next(), Some("0"));
        let descriptors: Vec<_> = status
            .lines()
            .filter(|line| line.parse::<u32>().is_ok())
            .collect();
        // 4 is the listing itself.
        assert_eq!(descriptors, ["0", "1", "2", "3", "4"]);
        assert!(status.contains("OMP_NUM_THREADS=2"));
        assert!(!status.contains("CARGO"));
    }

    #[tokio::test]
    async fn the_child_cannot_open_a_socket() {
        let script = "import os, socket\n\
                      try: socket.socket(socket.AF_UNIX); os.write(3, b'open')\n\
                      except PermissionError: os.write(3, b'refused')\n";
        let heard = output_of(&format!("exec python3 -c \"{script}\"")).await;
        assert_eq!(heard, "refused");
    }

    #[tokio::test]
    async fn dropping_the_guard_kills_the_child() {
        let children = Children::default();
        let command = EngineCommand {
            program: "/bin/sleep".into(),
            arguments: vec!["600".into()],
            user: nix::unistd::getuid().as_raw(),
            threads: 1,
            console: false,
            children,
        };
        let EngineProcess { mut socket, guard } = command.spawn().unwrap();
        drop(guard);
        assert_eq!(socket.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
