//! The GPUs, through `cocoon-gpu`: evidence under a nonce of this boot, then ready, then watched to the end.
//!
//! The order is held by types: only measured evidence ([`Collected::items`]) can be set ready, and only GPUs that are
//! ready can be watched. What the child says is the driver's word; clients judge the evidence.

use std::{io, time::Duration};

use cocoon_evidence::{GpuEvidence, NONCE_BYTES};
use cocoon_protocol::{
    FrameError,
    gpu::{FromGpu, ToGpu},
    read_frame_async, write_frame_async,
};
use tokio::{net::UnixStream, time::timeout};

/// A report takes a GPU some seconds, and starting the driver's first client some more.
const COLLECT_DEADLINE: Duration = Duration::from_secs(60);
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// Why the guest cannot trust or use its GPUs. It powers off.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// The program is in the image, and cannot be started.
    #[error("starting the program that speaks to the GPUs: {0}")]
    Start(#[source] io::Error),
    /// It said nothing in time.
    #[error("{0} took too long; the GPUs or their driver hang")]
    Deadline(&'static str),
    /// It ended, or spoke nonsense.
    #[error("{attempt}: {error}")]
    Frame {
        /// What was attempted.
        attempt: &'static str,
        /// How it ended.
        error: FrameError,
    },
    /// It answered something else.
    #[error("{0}: an answer that is not expected here")]
    Unexpected(&'static str),
    /// The driver's words.
    #[error("the GPUs: {0}")]
    Failed(String),
}

/// A running `cocoon-gpu`.
pub struct GpuProcess {
    /// To it.
    pub socket: UnixStream,
    /// Ends it when dropped.
    pub guard: Box<dyn Send>,
}

/// Starts `cocoon-gpu`.
pub trait Gpus: Send + Sync {
    /// `None`: this image has no such program, and so no driver.
    ///
    /// # Errors
    /// The kernel's.
    fn start(&self) -> io::Result<Option<GpuProcess>>;
}

/// Evidence of GPUs that take no work yet.
pub struct Collected {
    process: GpuProcess,
    items: Vec<GpuEvidence>,
}

/// Asks for evidence. `Err` of the inner result says why there is no GPU, which is a state like any other.
///
/// # Errors
/// There is a GPU, or there may be one, and it does not work.
pub async fn collect(
    gpus: &dyn Gpus,
    nonce: [u8; NONCE_BYTES],
) -> Result<Result<Collected, String>, GpuError> {
    let Some(mut process) = gpus.start().map_err(GpuError::Start)? else {
        return Ok(Err("this image has no GPU driver".into()));
    };
    let attempt = "asking the GPUs for evidence";
    match ask(&mut process, &ToGpu::Collect { nonce }, attempt, COLLECT_DEADLINE).await? {
        FromGpu::Evidence { items } if !items.is_empty() => Ok(Ok(Collected { process, items })),
        FromGpu::Nothing { reason } => Ok(Err(reason)),
        FromGpu::Failed { reason } => Err(GpuError::Failed(reason)),
        FromGpu::Evidence { .. } | FromGpu::Ready => Err(GpuError::Unexpected(attempt)),
    }
}

impl Collected {
    /// What has to be measured before [`Self::set_ready`].
    pub fn items(&self) -> &[GpuEvidence] {
        &self.items
    }

    /// Lets the GPUs take work.
    ///
    /// # Errors
    /// They do not.
    pub async fn set_ready(mut self) -> Result<Watched, GpuError> {
        let attempt = "setting the GPUs ready";
        match ask(&mut self.process, &ToGpu::SetReady, attempt, READY_DEADLINE).await? {
            FromGpu::Ready => Ok(Watched(self.process)),
            FromGpu::Failed { reason } => Err(GpuError::Failed(reason)),
            FromGpu::Evidence { .. } | FromGpu::Nothing { .. } => Err(GpuError::Unexpected(attempt)),
        }
    }
}

/// GPUs that work.
pub struct Watched(GpuProcess);

impl Watched {
    /// Returns when a GPU was reset or is gone, or when nobody watches any more, and says why. A GPU that was reset
    /// is another one than the one whose evidence was measured.
    pub async fn lost(&mut self) -> GpuError {
        let attempt = "watching the GPUs";
        match read_frame_async(&mut self.0.socket).await {
            Ok(FromGpu::Failed { reason }) => GpuError::Failed(reason),
            Ok(_) => GpuError::Unexpected(attempt),
            Err(error) => GpuError::Frame { attempt, error },
        }
    }
}

async fn ask(
    process: &mut GpuProcess,
    message: &ToGpu,
    attempt: &'static str,
    deadline: Duration,
) -> Result<FromGpu, GpuError> {
    let exchange = async {
        write_frame_async(&mut process.socket, message).await?;
        read_frame_async(&mut process.socket).await
    };
    timeout(deadline, exchange)
        .await
        .map_err(|_| GpuError::Deadline(attempt))?
        .map_err(|error| GpuError::Frame { attempt, error })
}
