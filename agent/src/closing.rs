//! The end of a guest: nothing new is begun, and answers that are charged already reach those who pay for them.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

/// Whether the guest is about to power off, and the answers that their clients may not have yet.
pub struct Closing {
    begun: watch::Sender<bool>,
    answers: watch::Sender<()>,
}

impl Default for Closing {
    fn default() -> Self {
        Self {
            begun: watch::Sender::new(false),
            answers: watch::Sender::new(()),
        }
    }
}

impl Closing {
    /// From now on [`Self::answer`] refuses.
    pub(crate) fn begin(&self) {
        self.begun.send_replace(true);
    }

    /// Waits for [`Self::begin`].
    pub(crate) async fn begun(&self) {
        let mut begun = self.begun.subscribe();
        // Its sender is `self`.
        let _ = begun.wait_for(|begun| *begun).await;
    }

    /// For the answer that is next on a connection; `None` once the end has begun.
    pub(crate) fn answer(&self, connection: &Arc<LastAnswer>) -> Option<UnderWay> {
        // First counted, then asked: whoever begins does it the other way around and misses none.
        let counted = self.answers.subscribe();
        if *self.begun.borrow() {
            return None;
        }
        *connection.lock() = Some(Last {
            _counted: counted,
            over: None,
        });
        Some(UnderWay(Arc::clone(connection)))
    }

    /// Waits until no answer is on its way.
    pub(crate) async fn all_taken(&self) {
        self.answers.closed().await;
    }
}

/// What a connection's client was answered last.
#[derive(Default)]
pub(crate) struct LastAnswer(Mutex<Option<Last>>);

struct Last {
    _counted: watch::Receiver<()>,
    over: Option<Instant>,
}

/// An answer that is being made and written; over when dropped.
pub(crate) struct UnderWay(Arc<LastAnswer>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(last) = &mut *self.0.lock() {
            last.over = Some(Instant::now());
        }
    }
}

impl LastAnswer {
    /// By its next request a client shows that it has what it was answered.
    pub(crate) fn taken(&self) {
        *self.lock() = None;
    }

    /// Whether some of it may not be with the client yet: what was written lies in buffers of guest and host, not
    /// longer than `in_buffers`. If not, it is not waited for any more.
    pub(crate) fn is_on_its_way(&self, in_buffers: Duration) -> bool {
        let mut last = self.lock();
        let on_its_way = |last: &Last| last.over.is_none_or(|over| over.elapsed() < in_buffers);
        if !last.as_ref().is_some_and(on_its_way) {
            *last = None;
        }
        last.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Last>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
