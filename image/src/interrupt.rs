//! Ends this program in order when it is told to: the programs that it runs are killed, and what they were working
//! on is removed on the way out.
//!
//! A signal only sets a mark. Running programs, and everything they have started, are killed as process groups;
//! [`crate::command::run`] then returns an error, which leads out of the build as any other does. Long work of this
//! program itself asks [`check`]. A second signal ends the program at once. Where this program is killed, the programs
//! that it runs are killed by the kernel; what they have started ends with them only in the builder root, whose processes
//! are a world of their own.

use std::{
    collections::BTreeSet,
    io,
    os::unix::process::CommandExt as _,
    process::{self, Child, Command, Output},
    sync::{Mutex, MutexGuard, PoisonError},
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
    signal: None,
    groups: BTreeSet::new(),
});

#[derive(Debug)]
struct State {
    /// The first that came.
    signal: Option<i32>,
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
    if state.signal.is_some() {
        process::exit(exit_code(signal));
    }
    state.signal = Some(signal);
    for group in &state.groups {
        // It may just have ended.
        let _ = killpg(*group, Signal::SIGKILL);
    }
}

/// The exit code of a program that a signal has told to end, if one has: 128 and its number, as shells say it.
pub fn ended() -> Option<u8> {
    state().signal.map(|signal| exit_code(signal) as u8)
}

fn exit_code(signal: i32) -> i32 {
    128 + signal
}

/// Fails after a signal.
///
/// # Errors
/// [`io::ErrorKind::Other`]; [`io::ErrorKind::Interrupted`] would be tried again.
pub fn check() -> io::Result<()> {
    match state().signal {
        None => Ok(()),
        Some(_) => Err(io::Error::other("stopped by a signal")),
    }
}

/// Runs a program to its end, in a process group of its own, so that it can be killed with all that it has started.
///
/// # Errors
/// It does not start, or a signal came before.
pub(crate) fn run(command: &mut Command) -> io::Result<Output> {
    let child = start(command)?;
    let group = group(&child);
    let output = child.wait_with_output();
    state().groups.remove(&group);
    output
}

/// Under the lock: a signal comes before, and nothing is started, or after, and this is killed.
fn start(command: &mut Command) -> io::Result<Child> {
    let mut state = state();
    if state.signal.is_some() {
        return Err(io::Error::other("stopped by a signal"));
    }
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
