//! How far the guest's boot is, with a deadline for each stage, and the true reason when it ends early.
//! Pure: time is passed in, counted from QEMU's start.

use std::{fmt, time::Duration};

use cocoon_protocol::host::Stage;
use serde::{Deserialize, Serialize};

use crate::qmp::ShutdownCause;

/// Stages in the order in which the guest reaches them.
pub const STAGES: [Stage; 5] = [
    Stage::Agent,
    Stage::Model,
    Stage::Engine,
    Stage::Ready,
    Stage::Serving,
];

/// Lines of the guest's console that an error quotes.
const CONSOLE_LINES: usize = 12;

/// A stage's name as people read it.
pub fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Agent => "agent",
        Stage::Model => "model",
        Stage::Engine => "engine",
        Stage::Ready => "ready",
        Stage::Serving => "serving",
    }
}

/// How long each stage may take after the one before it. The defaults are ten times what an emulated
/// two-core guest needs on a busy machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deadlines {
    /// Firmware, kernel, dm-verity: until PID 1 calls.
    pub agent_s: u64,
    /// The driver of GPUs, launch document and model volume.
    pub model_s: u64,
    /// The engine's process, libtorch included.
    pub engine_s: u64,
    /// Loading the model, and making keys.
    pub ready_s: u64,
    /// The first quote, and listening.
    pub serving_s: u64,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            agent_s: 90,
            model_s: 60,
            engine_s: 120,
            ready_s: 120,
            serving_s: 60,
        }
    }
}

impl Deadlines {
    fn of(&self, stage: Stage) -> Duration {
        Duration::from_secs(match stage {
            Stage::Agent => self.agent_s,
            Stage::Model => self.model_s,
            Stage::Engine => self.engine_s,
            Stage::Ready => self.ready_s,
            Stage::Serving => self.serving_s,
        })
    }
}

/// A stage that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// Which.
    pub stage: Stage,
    /// Milliseconds since QEMU's start.
    pub elapsed_ms: u64,
    /// Milliseconds since the kernel's start, as the guest says.
    pub guest_uptime_ms: u64,
}

/// How far the boot is.
#[derive(Debug, Clone)]
pub struct BootProgress {
    deadlines: Deadlines,
    reached: Vec<Reached>,
}

impl BootProgress {
    /// Nothing is reached yet.
    pub fn new(deadlines: Deadlines) -> Self {
        Self {
            deadlines,
            reached: vec![],
        }
    }

    /// Notes what the guest says it reached. Returns whether that is news; saying it twice moves no deadline.
    pub fn note(&mut self, stage: Stage, now: Duration, guest_uptime_ms: u64) -> bool {
        let news = !self.reached.iter().any(|reached| reached.stage == stage);
        if news {
            self.reached.push(Reached {
                stage,
                elapsed_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
                guest_uptime_ms,
            });
        }
        news
    }

    /// What was reached, in the order of arrival.
    pub fn reached(&self) -> &[Reached] {
        &self.reached
    }

    /// Whether the agent runs, so that there is somebody to talk to.
    pub fn is_agent_up(&self) -> bool {
        !self.reached.is_empty()
    }

    /// The first stage that is missing, and when it is overdue; `None` once the guest serves.
    pub fn awaited(&self) -> Option<(Stage, Duration)> {
        let is_reached = |stage: &Stage| self.reached.iter().any(|reached| reached.stage == *stage);
        if is_reached(&Stage::Serving) {
            return None;
        }
        let stage = *STAGES.iter().find(|stage| !is_reached(stage))?;
        let since = self.reached.last().map_or(0, |reached| reached.elapsed_ms);
        Some((stage, Duration::from_millis(since) + self.deadlines.of(stage)))
    }
}

/// What is known when a guest ended without being asked to.
#[derive(Debug, Default)]
pub struct Evidence {
    /// The agent's own words.
    pub boot_failed: Option<String>,
    /// The stage whose deadline passed, with its allowance.
    pub overdue: Option<(Stage, Duration)>,
    /// From QMP.
    pub cause: Option<ShutdownCause>,
    /// How QEMU exited, if it did.
    pub qemu_exit: Option<String>,
    /// QEMU's standard error.
    pub qemu_stderr: String,
    /// The guest's console; empty for images without one.
    pub console: String,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let console = plain_lines(&self.console);
        let panic = console.iter().find(|line| line.contains("Kernel panic"));
        if let Some(reason) = &self.boot_failed {
            return write!(f, "the agent in the guest says: {reason}");
        }
        match (panic, &self.overdue, &self.cause, &self.qemu_exit) {
            (Some(panic), ..) => write!(f, "the guest's kernel panicked: {panic}")?,
            (None, Some((stage, allowed)), ..) => write!(
                f,
                "stage `{}` was not reached within {} s of the one before it",
                name(*stage),
                allowed.as_secs()
            )?,
            (None, None, Some(cause), _) => write!(f, "{cause}")?,
            (None, None, None, Some(exit)) => write!(f, "QEMU ended: {exit}")?,
            (None, None, None, None) => f.write_str("QEMU closed its control socket")?,
        }
        let stderr = self.qemu_stderr.trim();
        if !stderr.is_empty() {
            write!(f, "\nQEMU wrote:\n  {}", stderr.replace('\n', "\n  "))?;
        }
        if !console.is_empty() {
            let tail = &console[console.len().saturating_sub(CONSOLE_LINES)..];
            write!(f, "\nlast lines of the guest's console:\n  {}", tail.join("\n  "))?;
        }
        Ok(())
    }
}

