//! Faults on demand, so that a test can break a booted guest. Compiled into `dev` images only.

use std::time::Duration;

use cocoon_protocol::{read_frame_async, simulated::InjectFault};
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::{
    console::EXPORT,
    engine::Engine,
    process::{Children, ENGINE},
    transport::{BoxStream, Listen},
};

const COMMAND_DEADLINE: Duration = Duration::from_secs(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Carries out what comes, until the guest ends.
pub async fn inject_faults(mut listener: impl Listen, engine: Engine, children: Children) {
    loop {
        match listener.accept().await {
            Ok(stream) => {
                let _ = timeout(COMMAND_DEADLINE, inject(stream, &engine, &children)).await;
            }
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn inject(mut stream: BoxStream, engine: &Engine, children: &Children) {
    let Ok(fault) = read_frame_async(&mut stream).await else {
        return;
    };
    warn!(target: EXPORT, "{fault:?}, as the host asked");
    match fault {
        InjectFault::KillEngine => engine.kill_child(),
        InjectFault::CrashEngine => children.abort(ENGINE),
        InjectFault::CrashAgent => std::process::abort(),
    }
}
