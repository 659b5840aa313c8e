//! The host's one command to the guest: shut down.

use std::time::Duration;

use cocoon_protocol::{
    host::{FromGuest, ToGuest},
    read_frame_async, write_frame_async,
};
use tokio::time::{sleep, timeout};

use crate::transport::{BoxStream, Listen};

const COMMAND_DEADLINE: Duration = Duration::from_secs(5);

/// After a listener's error, which can be one that comes again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// No host may keep a guest that it wants gone for longer.
const GRACE_MAX: Duration = Duration::from_secs(3600);

/// Waits for a shutdown command, confirms it and returns its grace.
pub async fn wait_for_shutdown(listener: &mut dyn Listen) -> Duration {
    loop {
        // One at a time is enough: the only peer is the launcher.
        let Ok(stream) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        if let Ok(Some(grace)) = timeout(COMMAND_DEADLINE, take_command(stream)).await {
            return grace.min(GRACE_MAX);
        }
    }
}

async fn take_command(mut stream: BoxStream) -> Option<Duration> {
    let ToGuest::Shutdown { grace_ms } = read_frame_async(&mut stream).await.ok()?;
    // The command counts even if its sender does not wait for the answer.
    let _ = write_frame_async(&mut stream, &FromGuest::Ok).await;
    Some(Duration::from_millis(grace_ms))
}
