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

/// Records that the host has not acknowledged.
pub struct Outbox {
    queues: Mutex<Queues>,
    waiting: watch::Sender<usize>,
}

/// Each oldest first.
#[derive(Default)]
struct Queues {
    next: VecDeque<UsageRecord>,
    /// The host answered that it does not take them now.
    refused: VecDeque<UsageRecord>,
}

impl Queues {
    fn len(&self) -> usize {
        self.next.len() + self.refused.len()
    }

    fn oldest_is_refused(&mut self) {
        self.refused.extend(self.next.pop_front());
    }

    /// Called when no other waits.
    fn try_refused_again(&mut self) {
        self.next.append(&mut self.refused);
    }
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            queues: Mutex::default(),
            waiting: watch::Sender::new(0),
        }
    }
}

impl Outbox {
    /// Adds the newest record.
    pub fn push(&self, record: UsageRecord) {
        let mut queues = self.lock();
        queues.next.push_back(record);
        self.waiting.send_replace(queues.len());
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

    /// Sends records for ever. One that the host refuses may be refused for its own sake, so it holds up no other: it is
    /// sent again after a pause, and what is new does not wait for that.
    pub async fn deliver(&self, host: &HostClient) {
        let mut waiting = self.waiting.subscribe();
        let mut pause = PAUSE_MIN;
        let mut refused_pause = PAUSE_MIN;
        let mut again = Instant::now();
        while waiting.wait_for(|count| *count > 0).await.is_ok() {
            let Some(record) = self.lock().next.front().cloned() else {
                if timeout_at(again, waiting.changed()).await.is_err() {
                    self.lock().try_refused_again();
                    refused_pause = longer(refused_pause);
                }
                continue;
            };
            let number = record.number;
            match host.call(&ToHost::Record { record }, SEND_DEADLINE).await {
                Ok(FromHost::Stored { number: stored }) if stored == number => {
                    pause = PAUSE_MIN;
                    if self.remove_oldest() == 0 {
                        refused_pause = PAUSE_MIN;
                    }
                    continue;
                }
                Ok(_) => warn!(target: EXPORT, "the host did not confirm usage record {number}"),
                Err(error) => {
                    warn!(target: EXPORT, "usage record {number} is not stored yet: {error}");
                    if let HostError::Refused { .. } = error {
                        self.lock().oldest_is_refused();
                        again = Instant::now() + refused_pause;
                        continue;
                    }
                }
            }
            sleep(pause).await;
            pause = longer(pause);
        }
    }

    /// How many remain.
    fn remove_oldest(&self) -> usize {
        let mut queues = self.lock();
        queues.next.pop_front();
        self.waiting.send_replace(queues.len());
        queues.len()
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn longer(pause: Duration) -> Duration {
    (pause * 2).min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use cocoon_evidence::Digest32;
    use cocoon_protocol::{
        AccountAddress, NetworkId, TokenCounts, Voucher, read_frame_async, write_frame_async,
    };
    use ed25519_dalek::SigningKey;
    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use crate::transport::{BoxFuture, BoxStream, Dial};

    /// Never takes the record with number 1, and notes which ones it was sent.
    #[derive(Default)]
    struct RefusingHost {
        sent: Arc<Mutex<Vec<u64>>>,
    }

    impl Dial for RefusingHost {
        fn dial(&self, _: u32) -> BoxFuture<'_, io::Result<BoxStream>> {
            let (ours, theirs) = duplex(4096);
            tokio::spawn(serve(theirs, Arc::clone(&self.sent)));
            Box::pin(async move { Ok(Box::new(ours) as BoxStream) })
        }
    }

    async fn serve(mut stream: DuplexStream, sent: Arc<Mutex<Vec<u64>>>) {
        while let Ok(ToHost::Record { record }) = read_frame_async(&mut stream).await {
            let number = record.number;
            sent.lock().unwrap().push(number);
            let answer = match number {
                1 => FromHost::Failed {
                    reason: "not this one".into(),
                },
                _ => FromHost::Stored { number },
            };
            write_frame_async(&mut stream, &answer).await.unwrap();
        }
    }

    fn record(number: u64) -> UsageRecord {
        let agent = SigningKey::from_bytes(&[1; 32]);
        let tokens = TokenCounts { input: 1, output: 1 };
        let voucher = Voucher {
            network: NetworkId::LOCAL,
            contract: AccountAddress(Digest32::ZERO),
            agent_key: agent.verifying_key().to_bytes(),
            grant: Digest32::ZERO,
            served: tokens,
        };
        UsageRecord {
            number,
            tokens,
            commitment: Digest32::ZERO,
            voucher: voucher.sign(&agent),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_record_does_not_wait_with_one_that_was_refused() {
        let host = RefusingHost::default();
        let sent = Arc::clone(&host.sent);
        let outbox = Arc::new(Outbox::default());
        outbox.push(record(1));
        let delivery = tokio::spawn({
            let outbox = Arc::clone(&outbox);
            async move { outbox.deliver(&HostClient::new(Arc::new(host))).await }
        });
        // By now the pause between attempts is the longest.
        sleep(Duration::from_secs(60)).await;
        let attempts = sent.lock().unwrap().len();
        assert!((8..20).contains(&attempts), "{attempts} attempts");
        outbox.push(record(2));
        sleep(Duration::from_millis(1)).await;
        assert_eq!(sent.lock().unwrap()[attempts..], [2]);
        assert_eq!(outbox.waiting(), 1);
        // And the refused one is not forgotten.
        sleep(PAUSE_MAX).await;
        assert_eq!(sent.lock().unwrap()[attempts..], [2, 1]);
        delivery.abort();
    }
}
