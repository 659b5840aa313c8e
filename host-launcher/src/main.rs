//! `cocoon-launch`: the provider's program. See `cocoon-launch --help`.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use cocoon_launch::{
    config::Config,
    detach,
    exit::{Exit, Failure, OrExit as _},
    journal, node,
    progress::{Audience, Progress, Reporter},
    relay,
    settler::Settlement,
    state_dir::StateDir,
    status::{AskError, FromSupervisor, Status, ToSupervisor, ask},
};
use tracing_subscriber::EnvFilter;

/// Boots a Cocoon guest on this machine, lets clients reach it, and collects what they owe.
///
/// Everything is configured in node.toml: which image and model to boot, what tokens cost, where to be paid
/// (docs/NODE.md).
/// On a server with Intel TDX the guest's memory is closed to this program and to you; on any other machine
/// the same guest runs with a simulated TDX, which protects nothing and which clients accept only if they ask
/// for it.
#[derive(Parser)]
#[command(version, after_help = Exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Node {
    /// The node's configuration.
    #[arg(long, value_name = "node.toml")]
    config: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Boot the node and keep it, until Ctrl-C, SIGTERM or `down`.
    Up {
        #[command(flatten)]
        node: Node,
        /// Run in the background: return 0 once the node serves, or the failure's code.
        #[arg(long)]
        detach: bool,
        /// The background half of --detach.
        #[arg(long, hide = true, conflicts_with = "detach")]
        supervise: bool,
    },
    /// Stop the node: running requests end, vouchers are settled, nothing is left running.
    Down {
        #[command(flatten)]
        node: Node,
    },
    /// Tell how the node is: address, boot, what was served and paid.
    Status {
        #[command(flatten)]
        node: Node,
        /// As JSON, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Write the launch document: what the guest is asked to run, and what clients predict from.
    Document {
        #[command(flatten)]
        node: Node,
        /// To this file instead of standard output.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Write the root certificate of this node's simulated platform, for `cocoon-measure predict --root`.
    Root {
        #[command(flatten)]
        node: Node,
        /// To this file instead of standard output.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Print the usage records that were acknowledged to the guest, one JSON object a line, oldest first.
    Records {
        #[command(flatten)]
        node: Node,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        // Its eprintln! panics where a line cannot be written, on a full disk: in the middle of bookkeeping.
        .log_internal_errors(false)
        .init();
    match run(cli.command).await {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            eprintln!("cocoon-launch: {failure}");
            ExitCode::from(failure.exit as u8)
        }
    }
}

async fn run(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Up {
            node, detach: true, ..
        } => {
            let config = load(&node)?;
            detach::up(&node.config, &config.state_dir).await?;
        }
        Command::Up { node, supervise, .. } => up(&node, supervise).await?,
        Command::Down { node } => return down(&state_dir(&node)?).await,
        Command::Status { node, json } => return status(&state_dir(&node)?, json).await,
        Command::Document { node, out } => {
            let document = load(&node)?
                .launch_document(cocoon_settlement::deposit_code())
                .or_exit(Exit::Usage)?;
            write(out.as_deref(), &document)?;
        }
        Command::Root { node, out } => {
            let platform = node::simulated_platform(&load(&node)?.state_dir)?;
            write(out.as_deref(), platform.root_pem().as_bytes())?;
        }
        Command::Records { node } => records(&state_dir(&node)?)?,
    }
    Ok(Exit::Ok)
}

fn load(node: &Node) -> Result<Config, Failure> {
    Config::load(&node.config).or_exit(Exit::Usage)
}

fn state_dir(node: &Node) -> Result<PathBuf, Failure> {
    Config::state_dir_of(&node.config).or_exit(Exit::Usage)
}

async fn up(node: &Node, supervise: bool) -> Result<(), Failure> {
    if supervise {
        // A session of its own: the terminal that started it may go.
        nix::unistd::setsid().or_exit(Exit::Internal)?;
    }
    relay::allow_open_files().or_exit(Exit::Internal)?;
    let audience = if supervise {
        Audience::Waiter
    } else {
        Audience::People
    };
    let reporter = Reporter::new(audience);
    let ran = match load(node) {
        Ok(config) => node::run(config, &reporter).await,
        Err(failure) => Err(failure),
    };
    if let (Err(failure), true) = (&ran, supervise) {
        reporter.tell(&Progress::Failed {
            exit: failure.exit,
            message: failure.to_string(),
        });
    }
    ran
}

async fn down(state_dir: &Path) -> Result<Exit, Failure> {
    match ask(state_dir, ToSupervisor::Down).await {
        // What is not settled has to be known.
        Ok(FromSupervisor::Stopped {
            unsettled: Some(unsettled),
        }) => eprintln!("{unsettled}"),
        Ok(_) => {}
        Err(AskError::NotRunning(_)) => eprintln!("no node runs on {}", state_dir.display()),
        Err(error) => return Err(error).or_exit(Exit::Internal),
    }
    if StateDir::wait_until_free(state_dir, Duration::from_secs(20)).await {
        return Ok(Exit::Ok);
    }
    let pid = std::fs::read_to_string(state_dir.join("lock")).unwrap_or_default();
    Err(Failure::new(
        Exit::Internal,
        format!(
            "the supervisor (process {}) is still there; end it with: kill -9 {0}. Its guest goes with it, and \
             stored usage records stay",
            pid.trim()
        ),
    ))
}

async fn status(state_dir: &Path, json: bool) -> Result<Exit, Failure> {
    let status = match ask(state_dir, ToSupervisor::Status).await {
        Ok(FromSupervisor::Status(status)) => status,
        Ok(FromSupervisor::Stopped { .. }) | Err(AskError::NotRunning(_)) => {
            print(if json {
                "{\"state\":\"stopped\"}"
            } else {
                "stopped"
            })?;
            return Ok(Exit::NotRunning);
        }
        Err(error) => return Err(error).or_exit(Exit::Internal),
    };
    if json {
        print(&serde_json::to_string_pretty(&status).or_exit(Exit::Internal)?)?;
    } else {
        print(&describe(&status))?;
    }
    Ok(Exit::Ok)
}

fn describe(status: &Status) -> String {
    let mut rows = vec![
        ("state", format!("{:?}", status.state).to_lowercase()),
        ("url", status.url.clone()),
        (
            "platform",
            format!("{} ({})", status.platform, status.accelerator),
        ),
        ("supervisor", format!("process {}", status.pid)),
        ("ton config", status.ton_config.display().to_string()),
        ("launch document", status.launch_document.display().to_string()),
    ];
    if let Some(root) = &status.simulated_root {
        rows.push(("simulated root", root.display().to_string()));
    }
    for reached in &status.stages {
        let at = Duration::from_millis(reached.elapsed_ms).as_secs_f64();
        let name = cocoon_launch::boot::name(reached.stage);
        rows.push(("boot", format!("{name} at {at:.2} s")));
    }
    let usage = &status.usage;
    rows.push((
        "connections",
        format!(
            "{} open, {} ever",
            status.connections.open, status.connections.total
        ),
    ));
    rows.push((
        "served",
        format!("{} records, {} nanoTON", usage.records, usage.served_nano),
    ));
    rows.push(("settled", format!("{} nanoTON", usage.settled_nano)));
    for claim in &usage.claims {
        rows.push((
            "grant",
            format!("{}: {}", claim.grant, describe_settlement(&claim.settlement)),
        ));
    }
    let balance = match (&status.provider.balance_nano, &status.provider.error) {
        (Some(nano), _) => format!("{nano} nanoTON at {}", status.provider.payout_address),
        (None, error) => format!("unknown: {}", error.as_deref().unwrap_or("no answer")),
    };
    rows.push(("balance", balance));
    let lines: Vec<String> = rows
        .into_iter()
        .map(|(name, value)| format!("{name:<16} {value}"))
        .collect();
    lines.join("\n")
}

fn describe_settlement(settlement: &Settlement) -> String {
    match settlement {
        Settlement::Pending => "to be settled".into(),
        Settlement::Sent => "being settled".into(),
        Settlement::Settled => "settled".into(),
        Settlement::Waiting {
            raise_nano,
            minimum_nano,
        } => format!("waiting: {raise_nano} nanoTON, settles at {minimum_nano}"),
        Settlement::Failing { reason, attempts } => format!("failed {attempts} times, tried again: {reason}"),
        Settlement::Closed { reason } => format!("closed: {reason}"),
    }
}

fn records(state_dir: &Path) -> Result<(), Failure> {
    let mut printed = Ok(());
    journal::read(&node::journal_path(state_dir), |entry| {
        if let (journal::Entry::Record(record), Ok(())) = (&entry, &printed) {
            printed = serde_json::to_string(record)
                .or_exit(Exit::Internal)
                .and_then(|line| print(&line));
        }
    })
    .or_exit(Exit::Internal)?;
    printed
}

fn print(line: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{line}")
        .context("writing to standard output")
        .or_exit(Exit::Internal)
}

fn write(out: Option<&Path>, bytes: &[u8]) -> Result<(), Failure> {
    match out {
        Some(path) => std::fs::write(path, bytes).with_context(|| format!("writing {}", path.display())),
        None => std::io::stdout()
            .write_all(bytes)
            .context("writing to standard output"),
    }
    .or_exit(Exit::Internal)
}
