//! The command line: one module for each subcommand, which reads files, calls the library and prints.
//!
//! A subcommand is a `clap::Args` structure and a function from it to [`Exit`]; errors travel as `anyhow::Error`
//! and get their exit code in [`Exit::of`], from the library's error that they hold.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cocoon_measurements::{
    BuildPolicyError, ManifestError, MeasureError, acpi::ShapeError, collateral::FetchError,
};

mod acpi;
mod collateral;
mod diff;
mod explain;
mod input;
mod output;
mod policy;
mod predict;
mod quote;
mod replay;
mod verify;

/// Predicts, replays, verifies and explains the measurements of a confidential guest.
///
/// A confidential virtual machine is trusted because the processor measures what was loaded into it: MRTD holds
/// the firmware, RTMR0 its configuration and the virtual hardware, RTMR1 the kernel, RTMR2 the kernel command
/// line (which carries the root file system's hash), RTMR3 what the agent inside recorded.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the ACPI and SMBIOS tables of a machine with a stock QEMU, for `predict --tables`.
    #[command(after_help = EXIT_CODES)]
    Acpi(acpi::Acpi),
    /// Predict all registers of a launch and write the policy for clients.
    #[command(after_help = EXIT_CODES)]
    Predict(predict::Predict),
    /// Replay an event log, event by event, and compare it with a quote.
    #[command(after_help = EXIT_CODES)]
    Replay(replay::Replay),
    /// Print a quote or report field by field, without verifying it.
    #[command(after_help = EXIT_CODES)]
    Quote(quote::Quote),
    /// Name the likely cause when a machine measured something else than was predicted.
    #[command(after_help = EXIT_CODES)]
    Explain(explain::Explain),
    /// Judge one TDX quote, SNP report or GPU report offline.
    #[command(after_help = verify::EXIT_CODES)]
    Verify(Box<verify::Verify>),
    /// Fetch what Intel publishes about a TDX platform.
    #[command(subcommand, after_help = collateral::EXIT_CODES)]
    Collateral(collateral::Collateral),
    /// Sign a policy, or say whether it can be used.
    #[command(subcommand, after_help = EXIT_CODES)]
    Policy(policy::Policy),
    /// Show what differs between two predictions, replays, verdicts or pieces of evidence.
    #[command(after_help = EXIT_CODES)]
    Diff(diff::Arguments),
}

/// How the program ends, apart from panics. `docs/MEASUREMENTS.md` has the same table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done; what was to be verified or compared holds.
    Done = 0,
    /// A result could not be written.
    Output = 1,
    /// The command line is wrong; of `verify`, also that a file that it names cannot be read.
    Usage = 2,
    /// An input is missing, unreadable or malformed.
    Input = 3,
    /// An artifact is not the one that the manifest names.
    Mismatch = 4,
    /// The LaunchSpec asks for something that this version cannot predict.
    Unpredictable = 5,
    /// What was compared differs.
    Differs = 10,
    /// `verify`, `collateral`: signature, certificate chain or format.
    Signature = 11,
    /// `verify`, `collateral`: security version, expiry, revocation or missing collateral.
    Tcb = 12,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done; what was verified or compared holds
  1  the policy or the output could not be written
  2  the command line is wrong
  3  an input is missing, unreadable or malformed
  4  an artifact is not the one that the manifest names
  5  the LaunchSpec asks for something that this version cannot predict
  10 what was compared differs";

/// Parses the command line, runs the subcommand and prints its error.
pub(crate) fn run() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Acpi(arguments) => acpi::run(&arguments),
        Command::Predict(arguments) => predict::run(&arguments),
        Command::Replay(arguments) => replay::run(&arguments),
        Command::Quote(arguments) => quote::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Collateral(command) => collateral::run(&command),
        Command::Policy(command) => policy::run(&command),
        Command::Diff(arguments) => diff::run(&arguments),
    };
    let exit = outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        Exit::of(&error)
    });
    ExitCode::from(exit as u8)
}

impl Exit {
    fn of(error: &anyhow::Error) -> Self {
        if error.is::<output::OutputFailed>() {
            return Self::Output;
        }
        if error.is::<verify::Usage>() || error.is::<collateral::Usage>() {
            return Self::Usage;
        }
        if error.is::<ShapeError>() {
            return Self::Unpredictable;
        }
        if let Some(error) = error.downcast_ref::<FetchError>() {
            return collateral::exit(error);
        }
        match (
            error.downcast_ref::<ManifestError>(),
            error.downcast_ref::<MeasureError>(),
            error.downcast_ref::<BuildPolicyError>(),
        ) {
            (Some(ManifestError::Mismatch { .. }), ..) => Self::Mismatch,
            (_, Some(MeasureError::Unpredictable { .. }), _) => Self::Unpredictable,
            (_, _, Some(BuildPolicyError::Platform)) => Self::Unpredictable,
            _ => Self::Input,
        }
    }
}
