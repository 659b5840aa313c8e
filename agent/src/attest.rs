//! Measuring and quoting, as two types: a [`Measurer`] can extend RTMR3, and finishing it yields an
//! [`Attestor`], which can only quote. That nothing is extended after `ready` is thus a matter of types.

use std::sync::Arc;

use cocoon_evidence::{EventKind, EventLog, EventLogError, EvidenceBundle, Platform as Evidence, ReportData};
use tokio::sync::{Mutex, Semaphore};

use crate::platform::{Platform, PlatformError};

/// Quotes waited for at the same time; each takes tens of milliseconds, and more would only time out.
const QUOTES_WAITING_MAX: usize = 16;

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
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// `QUOTES_WAITING_MAX` others wait already.
    #[error("too many quotes are being made, try again")]
    Busy,
    /// The platform failed.
    #[error(transparent)]
    Platform(#[from] PlatformError),
}

/// Extends RTMR3 and keeps the log of it.
pub struct Measurer {
    platform: Arc<dyn Platform>,
    log: EventLog,
}

impl Measurer {
    /// Begins with an empty log; the register is at its reset value.
    pub fn new(platform: Arc<dyn Platform>) -> Self {
        Self {
            platform,
            log: EventLog::default(),
        }
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
            one: Mutex::new(()),
            waiting: Semaphore::new(QUOTES_WAITING_MAX),
        })
    }
}

/// Makes evidence bundles.
pub struct Attestor {
    platform: Arc<dyn Platform>,
    log: EventLog,
    one: Mutex<()>,
    waiting: Semaphore,
}

impl Attestor {
    /// The complete event log.
    pub fn log(&self) -> &EventLog {
        &self.log
    }

    /// A bundle whose quote carries this report data. One quote is made at a time.
    ///
    /// # Errors
    /// See [`AttestError`].
    pub async fn evidence(&self, data: ReportData) -> Result<EvidenceBundle, AttestError> {
        let _place = self.waiting.try_acquire().map_err(|_| AttestError::Busy)?;
        let _turn = self.one.lock().await;
        let quote = self.platform.quote(data).await?;
        Ok(EvidenceBundle {
            platform: Evidence::Tdx { quote },
            events: self.log.clone(),
            gpu: vec![],
        })
    }
}
