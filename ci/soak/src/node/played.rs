//! What is around the agent, played: a platform whose quote is the report data, a disk, and a host that gives credit
//! to everybody and keeps of usage records that they came in order.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, Result};
use cocoon_agent::{
    boot::{VolumeError, Volumes},
    gpu::{GpuProcess, Gpus},
    platform::{self, PlatformError},
    resident::{Resident, ResidentError},
    transport::{BoxFuture, BoxStream, Dial, Listen},
};
use cocoon_evidence::{Digest32, Digest48, Platform as Evidence, ReportData};
use cocoon_protocol::{
    AccountAddress, ContractCode, LaunchDocument, Limits, ModelVolume, NetworkId, NumericProfile, Prices,
    Settlement, VerityVolume,
    host::{FromHost, ToHost},
    read_frame_async, write_frame_async,
};
use tokio::{
    io::{DuplexStream, duplex},
    net::UnixListener,
};

pub(crate) const MODEL: &str = "talker";

/// More than any run can spend, and little enough that sums do not overflow.
pub(crate) const CREDIT_NANO: u64 = u64::MAX / 1_000_000;

/// What is served: as many requests at once as there are clients.
pub(crate) fn launch_document(streams: usize) -> Result<LaunchDocument> {
    let requests_max = u32::try_from(streams).context("too many streams")?;
    Ok(LaunchDocument {
        version: 1,
        model: ModelVolume {
            name: MODEL.into(),
            verity: VerityVolume {
                data_blocks: 1,
                salt: Digest32::ZERO,
                root_hash: Digest32::of(b"model"),
            },
        },
        numeric_profile: NumericProfile::F32,
        prices: Prices {
            input_nano_per_kilotoken: 1,
            output_nano_per_kilotoken: 1,
        },
        limits: Limits {
            context_tokens_max: 4096,
            output_tokens_max: 2048,
            requests_max,
        },
        settlement: Settlement {
            network: NetworkId::LOCAL,
            payout_address: AccountAddress(Digest32::of(b"provider")),
            contract_code: ContractCode {
                hash: Digest32::of(b"code"),
                depth: 2,
            },
        },
    })
}

/// The host's side of the service port.
pub(crate) struct Host {
    document: Vec<u8>,
    pub(crate) records: AtomicU64,
    pub(crate) out_of_order: AtomicBool,
}

impl Host {
    pub(crate) fn new(streams: usize) -> Result<Self> {
        Ok(Self {
            document: serde_json::to_vec(&launch_document(streams)?)?,
            records: AtomicU64::new(0),
            out_of_order: AtomicBool::new(false),
        })
    }

    pub(crate) fn dial(self: &Arc<Self>) -> Arc<dyn Dial> {
        Arc::new(HostDial(Arc::clone(self)))
    }

    fn answer(&self, request: ToHost) -> FromHost {
        match request {
            ToHost::Launch => FromHost::Launch {
                document: self.document.clone(),
                endorsements: vec![],
            },
            ToHost::Endorsements => FromHost::Endorsements { endorsements: vec![] },
            ToHost::Stage { .. } | ToHost::BootFailed { .. } => FromHost::Ok,
            ToHost::Credit { .. } => FromHost::Credit {
                nano: CREDIT_NANO,
                reason: String::new(),
            },
            ToHost::Record { record } => {
                let before = self.records.swap(record.number, Ordering::SeqCst);
                if record.number != before + 1 {
                    self.out_of_order.store(true, Ordering::SeqCst);
                }
                FromHost::Stored {
                    number: record.number,
                }
            }
        }
    }

    async fn talk(self: Arc<Self>, mut guest: DuplexStream) {
        while let Ok(request) = read_frame_async(&mut guest).await {
            if write_frame_async(&mut guest, &self.answer(request))
                .await
                .is_err()
            {
                return;
            }
        }
    }
}

struct HostDial(Arc<Host>);

impl Dial for HostDial {
    fn dial(&self, _: u32) -> BoxFuture<'_, io::Result<BoxStream>> {
        let (ours, theirs) = duplex(64 * 1024);
        tokio::spawn(Arc::clone(&self.0).talk(theirs));
        Box::pin(async move { Ok(Box::new(ours) as BoxStream) })
    }
}

/// Quotes are the report data.
pub(crate) struct Platform;

impl platform::Platform for Platform {
    fn extend(&self, _: Digest48) -> BoxFuture<'_, Result<(), PlatformError>> {
        Box::pin(async { Ok(()) })
    }

    fn quote(&self, data: ReportData) -> BoxFuture<'_, Result<Evidence, PlatformError>> {
        Box::pin(async move {
            Ok(Evidence::Tdx {
                quote: data.0.to_vec(),
            })
        })
    }
}

/// A model that needs no reading.
pub(crate) struct Disk;

impl Volumes for Disk {
    fn find(&self) -> Result<String, VolumeError> {
        Ok("/dev/vdb".into())
    }

    fn mount(&self, _: &str, _: u64) -> Result<(), VolumeError> {
        Ok(())
    }

    fn make_resident(&self) -> Result<Resident, ResidentError> {
        Ok(Resident::default())
    }
}

/// A machine without GPUs.
pub(crate) struct NoGpus;

impl Gpus for NoGpus {
    fn start(&self) -> io::Result<Option<GpuProcess>> {
        Ok(None)
    }
}

/// Clients, over a Unix socket.
pub(crate) struct Sockets(pub(crate) UnixListener);

impl Listen for Sockets {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<BoxStream>> {
        Box::pin(async move {
            let (stream, _) = self.0.accept().await?;
            Ok(Box::new(stream) as BoxStream)
        })
    }
}

/// Nobody asks to shut down.
pub(crate) struct NoControl;

impl Listen for NoControl {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<BoxStream>> {
        Box::pin(std::future::pending())
    }
}
