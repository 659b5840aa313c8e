//! Names the likely cause when a machine measured something else than was predicted.
//!
//! [`explain`] gets what was predicted ([`Expectation`]) and what was measured ([`Observed`]: the registers of a
//! quote, the events of a log, or both), and returns [`Cause`]s, most likely first. It tries, in this order:
//!
//! 1. Each [`Variation`]: the same launch with one thing changed, predicted anew. One that gives a register's
//!    measured value is not a guess: nothing else makes that value.
//! 2. Every memory size to 2 TiB, through the TD hand-off block.
//! 3. With a log: the events that differ, one by one.
//! 4. What usually makes such a register differ.
//!
//! Nothing here is a verification, and a cause never excuses a mismatch: it says what to change in the
//! LaunchSpec or on the machine before predicting and verifying again.

mod edits;
mod launch;
mod memory;
mod seen;
mod usual;

use cocoon_evidence::{Digest48, Register};
use serde::Serialize;

pub use edits::{command_line_variations, structure_variations};
pub use launch::{Launch, MachineItems};
pub use memory::{MEMORY_MIB_MAX, MemorySearch};

use crate::eventlog::EventType;

/// The version of the JSON form.
pub const EXPLAIN_SCHEMA: &str = "cocoon.explain/1";

/// RTMR0, RTMR1 and RTMR2: what a prediction covers besides MRTD.
pub const PREDICTED_RTMRS: usize = 3;

/// A register that a prediction covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// The firmware.
    Mrtd,
    /// Firmware configuration and virtual hardware.
    Rtmr0,
    /// The kernel.
    Rtmr1,
    /// Command line and initrd.
    Rtmr2,
    /// What the agent recorded.
    Rtmr3,
}

impl Subject {
    const RTMRS: [Self; PREDICTED_RTMRS] = [Self::Rtmr0, Self::Rtmr1, Self::Rtmr2];

    fn index(self) -> Option<usize> {
        Self::RTMRS.iter().position(|subject| *subject == self)
    }

    /// The name in JSON and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mrtd => "mrtd",
            Self::Rtmr0 => "rtmr0",
            Self::Rtmr1 => "rtmr1",
            Self::Rtmr2 => "rtmr2",
            Self::Rtmr3 => "rtmr3",
        }
    }
}

/// An event that is expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedEvent {
    /// Its type in a log; `None` for an event that no real firmware makes.
    pub event_type: Option<EventType>,
    /// What it records.
    pub name: String,
    /// What the register is extended with.
    pub digest: Digest48,
}

/// What one launch measures to: for MRTD each legitimate value, for each RTMR each legitimate list of events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// MRTD.
    pub mrtd: Vec<Digest48>,
    /// RTMR0 to RTMR2.
    pub rtmrs: [Vec<Vec<ExpectedEvent>>; PREDICTED_RTMRS],
}

impl Expected {
    fn accepts(&self, subject: Subject, value: &Digest48) -> bool {
        match subject.index() {
            Some(index) => self.rtmrs[index].iter().any(|events| replay(events) == *value),
            None => subject == Subject::Mrtd && self.mrtd.contains(value),
        }
    }

    /// The most likely list of events of a register.
    fn events(&self, index: usize) -> &[ExpectedEvent] {
        self.rtmrs[index].first().map_or(&[], Vec::as_slice)
    }
}

fn replay(events: &[ExpectedEvent]) -> Digest48 {
    Register::replay(events.iter().map(|event| &event.digest)).value()
}

/// One thing changed in a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variation {
    /// What a program recognises it by.
    pub id: &'static str,
    /// What is different on the machine.
    pub title: String,
    /// What to do.
    pub change: String,
    /// What the changed launch measures to.
    pub expected: Expected,
}

/// What was predicted, and what else it could have been.
pub struct Expectation<'a> {
    /// For the launch as it was described.
    pub expected: Expected,
    /// The same launch with one change each, most likely first.
    pub variations: Vec<Variation>,
    /// How to find another memory size, if the platform measures it.
    pub memory: Option<MemorySearch<'a>>,
    /// The launch document.
    pub launch_document: Option<Digest48>,
}

/// What was measured. At least one of the two sources is there.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// MRTD, from a quote.
    pub mrtd: Option<Digest48>,
    /// RTMR0 to RTMR2, from a quote.
    pub quoted: Option<[Digest48; PREDICTED_RTMRS]>,
    /// Events of RTMR0 to RTMR2, from a log.
    pub logged: Option<[Vec<SeenEvent>; PREDICTED_RTMRS]>,
    /// The launch document, from the agent's log.
    pub launch_document: Option<Digest48>,
}

/// An event in a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenEvent {
    /// Its type.
    pub event_type: EventType,
    /// What its body says.
    pub description: String,
    /// What was extended.
    pub digest: Digest48,
}

impl Observed {
    /// The value of a register: what a log explains if there is one, else what the quote says. A quoted value
    /// that the log does not explain is a cause of its own.
    fn value(&self, subject: Subject) -> Option<Digest48> {
        let Some(index) = subject.index() else {
            return self.mrtd.filter(|_| subject == Subject::Mrtd);
        };
        match &self.logged {
            Some(logged) => Some(Register::replay(logged[index].iter().map(|event| &event.digest)).value()),
            None => self.quoted.map(|quoted| quoted[index]),
        }
    }
}

/// How sure a cause is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Certainty {
    /// With this change the prediction gives exactly the measured value.
    Reproduced,
    /// An event in the log says so.
    Seen,
    /// It usually is this.
    Possible,
}

