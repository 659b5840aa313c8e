//! The machine under the guest: its platform, its disks, and that it has no GPU.

use std::{
    io,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cocoon_agent::{
    boot::{VolumeError, Volumes},
    gpu::{GpuProcess, Gpus},
    platform::{Platform, PlatformError},
    resident::{Resident, ResidentError},
    transport::BoxFuture,
};
use cocoon_evidence::{Digest48, Platform as Evidence, ReportData};
use tokio::time::sleep;

/// A platform that keeps what it was told, and whose quote is the report data.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) extended: Mutex<Vec<Digest48>>,
    /// No quote is made while this is so.
    pub(crate) quotes_stall: AtomicBool,
    /// One was asked for meanwhile.
    pub(crate) quote_is_late: AtomicBool,
}

impl Platform for Fake {
    fn extend(&self, digest: Digest48) -> BoxFuture<'_, Result<(), PlatformError>> {
        self.extended.lock().unwrap().push(digest);
        Box::pin(async { Ok(()) })
    }

    fn quote(&self, data: ReportData) -> BoxFuture<'_, Result<Evidence, PlatformError>> {
        Box::pin(async move {
            while self.quotes_stall.load(Ordering::SeqCst) {
                self.quote_is_late.store(true, Ordering::SeqCst);
                sleep(Duration::from_millis(5)).await;
            }
            Ok(Evidence::Tdx {
                quote: data.0.to_vec(),
            })
        })
    }
}

/// A disk with the model, which needs no reading.
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

/// A disk that does not answer while the other end of this is there.
pub(crate) struct StuckDisk(pub(crate) Mutex<std::sync::mpsc::Receiver<()>>);

impl Volumes for StuckDisk {
    fn find(&self) -> Result<String, VolumeError> {
        Disk.find()
    }

    fn mount(&self, table: &str, sectors: u64) -> Result<(), VolumeError> {
        Disk.mount(table, sectors)
    }

    fn make_resident(&self) -> Result<Resident, ResidentError> {
        let _ = self.0.lock().unwrap().recv();
        Ok(Resident::default())
    }
}

/// A disk that holds something else.
pub(crate) struct OtherDisk;

impl Volumes for OtherDisk {
    fn find(&self) -> Result<String, VolumeError> {
        Disk.find()
    }

    fn mount(&self, _: &str, _: u64) -> Result<(), VolumeError> {
        Err(VolumeError::Mount(io::ErrorKind::InvalidData.into()))
    }

    fn make_resident(&self) -> Result<Resident, ResidentError> {
        // What is not mounted is not read.
        Err(ResidentError::TooMany { path: "/".into() })
    }
}

/// A machine without GPUs.
pub(crate) struct NoGpus;

impl Gpus for NoGpus {
    fn start(&self) -> io::Result<Option<GpuProcess>> {
        Ok(None)
    }
}
