//! Does KVM run our kernel? Where the host is itself a virtual machine, /dev/kvm can exist and still not carry
//! a stock kernel through its decompressor, so the kernel itself is the probe: without a root file system it
//! has to get as far as missing it.

use std::{fs, io, path::Path, process::Stdio, time::Duration};

use cocoon_evidence::Digest32;
use cocoon_measurements::LaunchPlatform;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::Accelerator;
use crate::child::{Spawner, wait_or_kill};

/// Under KVM the kernel takes about a second.
const PROBE_LIMIT: Duration = Duration::from_secs(8);

/// The kernel's last words when it finds no root.
const REACHED: &str = "Kernel panic - not syncing: VFS";

/// The answer holds for one kernel and one QEMU until the host starts anew.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Probed {
    host_boot: String,
    kernel: Digest32,
    qemu: String,
    works: bool,
}

/// Whether this user may use KVM at all.
///
/// # Errors
/// `/dev/kvm` cannot be opened.
pub fn open_kvm() -> io::Result<()> {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map(drop)
}

/// What runs a guest of this platform, given whether `/dev/kvm` opens and whether KVM boots the kernel. Only a simulated
/// guest is tried first: there is another way for it, and a release kernel has no console to be recognised by. What is
/// wrong with TDX, QEMU says itself.
///
/// # Errors
/// `/dev/kvm` cannot be opened, and the platform cannot do without.
pub async fn accelerator(
    platform: LaunchPlatform,
    kvm: io::Result<()>,
    boots: impl Future<Output = bool>,
) -> io::Result<Accelerator> {
    match (platform, kvm) {
        (LaunchPlatform::Simulated, Ok(())) if boots.await => Ok(Accelerator::Kvm),
        (LaunchPlatform::Simulated, _) => Ok(Accelerator::Tcg),
        (LaunchPlatform::Tdx | LaunchPlatform::Snp, kvm) => kvm.map(|()| Accelerator::Kvm),
    }
}

/// Whether QEMU with KVM boots this kernel, asked once for each boot of the host; `state_dir` keeps the answer.
pub async fn kvm_works(
    spawner: &Spawner,
    qemu: &Path,
    firmware: &Path,
    kernel: &Path,
    state_dir: &Path,
) -> bool {
    let asked = Probed {
        host_boot: fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
        kernel: fs::read(kernel).map_or(Digest32::ZERO, |bytes| Digest32::of(&bytes)),
        qemu: qemu.to_string_lossy().into_owned(),
        works: true,
    };
    let memory = state_dir.join("kvm-probe.json");
    if let Some(works) = fs::read(&memory)
        .ok()
        .and_then(|bytes| remembered(&bytes, &asked))
    {
        return works;
    }
    let works = boots(spawner, qemu, firmware, kernel, &state_dir.join("kvm-probe.log")).await;
    let answer = Probed { works, ..asked };
    let json = serde_json::to_vec(&answer).expect("strings and a digest are JSON");
    if let Err(error) = fs::write(&memory, json) {
        tracing::warn!(%error, "the answer of the KVM probe could not be kept");
    }
    works
}

fn remembered(bytes: &[u8], asked: &Probed) -> Option<bool> {
    let kept: Probed = serde_json::from_slice(bytes).ok()?;
    let works = kept.works;
    (Probed { works: true, ..kept } == *asked).then_some(works)
}

async fn boots(spawner: &Spawner, qemu: &Path, firmware: &Path, kernel: &Path, log: &Path) -> bool {
    let Ok(serial) = fs::File::create(log) else {
        return false;
    };
    let mut command = Command::new(qemu);
    command
        .args(["-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "256M"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-serial", "stdio", "-append", "console=ttyS0 panic=-1"])
        .arg("-bios")
        .arg(firmware)
        .arg("-kernel")
        .arg(kernel)
        .stdin(Stdio::null())
        .stdout(serial)
        .stderr(Stdio::null());
    let Ok(mut child) = spawner.spawn(command).await else {
        return false;
    };
    let _ = wait_or_kill(&mut child, PROBE_LIMIT).await;
    let console = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&console).contains(REACHED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_for_one_host_boot_kernel_and_qemu() {
        let asked = |host_boot: &str, kernel: &[u8]| Probed {
            host_boot: host_boot.into(),
            kernel: Digest32::of(kernel),
            qemu: "qemu".into(),
            works: true,
        };
        for works in [true, false] {
            let kept = serde_json::to_vec(&Probed {
                works,
                ..asked("boot", b"kernel")
            })
            .unwrap();
            assert_eq!(remembered(&kept, &asked("boot", b"kernel")), Some(works));
            assert_eq!(remembered(&kept, &asked("next boot", b"kernel")), None);
            assert_eq!(remembered(&kept, &asked("boot", b"other kernel")), None);
        }
        assert_eq!(remembered(b"torn", &asked("boot", b"kernel")), None);
    }

    #[tokio::test]
    async fn a_tdx_guest_is_not_tried_first_because_a_release_kernel_says_nothing() {
        let silent = || async { false };
        let tdx = accelerator(LaunchPlatform::Tdx, Ok(()), silent()).await;
        assert!(matches!(tdx, Ok(Accelerator::Kvm)));
        let simulated = accelerator(LaunchPlatform::Simulated, Ok(()), silent()).await;
        assert!(matches!(simulated, Ok(Accelerator::Tcg)));
        let speaking = accelerator(LaunchPlatform::Simulated, Ok(()), async { true }).await;
        assert!(matches!(speaking, Ok(Accelerator::Kvm)));
        let denied = || Err(io::ErrorKind::PermissionDenied.into());
        let without = accelerator(LaunchPlatform::Simulated, denied(), async { true }).await;
        assert!(matches!(without, Ok(Accelerator::Tcg)));
        assert!(
            accelerator(LaunchPlatform::Tdx, denied(), silent())
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn a_qemu_that_dies_at_once_does_not_work() {
        let dir = tempfile::tempdir().unwrap();
        let spawner = Spawner::start().unwrap();
        let log = dir.path().join("log");
        let none = Path::new("/none");
        assert!(!boots(&spawner, Path::new("/bin/false"), none, none, &log).await);
        assert!(!boots(&spawner, Path::new("/no/such/qemu"), none, none, &log).await);
    }
}
