//! What each subcommand does.

mod chat;
mod conversation;
mod deposit;
mod proxy;
mod verify;
mod wallet;

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::Context as _;
use cocoon::{Accepted, Exit, Seen};
use cocoon_settlement::GlobalConfig;
use cocoon_verify::{Floors, POLICY_BYTES_MAX, POLICY_SIGNATURE_BYTES_MAX, Policy, TrustedGuest};

use crate::cli::{Command, DepositCommand, Terms};

/// An error and the exit code that it ends with.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) error: anyhow::Error,
}

impl Failure {
    fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self {
            exit: Exit::Usage,
            error: error.into(),
        }
    }

    /// For errors whose exit code follows from their kind.
    fn of<E>(error: E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
        Exit: for<'a> From<&'a E>,
    {
        Self {
            exit: Exit::from(&error),
            error: error.into(),
        }
    }
}

pub(crate) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Verify(args) => verify::run(&args).await,
        Command::Chat(args) => chat::run(&args).await,
        Command::Proxy(args) => proxy::run(&args).await,
        Command::Wallet(command) => wallet::run(&command),
        Command::Deposit(DepositCommand::Status(args)) => deposit::status(&args).await,
        Command::Deposit(DepositCommand::Withdraw(args)) => deposit::withdraw(&args).await,
    }
}

/// For people: what failed, why, and what to do about it.
pub(crate) fn say(failure: &Failure) {
    eprintln!("error: {}", cocoon::plain(&format!("{:#}", failure.error), 4000));
    if let Some(advice) = failure.exit.advice() {
        eprintln!("what to do: {advice}");
    }
}

fn load_policy(terms: &Terms) -> Result<Policy, Failure> {
    let path = &terms.policy;
    let text = read_text(path, POLICY_BYTES_MAX).map_err(Failure::usage)?;
    let attempt = || format!("the policy {} cannot be used", path.display());
    if terms.policy_key.is_empty() {
        return Policy::parse(&text).with_context(attempt).map_err(Failure::usage);
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".sig");
    let signatures = read_text(Path::new(&beside), POLICY_SIGNATURE_BYTES_MAX).map_err(Failure::usage)?;
    Policy::parse_signed(&text, &signatures, &terms.policy_key)
        .with_context(attempt)
        .map_err(Failure::usage)
}

fn seen(terms: &Terms) -> Result<Seen, Failure> {
    match &terms.state {
        Some(path) => Ok(Seen::at(path.clone())),
        None => Seen::of_user().map_err(Failure::usage),
    }
}

/// What the command line asks for, and not less than what was accepted before.
fn floors(terms: &Terms, policy: &Policy) -> Result<Floors, Failure> {
    let remembered = seen(terms)?
        .floors(policy, &terms.policy)
        .map_err(Failure::usage)?;
    let asked = asked_floors(terms);
    Ok(Floors {
        policy_number: asked.policy_number.max(remembered.policy_number),
        tcb_evaluation_number: asked.tcb_evaluation_number.max(remembered.tcb_evaluation_number),
    })
}

/// The same, for verifiers, which remember what they accept.
fn remembered(terms: &Terms, policy: &Policy) -> Result<Accepted, Failure> {
    let floors = floors(terms, policy)?;
    Ok(Accepted::remembered(floors, seen(terms)?, terms.policy.clone()))
}

fn asked_floors(terms: &Terms) -> Floors {
    Floors {
        policy_number: terms.policy_number_min,
        tcb_evaluation_number: terms.tcb_evaluation_min,
    }
}

/// Remembers what a guest was accepted by.
fn accept(terms: &Terms, policy: &Policy, guest: &TrustedGuest) -> Result<(), Failure> {
    seen(terms)?
        .accept(policy, &terms.policy, guest)
        .map_err(Failure::usage)
}

fn read_text(path: &Path, bytes_max: usize) -> Result<String, anyhow::Error> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(bytes_max as u64 + 1).read_to_string(&mut text))
        .with_context(|| format!("the file {} cannot be read", path.display()))?;
    Ok(text)
}

fn load_ton_config(path: &Path) -> Result<GlobalConfig, Failure> {
    GlobalConfig::load(path).map_err(Failure::usage)
}

static JSON_PRINTED: AtomicBool = AtomicBool::new(false);

/// Whether stdout has its one JSON object.
pub(crate) fn json_printed() -> bool {
    JSON_PRINTED.load(Ordering::Relaxed)
}

pub(crate) fn print_json(value: &serde_json::Value) {
    JSON_PRINTED.store(true, Ordering::Relaxed);
    // A closed pipe is the reader's choice, not a failure of what was done.
    let _ = writeln!(io::stdout(), "{value:#}");
}

fn ton(nano: u64) -> String {
    format!("{}.{:09} TON", nano / 1_000_000_000, nano % 1_000_000_000)
}
