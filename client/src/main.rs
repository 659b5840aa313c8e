//! `cocoon`: verifies a guest, then talks to it. Data goes to stdout, everything for people to stderr.

mod cli;
mod command;

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;
use cocoon::Exit;
use tracing_subscriber::EnvFilter;

use crate::command::Failure;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && !no_colour())
        .with_env_filter(EnvFilter::try_from_env("COCOON_LOG").unwrap_or_else(|_| EnvFilter::new("warn")))
        // Its eprintln! panics where a line cannot be written, on a full disk: in the middle of a request.
        .log_internal_errors(false)
        .init();
    let json = cli.command.json();
    let exit = match command::run(cli.command).await {
        Ok(()) => Exit::Ok,
        Err(failure) => report(failure, json),
    };
    ExitCode::from(exit as u8)
}

fn report(failure: Failure, json: bool) -> Exit {
    command::say(&failure);
    let Failure { exit, error } = failure;
    if json && !command::json_printed() {
        command::print_json(&serde_json::json!({
            "verdict": "ERROR",
            "error": format!("{error:#}"),
            "exit_code": exit as u8,
        }));
    }
    exit
}

/// <https://no-color.org>: set and not empty.
fn no_colour() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}
