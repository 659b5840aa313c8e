//! Measuring and quoting, as two types: a [`Measurer`] can extend RTMR3, and finishing it yields an
//! [`Attestor`], which can only quote. That nothing is extended after `ready` is thus a matter of types.

use std::sync::Arc;

use cocoon_evidence::{EventKind, EventLog, EventLogError, EvidenceBundle, GpuEvidence, ReportData};
use tokio::sync::Mutex;

use crate::platform::{Platform, PlatformError};

/// Why an event is not in RTMR3.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The event must not come now, or is too large.
    #[error(transparent)]
    Log(#[from] EventLogError),
    /// The platform failed.
    #[error(transparent)]
    Platform(#[from] PlatformError),
}

/// Why there is no evidence.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AttestError {
    /// As many as can be wait for fresh evidence already.
    #[error("too many wait for evidence, try again")]
    Busy,
    /// The platform did not quote in time.
    #[error("the platform gave no quote in time")]
    Late,
    /// The platform failed.
    #[error(transparent)]
    Platform(#[from] PlatformError),
}

/// Extends RTMR3 and keeps the log of it.
pub struct Measurer {
    platform: Arc<dyn Platform>,
    log: EventLog,
    gpu: Vec<GpuEvidence>,
}

impl Measurer {
    /// Begins with an empty log; the register is at its reset value.
    pub fn new(platform: Arc<dyn Platform>) -> Self {
        Self {
            platform,
            log: EventLog::default(),
            gpu: vec![],
        }
    }

    /// Extends RTMR3 with the launch document, and holds it against what the host committed to before the launch.
    ///
    /// # Errors
    /// The event is out of order, it is another document, or the platform failed.
    pub async fn record_launch(&mut self, document: &[u8]) -> Result<(), MeasureError> {
        self.record(EventKind::LaunchDocument, document.to_vec()).await?;
        Ok(self.platform.check_launch(document).await?)
    }

    /// Extends RTMR3 with the digest of these GPUs' evidence, which every bundle then holds; empty without a GPU.
    ///
    /// # Errors
    /// The event is out of order, or the platform failed.
    pub async fn record_gpus(&mut self, items: &[GpuEvidence]) -> Result<(), MeasureError> {
        self.record(EventKind::GpuEvidence, GpuEvidence::event_payload(items))
            .await?;
        self.gpu = items.to_vec();
        Ok(())
    }

    /// Extends RTMR3 with the next event.
    ///
    /// # Errors
    /// The event is out of order, or the platform failed.
    pub async fn record(&mut self, kind: EventKind, payload: Vec<u8>) -> Result<(), MeasureError> {
        let digest = self.log.push(kind, payload)?;
        Ok(self.platform.extend(digest).await?)
    }

    /// Extends RTMR3 with `ready`, the last event.
    ///
    /// # Errors
    /// An earlier event is missing, or the platform failed.
    pub async fn finish(mut self) -> Result<Attestor, MeasureError> {
        self.record(EventKind::Ready, vec![]).await?;
        self.log.check_complete()?;
        Ok(Attestor {
            platform: self.platform,
            log: self.log,
            gpu: self.gpu,
            one: Mutex::new(()),
        })
    }
}

/// Makes evidence bundles.
pub struct Attestor {
    platform: Arc<dyn Platform>,
    log: EventLog,
    gpu: Vec<GpuEvidence>,
    one: Mutex<()>,
}

impl Attestor {
    /// The complete event log.
    pub fn log(&self) -> &EventLog {
        &self.log
    }

    /// A bundle whose quote carries this report data. One quote is made at a time; those who may be many share one
    /// ([`crate::fresh`]).
    ///
    /// # Errors
    /// See [`AttestError`].
    pub async fn evidence(&self, data: ReportData) -> Result<EvidenceBundle, AttestError> {
        let _turn = self.one.lock().await;
        Ok(EvidenceBundle {
            platform: self.platform.quote(data).await?,
            events: self.log.clone(),
            gpu: self.gpu.clone(),
        })
    }
}
