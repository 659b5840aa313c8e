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
            stage: Stage::Making,
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
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// By the engine, and into HTTP's frames.
    Making,
    /// Out of the buffers of HTTP and TLS, as fast as the client takes it.
    Writing,
    /// Since then it is in the buffers of kernel and host.
    Written(Instant),
}

/// An answer that is being made; dropped with its last frame.
pub(crate) struct UnderWay(Arc<LastAnswer>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.advance(Stage::Making, Stage::Writing);
    }
}

impl LastAnswer {
    /// By its next request a client shows that it has what it was answered.
    pub(crate) fn taken(&self) {
        *self.lock() = None;
    }

    /// All that HTTP and TLS had is written.
    pub(crate) fn flushed(&self) {
        self.advance(Stage::Writing, Stage::Written(Instant::now()));
    }

    /// Whether some of it may not be with the client yet: of what was written, nothing is left on the way after
    /// `in_buffers`. If not, it is not waited for any more.
    pub(crate) fn is_on_its_way(&self, in_buffers: Duration) -> bool {
        let mut last = self.lock();
        let on_its_way = last.as_ref().is_some_and(|last| match last.stage {
            Stage::Making | Stage::Writing => true,
            Stage::Written(since) => since.elapsed() < in_buffers,
        });
        if !on_its_way {
            *last = None;
        }
        on_its_way
    }

    fn advance(&self, from: Stage, to: Stage) {
        if let Some(last) = &mut *self.lock()
            && last.stage == from
        {
            last.stage = to;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Last>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_on_its_way_until_it_is_made_and_written_and_some_time_has_passed() {
        const LONG: Duration = Duration::from_secs(3_600);
        let (closing, connection) = (Closing::default(), Arc::<LastAnswer>::default());
        assert!(!connection.is_on_its_way(LONG), "nothing was asked");

        let under_way = closing.answer(&connection);
        connection.flushed();
        assert!(connection.is_on_its_way(Duration::ZERO), "the head was written");
        drop(under_way);
        assert!(
            connection.is_on_its_way(Duration::ZERO),
            "its client reads slowly"
        );
        connection.flushed();
        assert!(connection.is_on_its_way(LONG), "it is in the kernel's buffers");
        assert_eq!(closing.answers.receiver_count(), 1);
        assert!(!connection.is_on_its_way(Duration::ZERO));
        assert_eq!(closing.answers.receiver_count(), 0, "it is not waited for");

        let _under_way = closing.answer(&connection);
        connection.taken();
        assert!(!connection.is_on_its_way(LONG));
        closing.begin();
        assert!(closing.answer(&connection).is_none());
        assert_eq!(closing.answers.receiver_count(), 0);
    }
}
