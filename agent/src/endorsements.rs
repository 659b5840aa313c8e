//! Endorsements age while the guest runs, so the host is asked for newer ones from time to time. They are passed on
//! unread: their vendors signed them, and clients check that. What the host gives wrongly, or not at all, gets its
//! guest refused, as it could have had from the beginning.

use std::time::Duration;

use bytes::Bytes;
use cocoon_evidence::ENDORSEMENTS_BYTES_MAX;
use cocoon_protocol::host::{FromHost, ToHost};
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use crate::{
    console::EXPORT,
    host::{HostClient, HostError},
};

/// The host may have to ask a vendor's service.
const DEADLINE: Duration = Duration::from_secs(60);

/// Replaces them every so often, for ever. Where that fails, the ones at hand stay.
pub async fn renew(host: &HostClient, endorsements: &watch::Sender<Bytes>, every: Duration) {
    loop {
        sleep(every).await;
        match ask(host).await {
            Ok(newer) => {
                if *endorsements.borrow() != newer {
                    endorsements.send_replace(newer);
                    info!(target: EXPORT, "there are newer endorsements");
                }
            }
            Err(error) => warn!(target: EXPORT, "endorsements are not renewed: {error}"),
        }
    }
}

async fn ask(host: &HostClient) -> Result<Bytes, HostError> {
    match host.call(&ToHost::Endorsements, DEADLINE).await? {
        FromHost::Endorsements { endorsements } if endorsements.len() <= ENDORSEMENTS_BYTES_MAX => {
            Ok(endorsements.into())
        }
        _ => Err(HostError::Unexpected),
    }
}
