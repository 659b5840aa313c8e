//! Ends this program in order when it is told to: the programs that it runs are killed, and what they were working
//! on is removed on the way out.
//!
//! A signal only sets a mark. Running programs, and everything they have started, are killed as process groups;
//! [`crate::command::run`] then returns an error, which leads out of the build as any other does. Long work of this
//! program itself asks [`check`]. A second signal ends the program at once. Work that fails ends what is done beside it
//! ([`at_once`]) in the same way. Where this program is killed, the programs that it runs are killed by the kernel; what
//! they have started ends with them only in the builder root, whose processes are a world of their own.

use std::{
    collections::BTreeSet,
    io,
    os::unix::process::CommandExt as _,
    panic,
    process::{self, Child, Command, Output},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

static STATE: Mutex<State> = Mutex::new(State {
    end: None,
    groups: BTreeSet::new(),
});

/// Why nothing is started any more.
#[derive(Debug, Clone, Copy, thiserror::Error)]
enum End {
    #[error("stopped by a signal")]
    Signal(i32),
    #[error("stopped, because something else failed")]
    Failure,
}

#[derive(Debug)]
struct State {
    end: Option<End>,
    /// Of running programs.
    groups: BTreeSet<Pid>,
}

/// From now on SIGHUP, SIGINT and SIGTERM end this program in order.
///
/// # Errors
/// The system refuses a handler.
pub fn watch() -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::spawn(move || signals.forever().for_each(interrupt));
    Ok(())
}

fn interrupt(signal: i32) {
    let mut state = state();
    if let Some(End::Signal(_)) = state.end {
        process::exit(exit_code(signal));
    }
    state.end(End::Signal(signal));
}

/// Does both. If one fails, what the other runs is killed, and nothing more is started: this program is about to end.
///
/// # Errors
/// Whichever came first.
pub fn at_once<A, B: Send, E: Send + Sync>(
    one: impl FnOnce() -> Result<A, E>,
    other: impl FnOnce() -> Result<B, E> + Send,
) -> Result<(A, B), E> {
    let first = OnceLock::new();
    let keep = |error| {
        if first.set(error).is_ok() {
            abandon();
        }
    };
    let (one, other) = thread::scope(|scope| {
        let other = scope.spawn(|| other().map_err(keep).ok());
        let one = one().map_err(keep).ok();
        (
            one,
            other.join().unwrap_or_else(|cause| panic::resume_unwind(cause)),
        )
    });
    match first.into_inner() {
        Some(error) => Err(error),
        None => Ok(one.zip(other).expect("neither has failed")),
    }
}

fn abandon() {
    let mut state = state();
    if state.end.is_none() {
        state.end(End::Failure);
    }
}

impl State {
    fn check(&self) -> io::Result<()> {
        self.end.map_or(Ok(()), |end| Err(io::Error::other(end)))
    }

    fn end(&mut self, end: End) {
        self.end = Some(end);
        for group in &self.groups {
            // It may just have ended.
            let _ = killpg(*group, Signal::SIGKILL);
        }
    }
}

/// The exit code of a program that a signal has told to end, if one has: 128 and its number, as shells say it.
pub fn ended() -> Option<u8> {
    match state().end {
        Some(End::Signal(signal)) => Some(exit_code(signal) as u8),
        _ => None,
    }
}

fn exit_code(signal: i32) -> i32 {
    128 + signal
}

/// Fails after a signal, or after something else has failed.
///
/// # Errors
/// [`io::ErrorKind::Other`]; [`io::ErrorKind::Interrupted`] would be tried again.
pub fn check() -> io::Result<()> {
    state().check()
}

/// Runs a program to its end, in a process group of its own, so that it can be killed with all that it has started.
///
/// # Errors
/// It does not start, or a signal or a failure came before.
pub(crate) fn run(command: &mut Command) -> io::Result<Output> {
    let child = start(command)?;
    let group = group(&child);
    let output = child.wait_with_output();
    state().groups.remove(&group);
    output
}

/// Under the lock: the end comes before, and nothing is started, or after, and this is killed.
fn start(command: &mut Command) -> io::Result<Child> {
    let mut state = state();
    state.check()?;
    death_signal::kill_with_parent(command);
    let child = command.process_group(0).spawn()?;
    state.groups.insert(group(&child));
    Ok(child)
}

fn group(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a process has a positive number"))
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[allow(unsafe_code, reason = "work between fork and exec")]
mod death_signal {
    use std::{io, os::unix::process::CommandExt as _, process::Command};

    use nix::{
        sys::{prctl, signal::Signal},
        unistd::{getpid, getppid},
    };

    /// The signal comes when the thread that starts the program ends (prctl(2)); it waits for the program's end.
    pub(super) fn kill_with_parent(command: &mut Command) {
        let parent = getpid();
        let prepare = move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // Killed before the line above: then nobody would send the signal.
            if getppid() == parent {
                Ok(())
            } else {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        };
        // SAFETY: between fork and exec only async-signal-safe calls are allowed (signal-safety(7)). The closure makes
        // two system calls, prctl and getppid, and neither allocates nor locks.
        unsafe { command.pre_exec(prepare) };
    }
}
