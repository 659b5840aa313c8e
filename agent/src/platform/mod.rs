//! What the agent needs of the processor: extend RTMR3, and quote report data.
//!
//! Which back end is used is decided by what the kernel shows: with a TDX device, only TDX; with an SEV-SNP
//! device, only SEV-SNP. The simulated one exists only in builds of the dev profile and only where both are
//! absent. Each of the two has a second way to its evidence, for where configfs-tsm is missing or fails: which way
//! it came changes nothing in what clients verify.

mod device;
mod qgs;
#[cfg(feature = "simulated")]
pub mod simulated;
pub mod snp;
pub mod tdx;
mod tsm;

use std::{io, path::Path, sync::Arc};

use cocoon_evidence::{Digest48, Platform as Evidence, ReportData};

use crate::transport::{BoxFuture, Dial};

/// The agent's report directory in configfs.
const REPORT_DIR: &str = "kernel/config/tsm/report/cocoon";

/// Why the platform did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{attempt} failed: {cause}")]
pub struct PlatformError {
    /// What was attempted.
    pub attempt: &'static str,
    /// Why it failed.
    pub cause: String,
}

impl PlatformError {
    fn new(attempt: &'static str, cause: impl Into<String>) -> Self {
        Self {
            attempt,
            cause: cause.into(),
        }
    }
}

/// The trusted platform under the guest.
pub trait Platform: Send + Sync {
    /// Extends RTMR3 with an event's digest; nothing where there is no such register.
    fn extend(&self, digest: Digest48) -> BoxFuture<'_, Result<(), PlatformError>>;

    /// Holds the launch document against what the host committed to before the guest started. Where there is a
    /// register the document is in it, and the client judges; so nothing is to be done there.
    fn check_launch<'a>(&'a self, _document: &'a [u8]) -> BoxFuture<'a, Result<(), PlatformError>> {
        Box::pin(async { Ok(()) })
    }

    /// A quote or report over the current registers and this report data.
    fn quote(&self, data: ReportData) -> BoxFuture<'_, Result<Evidence, PlatformError>>;
}

/// Runs what waits for the kernel, so that answers in flight go on.
async fn off_the_loop<T: Send + 'static>(
    ask: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let asked = tokio::task::spawn_blocking(ask).await;
    asked.unwrap_or_else(|_| Err(io::Error::other("the quoting task ended early")))
}

/// The platform that this machine is, as the folders `sys` (usually `/sys`) and `dev` (`/dev`) show it.
///
/// # Errors
/// There is no TDX or SEV-SNP device, and this build has no simulated platform.
pub fn detect(sys: &Path, dev: &Path, dial: Arc<dyn Dial>) -> Result<Arc<dyn Platform>, PlatformError> {
    if let Some(tdx) = tdx::Tdx::find(sys, dev, &dial) {
        return Ok(Arc::new(tdx));
    }
    if let Some(snp) = snp::Snp::find(sys, dev) {
        return Ok(Arc::new(snp));
    }
    without_hardware(dial)
}

#[cfg(feature = "simulated")]
fn without_hardware(dial: Arc<dyn Dial>) -> Result<Arc<dyn Platform>, PlatformError> {
    Ok(Arc::new(simulated::Simulated::new(dial)))
}

#[cfg(not(feature = "simulated"))]
fn without_hardware(_: Arc<dyn Dial>) -> Result<Arc<dyn Platform>, PlatformError> {
    Err(PlatformError::new(
        "looking for a trusted platform",
        "the kernel shows neither a TDX nor an SEV-SNP guest device; boot this image in such a guest, or use the dev \
         profile",
    ))
}
