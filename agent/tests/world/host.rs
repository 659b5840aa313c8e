//! The host: its service port, and the connections that it hands to the guest.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use cocoon_agent::transport::{BoxFuture, BoxStream, Dial, Listen};
use cocoon_protocol::{
    host::{FromHost, Stage, ToHost, UsageRecord},
    read_frame_async, write_frame_async,
};
use tokio::{io::duplex, sync::mpsc, time::sleep};

/// The host's side of the service port.
#[derive(Default)]
pub(crate) struct Host {
    pub(crate) document: Vec<u8>,
    pub(crate) credit_nano: AtomicU64,
    pub(crate) credit_stalls: AtomicBool,
    /// Records up to this number are refused.
    pub(crate) refuses_records: AtomicU64,
    pub(crate) records: Mutex<Vec<UsageRecord>>,
    pub(crate) refused_records: AtomicU64,
    pub(crate) stages: Mutex<Vec<Stage>>,
    pub(crate) newer_endorsements: Mutex<Option<Vec<u8>>>,
}

/// What the guest is given at boot.
pub(crate) const ENDORSEMENTS: &[u8] = b"{\"endorsed\":true}";

impl Host {
    fn answer(&self, request: ToHost) -> FromHost {
        match request {
            ToHost::Launch => FromHost::Launch {
                document: self.document.clone(),
                endorsements: ENDORSEMENTS.to_vec(),
            },
            ToHost::Endorsements => match self.newer_endorsements.lock().unwrap().clone() {
                Some(endorsements) => FromHost::Endorsements { endorsements },
                None => FromHost::Failed {
                    reason: "none".into(),
                },
            },
            ToHost::Stage { stage, .. } => {
                self.stages.lock().unwrap().push(stage);
                FromHost::Ok
            }
            ToHost::BootFailed { .. } => FromHost::Ok,
            ToHost::Credit { .. } => FromHost::Credit {
                nano: self.credit_nano.load(Ordering::SeqCst),
                reason: "not on chain".into(),
            },
            ToHost::Record { record } if record.number <= self.refuses_records.load(Ordering::SeqCst) => {
                self.refused_records.fetch_add(1, Ordering::SeqCst);
                FromHost::Failed {
                    reason: "disk full".into(),
                }
            }
            ToHost::Record { record } => {
                let number = record.number;
                self.records.lock().unwrap().push(record);
                FromHost::Stored { number }
            }
        }
    }
}

pub(crate) struct HostDial(pub(crate) Arc<Host>);

impl Dial for HostDial {
    fn dial(&self, _: u32) -> BoxFuture<'_, io::Result<BoxStream>> {
        let (ours, mut theirs) = duplex(64 * 1024);
        let host = Arc::clone(&self.0);
        tokio::spawn(async move {
            while let Ok(request) = read_frame_async(&mut theirs).await {
                let credit = matches!(request, ToHost::Credit { .. });
                while credit && host.credit_stalls.load(Ordering::SeqCst) {
                    sleep(Duration::from_millis(5)).await;
                }
                let answer = host.answer(request);
                if write_frame_async(&mut theirs, &answer).await.is_err() {
                    return;
                }
            }
        });
        Box::pin(async move { Ok(Box::new(ours) as BoxStream) })
    }
}

/// Connections that tests open.
pub(crate) struct Queue(pub(crate) mpsc::Receiver<BoxStream>);

impl Listen for Queue {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<BoxStream>> {
        Box::pin(async move {
            self.0
                .recv()
                .await
                .ok_or_else(|| io::ErrorKind::NotConnected.into())
        })
    }
}
