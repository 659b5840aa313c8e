//! What `up` tells while it works: lines for people, or JSON lines for the process that waits for a detached
//! supervisor.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::exit::Exit;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// Something was done or reached.
    Step {
        /// Milliseconds since the supervisor's start.
        elapsed_ms: u64,
        /// In words.
        text: String,
    },
    /// Something is not as it should be, and the launch goes on.
    Warning {
        /// In words.
        text: String,
    },
    /// The node serves; nothing more is told.
    Serving {
        /// Milliseconds since the supervisor's start.
        elapsed_ms: u64,
        /// For clients.
        url: String,
    },
    /// The launch failed, and everything is stopped.
    Failed {
        /// The code to exit with.
        exit: Exit,
        /// What was attempted, why it failed, what to do.
        message: String,
    },
}

/// Where messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Standard error.
    People,
    /// Standard output, which is a pipe to the waiting `up --detach`.
    Waiter,
}

/// Tells messages, with the time since it was made.
#[derive(Debug, Clone)]
pub struct Reporter {
    start: Instant,
    audience: Audience,
}

impl Reporter {
    /// Time counts from here.
    pub fn new(audience: Audience) -> Self {
        Self {
            start: Instant::now(),
            audience,
        }
    }

    /// Since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Something was done.
    pub fn step(&self, text: impl Into<String>) {
        self.tell(&Progress::Step {
            elapsed_ms: self.elapsed_ms(),
            text: text.into(),
        });
    }

    /// Something is not as it should be.
    pub fn warn(&self, text: impl Into<String>) {
        self.tell(&Progress::Warning { text: text.into() });
    }

    /// The node serves.
    pub fn serving(&self, url: String) {
        self.tell(&Progress::Serving {
            elapsed_ms: self.elapsed_ms(),
            url,
        });
    }

    /// Tells one message. The waiter may be gone; that is no reason to stop.
    pub fn tell(&self, progress: &Progress) {
        match self.audience {
            Audience::People => show(progress),
            Audience::Waiter => {
                // The log of the supervisor has it too.
                show(progress);
                let mut line = serde_json::to_vec(progress).expect("text and numbers are JSON");
                line.push(b'\n');
                let mut stdout = std::io::stdout();
                let _ = stdout.write_all(&line).and_then(|()| stdout.flush());
            }
        }
    }
}

/// One message as people see it.
pub fn show(progress: &Progress) {
    let mut stderr = std::io::stderr().lock();
    let seconds = |elapsed_ms: u64| Duration::from_millis(elapsed_ms).as_secs_f64();
    let _ = match progress {
        Progress::Step { elapsed_ms, text } => writeln!(stderr, "[{:7.2}s] {text}", seconds(*elapsed_ms)),
        Progress::Warning { text } => writeln!(stderr, "[WARNING ] {text}"),
        Progress::Serving { elapsed_ms, url } => {
            writeln!(stderr, "[{:7.2}s] serving at {url}", seconds(*elapsed_ms))
        }
        Progress::Failed { message, .. } => writeln!(stderr, "cocoon-launch: {message}"),
    };
}
