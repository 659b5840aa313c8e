//! Which files the engine may open: its libraries and the model to read, itself to execute, nothing to write.
//!
//! File permissions alone would leave it all that is readable for everybody: `/proc`, `/sys`, `/dev`. A kernel
//! without Landlock, or with an old one, starts no engine (Documentation/userspace-api/landlock.rst).

#![allow(unsafe_code, reason = "the C library has no functions for these system calls")]

use std::{
    fs::OpenOptions,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::Path,
};

use cocoon_protocol::engine::ENGINE_SOCKET_FD;
use nix::fcntl::{FcntlArg, fcntl};

/// The first version that confines signals and abstract Unix sockets too.
const ABI_MIN: i64 = 6;
const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: u32 = 1;

/// `LANDLOCK_ACCESS_FS_*`.
const EXECUTE: u64 = 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
/// All that version 6 knows. What is handled and not granted is refused.
const EVERYTHING: u64 = (1 << 16) - 1;
/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET` and `LANDLOCK_SCOPE_SIGNAL`.
const SCOPES: u64 = 3;

#[repr(C)]
struct RulesetAttributes {
    handled_files: u64,
    handled_network: u64,
    scoped: u64,
}

#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// Made before the fork, since it opens files; applied after it.
pub(super) struct Ruleset(OwnedFd);

impl Ruleset {
    /// Everything forbidden.
    pub(super) fn new() -> io::Result<Self> {
        let attributes = RulesetAttributes {
            handled_files: EVERYTHING,
            handled_network: 0,
            scoped: SCOPES,
        };
        // SAFETY: with this flag the kernel reads no memory.
        let abi = unsafe {
            let nothing = std::ptr::null::<RulesetAttributes>();
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                nothing,
                0usize,
                CREATE_RULESET_VERSION,
            )
        };
        if abi < ABI_MIN {
            let text = "the kernel has no Landlock of version 6, so nothing would confine the engine";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        // SAFETY: the kernel reads the struct, of this size, during the call.
        let ruleset = unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                &raw const attributes,
                size_of::<RulesetAttributes>(),
                0,
            )
        };
        if ruleset < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor, for us only.
        let ruleset = unsafe { OwnedFd::from_raw_fd(ruleset as i32) };
        // Above the number that the child's socket is moved to.
        let above = FcntlArg::F_DUPFD_CLOEXEC(ENGINE_SOCKET_FD + 1);
        let moved = fcntl(&ruleset, above)?;
        // SAFETY: as above.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(moved) }))
    }

    /// Allows `path` and what is below it to be read.
    pub(super) fn allow_reading(&self, path: &Path) -> io::Result<()> {
        self.allow(path, READ_FILE, READ_DIR)
    }

    /// Allows a file to be executed.
    pub(super) fn allow_executing(&self, file: &Path) -> io::Result<()> {
        self.allow(file, READ_FILE | EXECUTE, 0)
    }

    fn allow(&self, path: &Path, on_files: u64, on_folders: u64) -> io::Result<()> {
        let mut open = OpenOptions::new();
        let file = open.read(true).custom_flags(libc::O_PATH).open(path)?;
        let is_folder = file.metadata()?.is_dir();
        let rule = PathBeneath {
            allowed: on_files | if is_folder { on_folders } else { 0 },
            parent: file.as_raw_fd(),
        };
        // SAFETY: the kernel reads the struct during the call, and both descriptors are open.
        let added = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                self.0.as_raw_fd(),
                RULE_PATH_BENEATH,
                &raw const rule,
                0,
            )
        };
        match added {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Confines the calling thread, for ever. One system call; usable between fork and exec.
    pub(super) fn apply(&self) -> io::Result<()> {
        // SAFETY: the call takes integers only.
        let confined = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.0.as_raw_fd(), 0) };
        match confined {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
