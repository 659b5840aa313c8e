//! Soaks a natively run agent: many clients stream answers over Unix sockets, some leave in the middle, others only
//! hold connections. Every answer has to be right or refused with a time to come again, and the agent has to be as
//! big at the end as at the beginning, with nothing left open.
//!
//! Beside that, it measures what shaping costs streams ([`shaping`]).
//!
//! The agent is the guest's, in a process of its own ([`node`]); platform, host, disk and engine around it are played.
//! The clients ([`load`]) read every answer to its receipt. It says nothing about the speed of a model.
//!
//! Exit codes: 0 all held, 1 something did not, 2 usage.

mod client;
mod load;
mod node;
mod owners;
mod shaping;
mod tally;
mod tls;
mod watch;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::task::JoinSet;

use crate::{load::Crowd, node::Child, tally::Tally};

/// Soaks a natively run agent.
#[derive(Debug, Clone, Parser)]
#[command(version)]
struct Arguments {
    /// Clients that stream one answer after the other.
    #[arg(long, default_value_t = 1000)]
    streams: usize,
    /// Connections beside them on which nothing is ever said.
    #[arg(long, default_value_t = 300)]
    idle: usize,
    /// Of a hundred answers, so many are left in the middle.
    #[arg(long, default_value_t = 10)]
    disconnects: u64,
    /// For how long, from when every client has a connection.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Measures what shaping costs streams, instead of soaking: each row for so many seconds.
    #[arg(long)]
    shaping: bool,
    /// Is the agent, on this socket. What this program starts itself as.
    #[arg(long, hide = true)]
    agent: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime
        .context("starting an event loop")
        .and_then(|runtime| runtime.block_on(run(arguments)));
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cocoon-soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<bool> {
    open_files()?;
    match &arguments.agent {
        Some(socket) => node::serve(socket, arguments.streams).await.map(|()| true),
        None if arguments.shaping => shaping::measure(arguments.seconds).await.map(|()| true),
        None => soak(&arguments).await,
    }
}

/// Clients and agent have a descriptor for each connection; 1024 are the rule.
fn open_files() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("asking for the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raising the limit of open files")
}

async fn soak(arguments: &Arguments) -> Result<bool> {
    let mut child = Child::start(arguments.streams)?;
    child.look().await?;
    let tally = Arc::<Tally>::default();
    let crowd = Arc::new(Crowd::new(child.socket(), arguments, Arc::clone(&tally)).await?);
    let before = child.look_when_quiet().await?;
    let mut clients = JoinSet::new();
    for number in 0..arguments.streams {
        clients.spawn(Arc::clone(&crowd).stream(number as u64));
    }
    let connected = crowd.wait_until_connected(arguments.streams).await;
    let idle = child.look().await?;
    for _ in 0..arguments.idle {
        clients.spawn(Arc::clone(&crowd).idle());
    }
    if connected {
        crowd.begin();
    }
    let seen = watch::follow(&mut child, Duration::from_secs(arguments.seconds), &tally).await?;
    crowd.end();
    while clients.join_next().await.is_some() {}
    drop(crowd);
    let after = child.look_until_as(&before).await?;
    watch::Verdict {
        arguments,
        tally: &tally,
        before,
        idle,
        seen,
        after,
    }
    .print()
}
