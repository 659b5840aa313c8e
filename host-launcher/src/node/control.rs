//! The control socket: answers `cocoon-launch status` and `down`.

use std::{io, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use cocoon_protocol::{read_frame_async, write_frame_async};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::timeout,
};

use super::shared::Shared;
use crate::{
    guest_socket::remove_stale,
    status::{FromSupervisor, ToSupervisor, control_socket},
};

/// People and scripts that ask at the same time.
const CONTROL_CONNECTIONS_MAX: usize = 32;

pub(super) fn listen_for_control(state_dir: &Path) -> anyhow::Result<UnixListener> {
    let path = control_socket(state_dir);
    let bound = || {
        remove_stale(&path)?;
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        io::Result::Ok(listener)
    };
    bound().with_context(|| format!("listening on {}", path.display()))
}

/// Answers `status` and `down`; ends after the answer to the `down` that stopped the node.
pub(super) async fn serve_control(
    listener: UnixListener,
    shared: Arc<Shared>,
    stop: mpsc::Sender<oneshot::Sender<Option<String>>>,
) {
    let (stopped_sender, mut stopped) = watch::channel(());
    let stopped_sender = Arc::new(stopped_sender);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept(), if connections.len() < CONTROL_CONNECTIONS_MAX => {
                let (shared, stop, told) = (shared.clone(), stop.clone(), stopped_sender.clone());
                connections.spawn(async move {
                    if answer_control(stream, &shared, &stop).await == Answered::Down {
                        told.send_replace(());
                    }
                });
            }
            Some(_) = connections.join_next() => {}
            Ok(()) = stopped.changed() => return,
        }
    }
}

#[derive(PartialEq, Eq)]
enum Answered {
    Status,
    Down,
}

async fn answer_control(
    mut stream: UnixStream,
    shared: &Shared,
    stop: &mpsc::Sender<oneshot::Sender<Option<String>>>,
) -> Answered {
    let request = timeout(Duration::from_secs(5), read_frame_async(&mut stream)).await;
    let (answer, answered) = match request {
        Ok(Ok(ToSupervisor::Status)) => (
            FromSupervisor::Status(Box::new(shared.status().await)),
            Answered::Status,
        ),
        Ok(Ok(ToSupervisor::Down)) => {
            let (reply, stopped) = oneshot::channel();
            if stop.send(reply).await.is_err() {
                return Answered::Status;
            }
            // A node that stops for another reason drops the sender: it is stopped all the same.
            let unsettled = stopped.await.unwrap_or_default();
            (FromSupervisor::Stopped { unsettled }, Answered::Down)
        }
        Ok(Err(_)) | Err(_) => return Answered::Status,
    };
    if let Err(error) = write_frame_async(&mut stream, &answer).await {
        tracing::debug!(%error, "nobody waits for an answer on the control socket");
    }
    answered
}
