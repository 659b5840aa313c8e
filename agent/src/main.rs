//! Starts as PID 1, never returns: the guest serves, or it powers off.

use std::{path::Path, sync::Arc, time::Duration};

use cocoon_agent::{
    console::{Console, EXPORT},
    host::HostClient,
    system,
    transport::VsockDial,
};
use cocoon_protocol::host::{Stage, ToHost};
use tracing::error;

/// How long the host gets to take the reason of a failed boot.
const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(5);

fn main() {
    if std::process::id() != 1 {
        eprintln!("cocoon-agent is PID 1 of a Cocoon guest; boot one with: cocoon-launch up");
        std::process::exit(2);
    }
    // The message of a panic may hold content; its place cannot.
    std::panic::set_hook(Box::new(|info| {
        eprintln!("cocoon-agent: panic at {:?}", info.location());
        system::power_off();
    }));
    let _ = tracing::subscriber::set_global_default(Console);
    let mounted = system::mount_all();
    system::limit_read_ahead(Path::new("/sys/block"));
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(mounted)),
        Err(error) => error!(target: EXPORT, "no event loop: {error}"),
    }
    system::power_off();
}

async fn run(mounted: Result<(), system::MountError>) {
    let host = HostClient::new(Arc::new(VsockDial));
    let stage = ToHost::Stage {
        stage: Stage::Agent,
        uptime_ms: system::uptime().as_millis() as u64,
    };
    if let Err(error) = host.tell(&stage, Duration::from_secs(30)).await {
        error!(target: EXPORT, "{error}");
    }
    let reason = match mounted {
        Err(error) => error.to_string(),
        Ok(()) => "this build of the agent only tells that it runs".into(),
    };
    let _ = host
        .tell(&ToHost::BootFailed { reason }, LAST_WORDS_DEADLINE)
        .await;
}
