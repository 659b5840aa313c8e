//! `up --detach`: starts the supervisor in the background and waits until the node serves.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use crate::{
    exit::{Exit, Failure, OrExit as _},
    progress::{Progress, show},
    state_dir::StateDir,
};

/// Starts `cocoon-launch up --supervise` for this node.toml, shows its progress, and returns once it serves.
///
/// # Errors
/// The supervisor's failure, with its exit code.
pub async fn up(config: &Path, state_dir: &Path) -> Result<(), Failure> {
    StateDir::create(state_dir).or_exit(Exit::Internal)?;
    let log = state_dir.join("launcher.log");
    let mut supervisor = start(config, &log)
        .context("starting the supervisor in the background")
        .or_exit(Exit::Internal)?;
    let stdout = supervisor.stdout.take().expect("it was asked for as a pipe");
    let mut lines = BufReader::new(stdout).lines();
    tokio::select! {
        outcome = follow(&mut lines, &mut supervisor, &log) => outcome,
        _ = tokio::signal::ctrl_c() => {
            if let Some(pid) = supervisor.id().and_then(|pid| i32::try_from(pid).ok()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
            let _ = supervisor.wait().await;
            Err(Failure::new(Exit::Internal, "interrupted; the node was stopped"))
        }
    }
}

fn start(config: &Path, log: &Path) -> anyhow::Result<Child> {
    if log.exists() {
        fs::rename(log, log.with_extension("log.old"))?;
    }
    let program: PathBuf = std::env::current_exe()?;
    let child = Command::new(program)
        .args(["up", "--supervise", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(log)?)
        .spawn()?;
    Ok(child)
}

async fn follow(
    lines: &mut Lines<BufReader<ChildStdout>>,
    supervisor: &mut Child,
    log: &Path,
) -> Result<(), Failure> {
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str::<Progress>(&line) {
            Ok(Progress::Failed { exit, message }) => {
                // Nothing may be left when the caller hears of the failure.
                let _ = supervisor.wait().await;
                return Err(Failure::new(exit, message));
            }
            Ok(progress @ Progress::Serving { .. }) => {
                show(&progress);
                return Ok(());
            }
            Ok(progress) => show(&progress),
            Err(_) => tracing::debug!(line, "the supervisor says something else"),
        }
    }
    let status = supervisor.wait().await.or_exit(Exit::Internal)?;
    if status.success() {
        return Err(Failure::new(
            Exit::BootFailed,
            "the node was stopped before it served",
        ));
    }
    let message = format!(
        "the supervisor ended ({status}) without a word; see {}",
        log.display()
    );
    Err(Failure::new(Exit::Internal, message))
}