/// Why registers differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// What a program recognises it by; listed in `docs/MEASUREMENTS.md`.
    pub id: &'static str,
    /// How sure it is.
    pub certainty: Certainty,
    /// Which registers it explains.
    pub registers: Vec<Subject>,
    /// What is different on the machine.
    pub title: String,
    /// What to do.
    pub change: String,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// [`EXPLAIN_SCHEMA`].
    pub schema: &'static str,
    /// Whether nothing differs.
    pub agrees: bool,
    /// The registers that could be compared and differ.
    pub differing: Vec<Subject>,
    /// Why, most likely first.
    pub causes: Vec<Cause>,
}

/// Looks for causes. Takes at most a few seconds, most of them for memory sizes.
pub fn explain(expectation: &Expectation<'_>, observed: &Observed) -> Explanation {
    let subjects = [Subject::Mrtd].into_iter().chain(Subject::RTMRS);
    let differing: Vec<Subject> = subjects
        .filter(|subject| {
            observed
                .value(*subject)
                .is_some_and(|value| !expectation.expected.accepts(*subject, &value))
        })
        .collect();
    let mut causes = reproduced(expectation, observed, &differing);
    let mut open = differing.clone();
    open.retain(|subject| causes.iter().all(|cause| !cause.registers.contains(subject)));
    if let (Some(search), true) = (&expectation.memory, open.contains(&Subject::Rtmr0)) {
        let found = search.find(&expectation.expected, observed, &differing);
        causes.extend(found);
        open.retain(|subject| causes.iter().all(|cause| !cause.registers.contains(subject)));
    }
    most_registers_first(&mut causes);
    let memory_is_known = causes.iter().any(|cause| cause.id == "memory");
    // What a log shows of the memory does not explain the rest of its register.
    open.extend(differing.iter().copied().filter(|subject| {
        let of_it = |cause: &&Cause| cause.registers.contains(subject);
        let mut of_it = causes.iter().filter(of_it).peekable();
        of_it.peek().is_some() && of_it.all(|cause| cause.certainty == Certainty::Seen)
    }));
    let mut seen = seen::causes(&expectation.expected, observed, &open);
    seen.retain(|cause| !(memory_is_known && cause.id == "hand-off-block"));
    causes.extend(seen);
    causes.extend(usual::causes(observed, &open, &differing));
    without_repetition(&mut causes);
    let mut differing = differing;
    unexplained_by_the_log(observed, &mut differing, &mut causes);
    other_launch_document(expectation, observed, &mut differing, &mut causes);
    Explanation {
        schema: EXPLAIN_SCHEMA,
        agrees: differing.is_empty(),
        differing,
        causes,
    }
}

/// Variations that give measured values. One that breaks a register that agreed is another machine.
fn reproduced(expectation: &Expectation<'_>, observed: &Observed, differing: &[Subject]) -> Vec<Cause> {
    let agreeing: Vec<_> = [Subject::Mrtd]
        .into_iter()
        .chain(Subject::RTMRS)
        .filter(|subject| !differing.contains(subject))
        .collect();
    let accepts = |variation: &Variation, subject: &Subject| {
        let value = observed.value(*subject);
        value.map(|value| variation.expected.accepts(*subject, &value))
    };
    let mut causes = Vec::new();
    for variation in &expectation.variations {
        if agreeing
            .iter()
            .any(|subject| accepts(variation, subject) == Some(false))
        {
            continue;
        }
        let registers: Vec<_> = differing
            .iter()
            .copied()
            .filter(|subject| accepts(variation, subject) == Some(true))
            .collect();
        if !registers.is_empty() {
            causes.push(Cause {
                id: variation.id,
                certainty: Certainty::Reproduced,
                registers,
                title: variation.title.clone(),
                change: variation.change.clone(),
            });
        }
    }
    causes
}

/// The order of variations decides between those that explain as much.
fn most_registers_first(causes: &mut [Cause]) {
    causes.sort_by_key(|cause| std::cmp::Reverse(cause.registers.len()));
}

fn without_repetition(causes: &mut Vec<Cause>) {
    let mut seen = Vec::new();
    causes.retain(|cause| {
        let new = !seen.contains(&cause.id);
        seen.push(cause.id);
        new
    });
}

/// A log that replays to something else than the quote: what extended the register left no entry.
fn unexplained_by_the_log(observed: &Observed, differing: &mut Vec<Subject>, causes: &mut Vec<Cause>) {
    let (Some(quoted), Some(_)) = (&observed.quoted, &observed.logged) else {
        return;
    };
    for (index, subject) in Subject::RTMRS.into_iter().enumerate() {
        if observed.value(subject) == Some(quoted[index]) {
            continue;
        }
        if !differing.contains(&subject) {
            differing.push(subject);
        }
        causes.insert(0, usual::not_in_the_log(subject));
    }
}

fn other_launch_document(
    expectation: &Expectation<'_>,
    observed: &Observed,
    differing: &mut Vec<Subject>,
    causes: &mut Vec<Cause>,
) {
    let (Some(expected), Some(found)) = (expectation.launch_document, observed.launch_document) else {
        return;
    };
    if expected == found {
        return;
    }
    differing.push(Subject::Rtmr3);
    causes.push(Cause {
        id: "launch-document",
        certainty: Certainty::Seen,
        registers: vec![Subject::Rtmr3],
        title: format!("another launch document: the agent recorded {found}, the file has {expected}"),
        change: "start the guest with this document, or predict and sign the policy for the one it had"
            .into(),
    });
}

#[cfg(test)]
mod tests;
