//! From an empty register to a guest that can serve, in the order of the events in RTMR3.
//!
//! Each input is extended as the bytes that came, before anything interprets them: a document that does not
//! parse, or a disk that does not map, is in the register all the same.

use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use cocoon_evidence::{ENDORSEMENTS_BYTES_MAX, EventKind, GpuEvidence};
use cocoon_protocol::{
    LAUNCH_DOCUMENT_BYTES_MAX, LaunchDocument, LaunchDocumentError, VerityVolume,
    host::{FromHost, Stage, ToHost},
};
use ed25519_dalek::SigningKey;
use tokio::time::timeout;
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::{
    attest::{Attestor, MeasureError, Measurer},
    console::EXPORT,
    dm::{self, MapError},
    engine::{Engine, Status},
    gpu::{self, GpuError, Gpus, Watched},
    host::{HostClient, HostError},
    meter,
    platform::Platform,
    resident::{Resident, ResidentError},
    system,
};

/// Where the model volume is mounted. The engine, which starts earlier, is granted the folder above: what Landlock
/// grants on a mount point itself is hidden by the mount.
pub const MODEL_DIR: &str = "/run/model/volume";
/// See [`MODEL_DIR`].
pub const MODEL_PARENT: &str = "/run/model";

/// Serial number of the model's virtio disk; the launcher sets it. Which disk it is decides nothing: verity
/// does.
const MODEL_SERIAL: &str = "cocoon-model";

const LAUNCH_DEADLINE: Duration = Duration::from_secs(60);
const STAGE_DEADLINE: Duration = Duration::from_secs(5);
const ENGINE_DEADLINE: Duration = Duration::from_secs(330);
/// A terabyte at the speed of a fast disk; the launcher gives up long before on a small model.
const RESIDENT_DEADLINE: Duration = Duration::from_secs(600);
/// 2026-01-01: this program is younger. A kernel that cannot read the machine's clock in time begins at 1970.
const EARLIEST_S: u64 = 1_767_225_600;

