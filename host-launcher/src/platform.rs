//! The simulated platform's side of vsock port [`PLATFORM_PORT`]: carries the agent's requests to the
//! simulated TD. On real TDX nobody listens there.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cocoon_protocol::{
    FrameError, read_frame_async,
    simulated::{FromPlatform, PLATFORM_PORT, ToPlatform},
    write_frame_async,
};
use cocoon_simulator::SimulatedTd;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::guest_socket::{GuestListener, GuestStream};

/// The agent asks one thing at a time, from few connections.
const CONNECTIONS_MAX: usize = 16;

/// Plays the platform until it is dropped.
pub async fn play(td: SimulatedTd, mut listener: GuestListener) {
    let td = Arc::new(Mutex::new(td));
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok(stream) => {
                let td = td.clone();
                connections.spawn(async move {
                    let _slot = slot;
                    converse(&td, stream).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot take the guest's connection to port {PLATFORM_PORT}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(td: &Mutex<SimulatedTd>, mut stream: GuestStream) {
    loop {
        let request = match read_frame_async::<ToPlatform>(&mut stream).await {
            Ok(request) => request,
            Err(FrameError::Closed) => return,
            Err(error) => return tracing::warn!(%error, "a request to the simulated platform cannot be read"),
        };
        let answer = td.lock().unwrap_or_else(PoisonError::into_inner).handle(request);
        if let FromPlatform::Failed { reason } = &answer {
            tracing::warn!(reason, "the simulated platform refused a request");
        }
        if let Err(error) = write_frame_async(&mut stream, &answer).await {
            return tracing::warn!(%error, "the guest does not take the simulated platform's answer");
        }
    }
}
