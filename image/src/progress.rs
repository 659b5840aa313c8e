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

    /// Says what begins, and how long it took once it is done.
    ///
    /// # Errors
    /// The work's.
    pub fn during<T, E>(&self, text: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.stage(text);
        let begin = Instant::now();
        let done = work()?;
        let what = text.split(':').next().unwrap_or(text);
        self.stage(&format!(
            "{what}: done after {:.1} s",
            begin.elapsed().as_secs_f64()
        ));
        Ok(done)
    }

    /// Says what happens now.
    pub fn stage(&self, text: &str) {
        eprintln!("[{:6.1} s] {text}", self.start.elapsed().as_secs_f64());
    }
}