/// Why the guest cannot serve. It powers off.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The host.
    #[error("asking the host for the launch document: {0}")]
    Host(#[from] HostError),
    /// The host answered with too many bytes.
    #[error("the host's {what} has {bytes} bytes, at most {bytes_max} are allowed")]
    TooLarge {
        /// Which part of the answer.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// No clock.
    #[error(
        "the guest's clock says {now_s} s after 1970: its kernel could not read the machine's clock, as it happens \
         on a host that is out of processor time; set the host's clock, or lower its load, and start again"
    )]
    Clock {
        /// What it says.
        now_s: u64,
    },
    /// RTMR3.
    #[error("measuring: {0}")]
    Measure(#[from] MeasureError),
    /// The launch document was measured and is not valid.
    #[error("{}", with_source(.0))]
    Document(#[from] LaunchDocumentError),
    /// No disk, or not the one of the launch document.
    #[error(
        "the model volume cannot be mounted: {0}; check that the disk holds the volume of the launch document"
    )]
    Volume(#[from] VolumeError),
    /// Root or model.
    #[error(transparent)]
    Resident(#[from] ResidentError),
    /// The disks are too slow, or the host holds their answers back.
    #[error("root and model were not read within {} s", RESIDENT_DEADLINE.as_secs())]
    Disks,
    /// The GPUs.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// The engine.
    #[error("the engine is not ready: {reason}")]
    Engine {
        /// Its words, or ours.
        reason: String,
    },
}

/// Why the model volume is not there.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// No disk has `MODEL_SERIAL`.
    #[error("no disk has the serial number {MODEL_SERIAL:?}")]
    Missing,
    /// Mapping it.
    #[error("{}", with_source(.0))]
    Map(#[from] MapError),
    /// Mounting it; with a wrong root hash this is where the first block fails to verify.
    #[error("mounting the verified device failed: {0}")]
    Mount(#[source] io::Error),
}

fn with_source(error: &dyn std::error::Error) -> String {
    error
        .source()
        .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// The disk that holds the model.
pub trait Volumes: Send + Sync {
    /// Path of the device, as it stands in the measured table.
    ///
    /// # Errors
    /// There is none.
    fn find(&self) -> Result<String, VolumeError>;

    /// Maps the device through dm-verity with exactly this table and mounts it.
    ///
    /// # Errors
    /// See [`VolumeError`].
    fn mount(&self, table: &str, sectors: u64) -> Result<(), VolumeError>;

    /// Reads the root and the model and keeps them in memory; takes as long as the disks do.
    ///
    /// # Errors
    /// They do not fit.
    fn make_resident(&self) -> Result<Resident, ResidentError>;
}

/// The guest's virtio disks.
pub struct Disks {
    /// `/sys/block`.
    pub sys_block: PathBuf,
}

impl Volumes for Disks {
    /// `/dev/NAME` with the kernel's name. The launcher attaches the root first and the model second, so this
    /// is `/dev/vdb`; were it another name, the measured table and thus RTMR3 would differ from the prediction.
    fn find(&self) -> Result<String, VolumeError> {
        let entries = fs::read_dir(&self.sys_block).map_err(|_| VolumeError::Missing)?;
        let mut names = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| {
                let serial = fs::read_to_string(self.sys_block.join(name).join("serial"));
                serial.is_ok_and(|serial| serial.trim_end() == MODEL_SERIAL)
            })
            .collect::<Vec<_>>();
        names.sort();
        let first = names.into_iter().next().ok_or(VolumeError::Missing)?;
        Ok(format!("/dev/{first}"))
    }

    fn mount(&self, table: &str, sectors: u64) -> Result<(), VolumeError> {
        let device = dm::map_verity(table, sectors)?;
        system::mount_model(&device, MODEL_DIR.as_ref()).map_err(VolumeError::Mount)
    }

    fn make_resident(&self) -> Result<Resident, ResidentError> {
        let mut resident = Resident::default();
        for volume in ["/", MODEL_DIR] {
            resident.lock(volume.as_ref())?;
        }
        Ok(resident)
    }
}

/// What booting works with.
pub struct Parts {
    /// The host's service port.
    pub host: Arc<HostClient>,
    /// The processor.
    pub platform: Arc<dyn Platform>,
    /// The disks.
    pub volumes: Arc<dyn Volumes>,
    /// The GPUs.
    pub gpus: Arc<dyn Gpus>,
    /// The engine's process, already starting.
    pub engine: Engine,
}

/// A measured guest with a loaded model.
pub struct Guest {
    /// What the host asked for, as measured.
    pub launch: Arc<LaunchDocument>,
    /// Makes evidence.
    pub attestor: Attestor,
    /// Signs vouchers and receipts; made at this boot, never leaves.
    pub usage_key: SigningKey,
    /// Passed on to clients as is.
    pub endorsements: Bytes,
    /// With a loaded model.
    pub engine: Engine,
    /// The GPUs that it runs on, if any.
    pub gpus: Option<Watched>,
    /// The host's service port.
    pub host: Arc<HostClient>,
    /// Root and model, in memory as long as this lives.
    pub resident: Resident,
}

/// Runs the whole sequence.
///
/// # Errors
/// See [`BootError`]. What was extended stays extended.
pub async fn boot(parts: Parts) -> Result<Guest, BootError> {
    let Parts {
        host,
        platform,
        volumes,
        gpus,
        engine,
    } = parts;
    check_clock(meter::now_s())?;
    let mut measurer = Measurer::new(platform);
    let (document, endorsements) = fetch_launch(&host).await?;
    measurer.record_launch(&document).await?;
    let launch = LaunchDocument::parse(&document)?;

    mount_model(&mut measurer, &*volumes, &launch.model.verity).await?;
    // Beside the engine, which waits for its processor more than for the disks.
    let reading = tokio::spawn(read_disks(volumes));
    tell_stage(&host, Stage::Model, Duration::ZERO).await;

    let mut seed = Zeroizing::new([0; 32]);
    meter::fill_random(&mut *seed);
    let usage_key = SigningKey::from_bytes(&seed);
    drop(seed);
    let public = usage_key.verifying_key().to_bytes();
    measurer.record(EventKind::UsageKey, public.to_vec()).await?;
    let gpus = measure_gpus(&mut measurer, &*gpus, &public).await?;

    // Not before the GPUs are ready: on them the model is loaded.
    engine.load(MODEL_DIR, launch.numeric_profile, launch.limits);
    let loading = async {
        let elapsed = wait_loaded(&engine).await?;
        tell_stage(&host, Stage::Engine, elapsed).await;
        Ok::<_, BootError>(())
    };
    // What fails first ends the boot.
    let reading = async { reading.await.expect("it neither panics nor is cancelled") };
    let ((), resident) = tokio::try_join!(loading, reading)?;
    let attestor = measurer.finish().await?;
    tell_stage(&host, Stage::Ready, Duration::ZERO).await;
    Ok(Guest {
        launch: Arc::new(launch),
        attestor,
        usage_key,
        endorsements: endorsements.into(),
        engine,
        gpus,
        host,
        resident,
    })
}

/// No client would take a certificate of another century; better to end now, with the reason.
fn check_clock(now_s: u64) -> Result<(), BootError> {
    if now_s < EARLIEST_S {
        return Err(BootError::Clock { now_s });
    }
    Ok(())
}

/// Evidence first, measured second, ready third: nothing is computed on a GPU that is not in RTMR3.
async fn measure_gpus(
    measurer: &mut Measurer,
    gpus: &dyn Gpus,
    usage_key: &[u8; 32],
) -> Result<Option<Watched>, BootError> {
    match gpu::collect(gpus, GpuEvidence::nonce(usage_key)).await? {
        Ok(collected) => {
            measurer.record_gpus(collected.items()).await?;
            info!(target: EXPORT, "{} GPUs are measured", collected.items().len());
            Ok(Some(collected.set_ready().await?))
        }
        Err(reason) => {
            info!(target: EXPORT, "no GPU: {reason}");
            measurer.record_gpus(&[]).await?;
            Ok(None)
        }
    }
}

/// The deadline runs from here: a slow engine gives slow disks no more time.
async fn read_disks(volumes: Arc<dyn Volumes>) -> Result<Resident, BootError> {
    let reading = tokio::task::spawn_blocking(move || volumes.make_resident());
    let read = timeout(RESIDENT_DEADLINE, reading)
        .await
        .map_err(|_| BootError::Disks)?;
    let resident = read.expect("it neither panics nor is cancelled")?;
    info!(target: EXPORT, "{} bytes of root and model are in memory", resident.bytes());
    Ok(resident)
}

async fn fetch_launch(host: &HostClient) -> Result<(Vec<u8>, Vec<u8>), BootError> {
    let FromHost::Launch {
        document,
        endorsements,
    } = host.call(&ToHost::Launch, LAUNCH_DEADLINE).await?
    else {
        return Err(HostError::Unexpected.into());
    };
    let bounds = [
        ("launch document", document.len(), LAUNCH_DOCUMENT_BYTES_MAX),
        ("endorsements", endorsements.len(), ENDORSEMENTS_BYTES_MAX),
    ];
    match bounds.into_iter().find(|(_, bytes, bytes_max)| bytes > bytes_max) {
        Some((what, bytes, bytes_max)) => Err(BootError::TooLarge {
            what,
            bytes,
            bytes_max,
        }),
        None => Ok((document, endorsements)),
    }
}

/// The event is the very table that the kernel is given, and is extended before the kernel reads the disk.
async fn mount_model(
    measurer: &mut Measurer,
    volumes: &dyn Volumes,
    verity: &VerityVolume,
) -> Result<(), BootError> {
    let table = verity.table(&volumes.find()?);
    measurer
        .record(EventKind::Model, table.clone().into_bytes())
        .await?;
    Ok(volumes.mount(&table, verity.sectors())?)
}

/// Waits until the model is loaded. A child that fails to load it is fatal here: at boot there is nothing yet
/// that a restart could save.
async fn wait_loaded(engine: &Engine) -> Result<Duration, BootError> {
    let mut status = engine.status();
    let wait = status.wait_for(|status| *status != Status::Starting(None));
    match timeout(ENGINE_DEADLINE, wait)
        .await
        .map(|status| status.map(|status| status.clone()))
    {
        Ok(Ok(Status::Loaded { elapsed_ms })) => Ok(Duration::from_millis(elapsed_ms)),
        Ok(Ok(Status::Starting(reason))) => Err(BootError::Engine {
            reason: reason.unwrap_or_default(),
        }),
        Ok(Err(_)) | Err(_) => Err(BootError::Engine {
            reason: "no answer in time".into(),
        }),
    }
}

/// Tells the host how far the guest is, or was `ago`. A host that does not listen is no reason to stop.
pub async fn tell_stage(host: &HostClient, stage: Stage, ago: Duration) {
    let uptime_ms = system::uptime().saturating_sub(ago).as_millis() as u64;
    info!(target: EXPORT, "{stage:?} after {uptime_ms} ms");
    if let Err(error) = host
        .tell(&ToHost::Stage { stage, uptime_ms }, STAGE_DEADLINE)
        .await
    {
        warn!(target: EXPORT, "the host was not told of stage {stage:?}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_disk_is_found_by_its_serial_number() {
        let sys = tempfile::tempdir().unwrap();
        let disks = Disks {
            sys_block: sys.path().into(),
        };
        assert!(matches!(disks.find(), Err(VolumeError::Missing)));
        for (name, serial) in [("vda", "cocoon-root\n"), ("vdb", "cocoon-model\n")] {
            fs::create_dir(sys.path().join(name)).unwrap();
            fs::write(sys.path().join(name).join("serial"), serial).unwrap();
        }
        fs::create_dir(sys.path().join("dm-0")).unwrap();
        assert_eq!(disks.find().unwrap(), "/dev/vdb");
    }

    #[test]
    fn a_guest_without_a_clock_ends_with_the_reason() {
        let refused = check_clock(0).unwrap_err().to_string();
        assert!(
            refused.starts_with("the guest's clock says 0 s after 1970"),
            "{refused}"
        );
        assert!(check_clock(EARLIEST_S - 1).is_err());
        assert!(check_clock(EARLIEST_S).is_ok());
    }
}
