//! What a running node tells about itself, and the socket on which it does: `STATE/control.sock`, which only
//! the owner of the state directory can open.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use cocoon_protocol::{AccountAddress, FrameError, read_frame_async, write_frame_async};
use serde::{Deserialize, Serialize};
use tokio::{net::UnixStream, time::timeout};

use crate::{boot::Reached, settler::Claim};

/// The supervisor answers within this; a balance on a slow chain is part of it.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// Stopping takes as long as running requests, the guest and the last settlement may take.
const STOP_LIMIT: Duration = Duration::from_secs(120);

/// Claims told in one answer; those that are not settled come first.
pub const CLAIMS_MAX: usize = 1000;

/// How far a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// The guest is coming up.
    Booting,
    /// Clients can connect.
    Serving,
    /// It was told to stop.
    Stopping,
}

/// `cocoon-launch status --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// How far it is.
    pub state: NodeState,
    /// The supervisor's process.
    pub pid: u32,
    /// For clients.
    pub url: String,
    /// `simulated` or `tdx`.
    pub platform: String,
    /// `kvm` or `tcg`; empty until it is known.
    pub accelerator: String,
    /// The simulated platform's root certificate, for `cocoon-measure predict --root`.
    pub simulated_root: Option<PathBuf>,
    /// For clients' `--ton-config`.
    pub ton_config: PathBuf,
    /// The document that the guest was given.
    pub launch_document: PathBuf,
    /// The guest's console.
    pub console: PathBuf,
    /// What the guest reached, and when.
    pub stages: Vec<Reached>,
    /// TCP connections.
    pub connections: Connections,
    /// What was served and what is paid.
    pub usage: Usage,
    /// Who is paid.
    pub provider: Provider,
}

/// TCP connections of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// Now.
    pub open: u64,
    /// Ever.
    pub total: u64,
}

/// What was served and what is paid, over all records of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Stored usage records.
    pub records: u64,
    /// Their price, nanoTON.
    pub served_nano: u64,
    /// What the chain shows as paid, gas included, nanoTON; of grants of earlier runs, what it showed last.
    pub settled_nano: u64,
    /// Each grant, at most [`CLAIMS_MAX`].
    pub claims: Vec<Claim>,
}

/// The provider's account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provider {
    /// Where it is paid.
    pub payout_address: AccountAddress,
    /// What it holds, nanoTON; `None` if the chain does not answer.
    pub balance_nano: Option<u64>,
    /// Why there is no balance.
    pub error: Option<String>,
}

/// To the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToSupervisor {
    /// [`FromSupervisor::Status`].
    Status,
    /// [`FromSupervisor::Stopped`], once everything is.
    Down,
}

/// From the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromSupervisor {
    /// How the node is.
    Status(Box<Status>),
    /// Nothing is left running but the supervisor, which exits.
    Stopped {
        /// What is owed and not settled yet, in words.
        unsettled: Option<String>,
    },
}

/// Why the supervisor cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is none.
    #[error("no node runs on state directory {}; start one with: cocoon-launch up", .0.display())]
    NotRunning(PathBuf),
    /// There is one and it does not answer.
    #[error("the node on state directory {} does not answer", state_dir.display())]
    Silent {
        /// Whose.
        state_dir: PathBuf,
        /// Why.
        #[source]
        source: FrameError,
    },
}

/// Where the supervisor of this state directory listens.
pub fn control_socket(state_dir: &Path) -> PathBuf {
    state_dir.join("control.sock")
}

/// Asks the supervisor.
///
/// # Errors
/// See [`AskError`].
pub async fn ask(state_dir: &Path, request: ToSupervisor) -> Result<FromSupervisor, AskError> {
    let silent = |source| AskError::Silent {
        state_dir: state_dir.to_owned(),
        source,
    };
    let mut stream = match UnixStream::connect(control_socket(state_dir)).await {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Err(AskError::NotRunning(state_dir.to_owned()));
        }
        Err(error) => return Err(silent(FrameError::Io(error))),
    };
    let limit = match request {
        ToSupervisor::Status => ANSWER_LIMIT,
        ToSupervisor::Down => STOP_LIMIT,
    };
    let conversation = async {
        write_frame_async(&mut stream, &request).await?;
        read_frame_async(&mut stream).await
    };
    match timeout(limit, conversation).await {
        Ok(answer) => answer.map_err(silent),
        Err(_) => Err(silent(FrameError::Io(io::ErrorKind::TimedOut.into()))),
    }
}
