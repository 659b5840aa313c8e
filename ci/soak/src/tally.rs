//! What clients met.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// Counts of all clients together.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Read whole, with the expected text and a true receipt.
    pub(crate) answered: AtomicU64,
    /// Left in the middle on purpose.
    pub(crate) left: AtomicU64,
    /// Refused with a time to come again.
    pub(crate) refused: AtomicU64,
    /// Found the connection closed, before anything of an answer: asked again on another.
    pub(crate) closed: AtomicU64,
    /// Connections on which nothing was said, ended by the agent.
    pub(crate) idle_ended: AtomicU64,
    /// Bytes of answers.
    pub(crate) bytes: AtomicU64,
    errors: AtomicU64,
    first_error: Mutex<Option<String>>,
}

impl Tally {
    /// Anything else: each fails the run.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        let mut first = self.first_error.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| format!("{error:#}"));
    }

    /// How many there were, and the first of them.
    pub(crate) fn errors(&self) -> (u64, Option<String>) {
        let first = self.first_error.lock().unwrap_or_else(PoisonError::into_inner);
        (self.errors.load(Ordering::Relaxed), first.clone())
    }
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// As it stands.
pub(crate) fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
