//! The hidden subcommand `enter`: the half of the sandbox that runs in its namespaces.

use std::{os::unix::process::ExitStatusExt as _, path::PathBuf, process::ExitCode};

use cocoon_image::sandbox::{self, Bind};

/// What a shell says of a program that a signal ended: this plus the signal.
const SIGNAL_BASE: i32 = 128;

#[derive(Debug, clap::Args)]
pub(crate) struct EnterArguments {
    #[arg(long)]
    root: PathBuf,
    #[arg(long, num_args = 2, action = clap::ArgAction::Append)]
    bind: Vec<String>,
    #[arg(long, num_args = 2, action = clap::ArgAction::Append)]
    bind_read_only: Vec<String>,
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

pub(crate) fn enter(arguments: &EnterArguments) -> ExitCode {
    let mut binds = pairs(&arguments.bind, true);
    binds.extend(pairs(&arguments.bind_read_only, false));
    match sandbox::enter(&arguments.root, &binds, &arguments.command) {
        Ok(status) => {
            let code = status
                .code()
                .or(status.signal().map(|signal| SIGNAL_BASE + signal));
            ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
        }
        Err(error) => {
            eprintln!("error: {:#}", anyhow::Error::from(error));
            ExitCode::FAILURE
        }
    }
}

fn pairs(values: &[String], writable: bool) -> Vec<Bind> {
    let pairs = values.chunks_exact(2);
    pairs
        .map(|pair| Bind {
            from: PathBuf::from(&pair[0]),
            to: pair[1].clone(),
            writable,
        })
        .collect()
}