/// The console's lines without the escape codes of firmware and without anything a terminal would obey:
/// the guest chooses these bytes.
fn plain_lines(console: &str) -> Vec<String> {
    let mut plain = String::new();
    let mut characters = console.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => skip_escape(&mut characters),
            '\n' => plain.push('\n'),
            '\t' => plain.push(' '),
            _ if character.is_control() => {}
            _ => plain.push(character),
        }
    }
    let lines = plain.lines().map(str::trim_end);
    lines.filter(|line| !line.is_empty()).map(Into::into).collect()
}

/// Skips a control sequence (ECMA-48, 5.4): `[`, parameters, one final character.
fn skip_escape(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    if characters.next_if_eq(&'[').is_none() {
        return;
    }
    while characters
        .next_if(|character| matches!(character, ' '..='?'))
        .is_some()
    {}
    characters.next_if(|character| matches!(character, '@'..='~'));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn each_stage_gets_its_time_from_the_one_before() {
        let mut boot = BootProgress::new(Deadlines::default());
        assert_eq!(boot.awaited(), Some((Stage::Agent, seconds(90))));
        assert!(boot.note(Stage::Agent, seconds(5), 3_000));
        assert_eq!(boot.awaited(), Some((Stage::Model, seconds(65))));
        assert!(boot.note(Stage::Engine, seconds(6), 4_000), "stages may overtake");
        assert_eq!(boot.awaited(), Some((Stage::Model, seconds(66))));
        boot.note(Stage::Model, seconds(8), 5_000);
        assert_eq!(boot.awaited(), Some((Stage::Ready, seconds(128))));
        boot.note(Stage::Serving, seconds(9), 6_000);
        assert_eq!(boot.awaited(), None);
    }

    #[test]
    fn a_guest_that_repeats_a_stage_gains_no_time() {
        let mut boot = BootProgress::new(Deadlines::default());
        boot.note(Stage::Agent, seconds(5), 0);
        assert!(!boot.note(Stage::Agent, seconds(60), 0));
        assert_eq!(boot.awaited(), Some((Stage::Model, seconds(65))));
    }

    #[test]
    fn the_most_telling_reason_comes_first() {
        let check = |evidence: Evidence, expected: &str| {
            let text = evidence.to_string();
            assert!(text.starts_with(expected), "{text}");
        };
        let panicking = || {
            Evidence {
            cause: Some(ShutdownCause::GuestReset),
            console: "\u{1b}[2J\u{1b}[01;01Hboot\r\n[ 1.0] Kernel panic - not syncing: VFS\r\n---[ end Kernel panic ]---".into(),
            ..Evidence::default()
        }
        };
        check(
            panicking(),
            "the guest's kernel panicked: [ 1.0] Kernel panic - not syncing: VFS",
        );
        let told = Evidence {
            boot_failed: Some("the model volume is not EROFS".into()),
            ..panicking()
        };
        check(told, "the agent in the guest says: the model volume");
        let late = Evidence {
            overdue: Some((Stage::Agent, seconds(90))),
            ..Evidence::default()
        };
        check(late, "stage `agent` was not reached within 90 s");
        let refused = Evidence {
            qemu_exit: Some("exit status: 1".into()),
            qemu_stderr: "qemu: could not load kernel 'x': invalid kernel header\n".into(),
            ..Evidence::default()
        };
        check(
            refused,
            "QEMU ended: exit status: 1\nQEMU wrote:\n  qemu: could not load",
        );
    }

    #[test]
    fn a_hostile_console_cannot_steer_the_terminal() {
        let lines = plain_lines("a\u{1b}]0;title\u{7}b\u{1b}[31mred\u{9b}2J\r\n\n\u{1b}");
        assert_eq!(lines, ["a]0;titlebred2J"]);
    }
}
