//! Which system calls the engine may make: a list of what libtorch, the tokenizer and the C library need, and
//! refusal of everything else. What the kernel does not run for the engine, it cannot be attacked through.
//!
//! No sockets are made, so no vsock; no process is started but by the `exec` that starts the engine itself
//! (Landlock leaves nothing else to execute); threads, but no forks; no memory without a file that RLIMIT_DATA does not
//! count (what is moved or grown by `mremap` can become such). Refused calls fail with EACCES, so that a library that can do without goes on.

use libc::sock_filter;

/// `AUDIT_ARCH_X86_64` (include/uapi/linux/audit.h).
const ARCH_X86_64: u32 = 0xc000_003e;
/// System calls of the x32 ABI carry this bit.
const X32: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENT_0: u32 = 16;
const ARGUMENT_3: u32 = 40;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EACCES as u32;
const NO_SUCH_CALL: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

const ALLOWED: &[libc::c_long] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    // Files, which Landlock narrows down.
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_stat,
    libc::SYS_fstat,
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_fcntl,
    libc::SYS_dup,
    // The one socket that it inherits.
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_poll,
    libc::SYS_ppoll,
    // Threads, signals, time.
    libc::SYS_execve,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_arch_prctl,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    // What it asks about itself and the machine.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getcpu,
    libc::SYS_getrusage,
    libc::SYS_getrandom,
    libc::SYS_prlimit64,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// The program for the kernel.
pub(super) fn filter() -> Vec<sock_filter> {
    let mut program = vec![
        load(ARCHITECTURE),
        skip_if(libc::BPF_JEQ, ARCH_X86_64, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
        skip_if(libc::BPF_JGE, X32, 0, 1),
        answer(REFUSE),
        // Its flags lie in memory, where a filter cannot see them; the C library falls back to `clone`.
        skip_if(libc::BPF_JEQ, libc::SYS_clone3 as u32, 0, 1),
        answer(NO_SUCH_CALL),
        skip_if(libc::BPF_JEQ, libc::SYS_clone as u32, 0, 4),
        load(ARGUMENT_0),
        skip_if(libc::BPF_JSET, libc::CLONE_THREAD as u32, 0, 1),
        answer(ALLOW),
        answer(REFUSE),
        // RLIMIT_DATA counts neither shared memory without a file nor what grows like a stack.
        skip_if(libc::BPF_JEQ, libc::SYS_mmap as u32, 0, 6),
        load(ARGUMENT_3),
        skip_if(libc::BPF_JSET, libc::MAP_GROWSDOWN as u32, 3, 0),
        skip_if(libc::BPF_JSET, libc::MAP_ANONYMOUS as u32, 0, 1),
        skip_if(libc::BPF_JSET, libc::MAP_SHARED as u32, 1, 0),
        answer(ALLOW),
        answer(REFUSE),
    ];
    for number in ALLOWED {
        program.extend([skip_if(libc::BPF_JEQ, *number as u32, 0, 1), answer(ALLOW)]);
    }
    program.push(answer(REFUSE));
    program
}

fn load(offset: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn answer(action: u32) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, action)
}

fn statement(code: u32, value: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k: value,
    }
}

fn skip_if(test: u32, value: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter {
        code: (libc::BPF_JMP | libc::BPF_K | test) as u16,
        jt: yes,
        jf: no,
        k: value,
    }
}
