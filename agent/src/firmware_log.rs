//! What the firmware measured into a TPM, for a test that holds a prediction against it. Compiled into `dev`
//! images only, which are the only ones whose kernel has a TPM driver; nothing here is trusted by anybody.

use std::{collections::BTreeMap, fs, io, path::Path, time::Duration};

use cocoon_evidence::Digest48;
use cocoon_protocol::{simulated::FirmwareMeasurements, write_frame_async};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
};
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::{console::EXPORT, transport::Listen};

const SECURITY_FS: &str = "/sys/kernel/security";
const LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";
const REGISTERS: &str = "/sys/class/tpm/tpm0/pcr-sha384";

/// A TPM for PCs has registers 0 to 23 (PC Client Platform TPM Profile).
const REGISTERS_MAX: u32 = 24;

const SEND_DEADLINE: Duration = Duration::from_secs(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Tells log and registers to whoever connects, until the guest ends. Without a TPM the connection is closed.
pub async fn tell(mut listener: impl Listen) {
    loop {
        match listener.accept().await {
            Ok(mut stream) => match read() {
                Ok(measured) => {
                    let _ = timeout(SEND_DEADLINE, write_frame_async(&mut stream, &measured)).await;
                }
                Err(error) => warn!(target: EXPORT, "there is no log of the firmware: {error}"),
            },
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

fn read() -> io::Result<FirmwareMeasurements> {
    mount_security_fs()?;
    let log = fs::read(LOG)?;
    let mut registers = BTreeMap::new();
    for number in 0..REGISTERS_MAX {
        let text = fs::read_to_string(Path::new(REGISTERS).join(number.to_string()))?;
        let value: Digest48 = text
            .trim()
            .to_ascii_lowercase()
            .parse()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        registers.insert(number, value);
    }
    Ok(FirmwareMeasurements { log, registers })
}

fn mount_security_fs() -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    match mount(
        Some("securityfs"),
        SECURITY_FS,
        Some("securityfs"),
        flags,
        None::<&str>,
    ) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
