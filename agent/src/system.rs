//! What PID 1 owes the kernel and has from it: file systems, disk settings, limits, and an end.

use std::{fs, io, path::Path, time::Duration};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::{
        prctl,
        reboot::{RebootMode, reboot},
        resource::{Resource, setrlimit},
    },
    time::{ClockId, clock_gettime},
};

/// Scratch space in memory; nothing in the guest is meant to write more.
const TMPFS_OPTIONS: &str = "mode=1777,size=16m";

/// The root's and the model's disks are read in small random pieces while libraries are linked; more
/// read-ahead than this reads, and verifies, 2.5 times the bytes.
const READ_AHEAD_KB: &str = "128";

/// A step of the early boot that failed.
#[derive(Debug, thiserror::Error)]
#[error("mounting {target} failed")]
pub struct MountError {
    target: &'static str,
    #[source]
    source: Errno,
}

impl MountError {
    /// The kernel's answer.
    pub fn cause(&self) -> Errno {
        self.source
    }
}

/// Has no image of this process's memory written, should it crash, and no other process look into it. The image's
/// kernel makes no core dumps at all; this holds under any. Children inherit the limit.
///
/// # Errors
/// The kernel's.
pub fn forbid_dumps() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    Ok(prctl::set_dumpable(false)?)
}

/// Runs the guest's one event loop until `life` ends, and waits for nothing else: a disk that the host does not
/// answer holds up neither the end nor the power-off after it.
///
/// # Errors
/// The kernel gives no event loop.
pub fn run(life: impl Future<Output = ()>) -> io::Result<()> {
    // One thread: forking the engine and reaping it cannot interleave, and TLS for a few clients needs no more.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(life);
    runtime.shutdown_background();
    Ok(())
}

/// Mounts the kernel's file systems. The mount points exist in the read-only root.
///
/// # Errors
/// Names the mount point.
pub fn mount_all() -> Result<(), MountError> {
    let (nosuid, nodev, noexec) = (MsFlags::MS_NOSUID, MsFlags::MS_NODEV, MsFlags::MS_NOEXEC);
    let locked = nosuid | nodev | noexec;
    mount_one("proc", "/proc", locked, "hidepid=2")?;
    mount_one("sysfs", "/sys", locked, "")?;
    mount_one("devtmpfs", "/dev", nosuid | noexec, "")?;
    mount_one("tmpfs", "/run", locked, "mode=0755,size=16m")?;
    mount_one("tmpfs", "/tmp", locked, TMPFS_OPTIONS)?;
    if Path::new("/sys/kernel/config").exists() {
        mount_one("configfs", "/sys/kernel/config", locked, "")?;
    }
    Ok(())
}

fn mount_one(
    kind: &'static str,
    target: &'static str,
    flags: MsFlags,
    options: &str,
) -> Result<(), MountError> {
    match mount(Some(kind), target, Some(kind), flags, Some(options)) {
        // The kernel may have mounted devtmpfs itself.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(source) => Err(MountError { target, source }),
    }
}

/// Sets the read-ahead of the disks under the root and the model. Only speed depends on it.
pub fn limit_read_ahead(sys_block: &Path) {
    for device in ["dm-0", "vda", "vdb"] {
        let _ = fs::write(sys_block.join(device).join("queue/read_ahead_kb"), READ_AHEAD_KB);
    }
}

/// Mounts a read-only EROFS volume from which nothing can be executed.
///
/// # Errors
/// The kernel's, as is.
pub fn mount_model(device: &Path, target: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(device), target, Some("erofs"), flags, None::<&str>).map_err(io::Error::from)
}

/// Makes the folder that a volume will be mounted on.
///
/// # Errors
/// The kernel's, as is.
pub fn make_mount_point(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)
}

/// All memory that the kernel manages; 0, so that nothing is granted of it, if it does not say.
pub fn memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or_default().saturating_mul(1024)
}

/// Lets this process have so many files open at once; the kernel starts PID 1 with 1024.
///
/// # Errors
/// The kernel's.
pub fn allow_open_files(count: u64) -> io::Result<()> {
    Ok(setrlimit(Resource::RLIMIT_NOFILE, count, count)?)
}

/// Time since the kernel started.
pub fn uptime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// Ends the guest. There is nothing to write back: every file system is read-only or in memory.
pub fn power_off() -> ! {
    let _ = reboot(RebootMode::RB_POWER_OFF);
    // Not permitted, or not PID 1: then at least this process ends, which as PID 1 panics the kernel.
    std::process::exit(1)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use nix::sys::resource::getrlimit;

    use super::*;

    #[test]
    fn a_crash_of_the_agent_leaves_no_core_dump() {
        let state = || {
            let limits = getrlimit(Resource::RLIMIT_CORE).unwrap();
            (limits, prctl::get_dumpable().unwrap())
        };
        assert!(state().1, "this machine shows nothing here");
        forbid_dumps().unwrap();
        assert_eq!(state(), ((0, 0), false));
    }

    #[test]
    fn a_life_that_ends_is_not_held_up_by_a_disk_that_does_not_answer() {
        let (answer, disk) = mpsc::channel::<()>();
        let (ended, end) = mpsc::channel();
        std::thread::spawn(move || {
            let life = async {
                let (reading, read) = tokio::sync::oneshot::channel();
                tokio::task::spawn_blocking(move || {
                    reading.send(()).unwrap();
                    disk.recv()
                });
                read.await.unwrap();
            };
            ended.send(run(life).is_ok()).unwrap();
        });
        let ended = end.recv_timeout(Duration::from_secs(60));
        drop(answer);
        assert_eq!(ended, Ok(true));
    }
}
