//! The serving guest: what runs between `ready` and power-off.

use std::{sync::Arc, time::Duration};

use cocoon_protocol::host::{LAST_RECORDS_LIMIT, Stage};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{info, warn};

use crate::{
    boot::{self, Guest},
    certificate::{self, Identity, IdentityError},
    closing::Closing,
    console::EXPORT,
    control, endorsements,
    fresh::FreshQuotes,
    gpu::{GpuError, Watched},
    host::HostClient,
    meter::{self, Meter},
    prompts::Prompts,
    records::Outbox,
    serve::{self, Deadlines, Service},
    transport::{Dial, Listen},
};

/// For clients to take an answer that was ended before it was finished.
const LAST_ANSWERS_LIMIT: Duration = Duration::from_secs(1);
const DRAIN_STEP: Duration = Duration::from_millis(50);

/// Why a guest stopped serving without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no TLS identity, so nothing was served.
    #[error("making the TLS identity: {0}")]
    Identity(#[from] IdentityError),
    /// What is not in RTMR3 must not compute.
    #[error("the guest ends, because its GPUs are not the measured ones any more: {0}")]
    Gpu(#[from] GpuError),
}

/// Serves until the host asks to shut down; then finishes what runs, hands over the records and returns.
///
/// # Errors
/// See [`RunError`].
pub async fn run(
    guest: Guest,
    dial: Arc<dyn Dial>,
    mut https: Box<dyn Listen>,
    control: &mut dyn Listen,
    deadlines: Deadlines,
) -> Result<(), RunError> {
    let Guest {
        launch,
        attestor,
        usage_key,
        endorsements,
        engine,
        mut gpus,
        host,
        // To the end: what is in memory stays there.
        resident: _resident,
    } = guest;
    let attestor = Arc::new(attestor);
    let outbox = Arc::new(Outbox::default());
    let meter = Arc::new(Meter::new(
        usage_key,
        Arc::clone(&launch),
        Arc::clone(&host),
        Arc::clone(&outbox),
        deadlines.credit,
    ));
    let usage_key = meter.usage_key();
    let identity = Identity::generate(&attestor, &usage_key).await?;
    let identity = watch::Sender::new(Arc::new(identity));
    let endorsements = watch::Sender::new(endorsements);
    let service = Arc::new(Service {
        launch,
        fresh: FreshQuotes::new(Arc::clone(&attestor)),
        log: attestor.log().replay(),
        identity: identity.subscribe(),
        endorsements: endorsements.subscribe(),
        meter: Arc::clone(&meter),
        engine: engine.clone(),
        deadlines,
        closing: Closing::default(),
        prompts: Prompts::new(serve::PROMPT_BYTES_MAX),
        created_s: meter::now_s(),
    });
    // Records and endorsements have connections of their own: while the host's disk is slow, credit can still be asked
    // for.
    let records_host = HostClient::new(Arc::clone(&dial));
    let endorsements_host = HostClient::new(dial);
    let background = async {
        tokio::join!(
            serve::serve(Arc::clone(&service), &mut *https),
            service.fresh.make(),
            certificate::rotate(&attestor, &usage_key, &identity, deadlines.rotate),
            outbox.deliver(&records_host),
            endorsements::renew(&endorsements_host, &endorsements, deadlines.renew),
        );
    };
    let foreground = async {
        boot::tell_stage(&host, Stage::Serving, Duration::ZERO).await;
        let ended = tokio::select! {
            grace = control::wait_for_shutdown(control) => Ok(grace),
            error = lost(gpus.as_mut()) => Err(error),
        };
        service.closing.begin();
        let ended = match ended {
            Ok(grace) => {
                info!(target: EXPORT, "shutting down, {} requests run", meter.running());
                if timeout(grace, drain(&service)).await.is_err() {
                    warn!(target: EXPORT, "not every answer was taken within {grace:?}");
                    meter.end_answers();
                }
                Ok(())
            }
            Err(error) => {
                engine.kill_child();
                Err(RunError::Gpu(error))
            }
        };
        let end = Instant::now() + LAST_RECORDS_LIMIT;
        // Where answers were ended just now, the engine has yet to say how far they came, and clients to hear it.
        let _ = timeout_at(end, finished(&meter)).await;
        let _ = timeout(LAST_ANSWERS_LIMIT, service.closing.all_taken()).await;
        if !outbox.flushed(end).await {
            warn!(target: EXPORT, "{} usage records are lost", outbox.waiting());
        }
        ended
    };
    tokio::select! {
        () = background => Ok(()),
        ended = foreground => ended,
    }
}

/// Without GPUs none is ever lost.
async fn lost(gpus: Option<&mut Watched>) -> GpuError {
    match gpus {
        Some(gpus) => gpus.lost().await,
        None => std::future::pending().await,
    }
}

/// Waits until no request runs.
async fn finished(meter: &Meter) {
    while meter.running() > 0 {
        sleep(DRAIN_STEP).await;
    }
}

/// Waits for what runs, whether its client is there or not, and for clients to take their answers.
async fn drain(service: &Service) {
    finished(&service.meter).await;
    service.closing.all_taken().await;
}
