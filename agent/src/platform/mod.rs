//! What the agent needs of the processor: extend RTMR3, and quote report data.
//!
//! Which back end is used is decided by what the kernel shows: with a TDX device, only TDX. The simulated one
//! exists only in builds of the dev profile and only where that device is absent.

#[cfg(feature = "simulated")]
pub mod simulated;
pub mod tdx;

use std::{path::Path, sync::Arc};

use cocoon_evidence::{Digest48, ReportData};

use crate::transport::{BoxFuture, Dial};

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
    /// Extends RTMR3 with an event's digest.
    fn extend(&self, digest: Digest48) -> BoxFuture<'_, Result<(), PlatformError>>;

    /// A quote over the current registers and this report data.
    fn quote(&self, data: ReportData) -> BoxFuture<'_, Result<Vec<u8>, PlatformError>>;
}

/// The platform that this machine is.
///
/// # Errors
/// There is no TDX device, and this build has no simulated platform.
pub fn detect(sys: &Path, dial: Arc<dyn Dial>) -> Result<Arc<dyn Platform>, PlatformError> {
    let tdx = tdx::Tdx::new(sys);
    if tdx.is_present() {
        return Ok(Arc::new(tdx));
    }
    without_tdx(dial)
}

#[cfg(feature = "simulated")]
fn without_tdx(dial: Arc<dyn Dial>) -> Result<Arc<dyn Platform>, PlatformError> {
    Ok(Arc::new(simulated::Simulated::new(dial)))
}

#[cfg(not(feature = "simulated"))]
fn without_tdx(_: Arc<dyn Dial>) -> Result<Arc<dyn Platform>, PlatformError> {
    Err(PlatformError::new(
        "looking for a trusted platform",
        "the kernel shows no TDX guest device; boot this image in a TDX guest, or use the dev profile",
    ))
}
