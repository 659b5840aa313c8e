//! Usage records on their way to the host. Each is kept until the host says that it is on disk, and sent again
//! until then; the host drops repetitions by number. They live in memory only: a guest that dies takes
//! unacknowledged ones along, which is why new requests are refused while too many wait.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cocoon_protocol::host::{FromHost, ToHost, UsageRecord};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};
use tracing::warn;

use crate::{
    console::EXPORT,
    host::{HostClient, HostError},
};

/// With this many unacknowledged records no further request is admitted. Requests that run by then add at
/// most `limits.requests_max` (4096), which bounds the queue.
pub const UNSTORED_RECORDS_MAX: usize = 1000;

const SEND_DEADLINE: Duration = Duration::from_secs(30);
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Records that the host has not acknowledged, oldest first.
pub struct Outbox {
    queue: Mutex<VecDeque<UsageRecord>>,
    waiting: watch::Sender<usize>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            queue: Mutex::default(),
            waiting: watch::Sender::new(0),
        }
    }
}

impl Outbox {
    /// Adds the newest record.
    pub fn push(&self, record: UsageRecord) {
        let mut queue = self.lock();
        queue.push_back(record);
        self.waiting.send_replace(queue.len());
    }

    /// How many are unacknowledged.
    pub fn waiting(&self) -> usize {
        self.lock().len()
    }

    /// Waits until all are acknowledged; false if that takes beyond `end`.
    pub async fn flushed(&self, end: Instant) -> bool {
        let mut waiting = self.waiting.subscribe();
        timeout_at(end, waiting.wait_for(|count| *count == 0))
            .await
            .is_ok()
    }

    /// Sends records, oldest first but for those that were refused, for ever.
    pub async fn deliver(&self, host: &HostClient) {
        let mut waiting = self.waiting.subscribe();
        let mut pause = PAUSE_MIN;
        while waiting.wait_for(|count| *count > 0).await.is_ok() {
            let Some(record) = self.lock().front().cloned() else {
                continue;
            };
            let number = record.number;
            match host.call(&ToHost::Record { record }, SEND_DEADLINE).await {
                Ok(FromHost::Stored { number: stored }) if stored == number => {
                    self.remove_oldest();
                    pause = PAUSE_MIN;
                    continue;
                }
                Ok(_) => warn!(target: EXPORT, "the host did not confirm usage record {number}"),
                Err(error) => {
                    warn!(target: EXPORT, "usage record {number} is not stored yet: {error}");
                    // It may be this one alone: those behind it are tried first.
                    if let HostError::Refused { .. } = error {
                        self.lock().rotate_left(1);
                    }
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn remove_oldest(&self) {
        let mut queue = self.lock();
        queue.pop_front();
        self.waiting.send_replace(queue.len());
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<UsageRecord>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
