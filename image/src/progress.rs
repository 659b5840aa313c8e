//! Tells a person at the terminal what takes so long.

use std::time::Instant;

/// Prints stages with the time since the start, to stderr.
#[derive(Debug)]
pub struct Progress {
    start: Instant,
}

impl Progress {
    /// Starts the clock.
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// Says what happens now.
    pub fn stage(&self, text: &str) {
        eprintln!("[{:6.1} s] {text}", self.start.elapsed().as_secs_f64());
    }
}
