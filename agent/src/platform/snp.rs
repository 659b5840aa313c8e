//! AMD SEV-SNP through the kernel: attestation reports from configfs-tsm or, where that fails, from the driver's own
//! device.
//!
//! SNP has no register that a guest can extend. What binds a guest's launch document is HOST_DATA, its SHA-256, which
//! the host sets before the launch and the report carries; what binds its other events is the report data, which
//! covers the whole log in every use ([`cocoon_evidence::TlsBinding`], [`cocoon_evidence::FreshBinding`]). A verifier
//! checks both. The guest checks the first as well, before it parses the document: a host that has started it for one
//! document cannot try others on it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use cocoon_evidence::{Digest32, Digest48, Platform as Evidence, ReportData};

use super::{
    Platform, PlatformError, device,
    tsm::{self, ConfigFs, Mailbox},
};
use crate::transport::BoxFuture;

/// The driver's device (drivers/virt/coco/sev-guest), below `/sys` and below `/dev`.
const DRIVER: &str = "devices/virtual/misc/sev-guest";
const DEVICE: &str = "sev-guest";
const PROVIDER: &str = "sev_guest";

/// AMD 56860, SEV-SNP Firmware ABI, chapter 7, `ATTESTATION_REPORT`.
const REPORT_BYTES: usize = 0x4a0;
const REPORT_DATA_AT: usize = 0x50;
const HOST_DATA_AT: usize = 0xc0;

/// The same, `MSG_REPORT_RSP`: status, report size, reserved bytes, report.
const REPORT_AT: usize = 32;

/// SEV-SNP, as the kernel shows it.
pub struct Snp {
    mailbox: Arc<Mailbox>,
    device: Arc<dyn Reports>,
}

/// Answers `MSG_REPORT_REQ`.
trait Reports: Send + Sync {
    /// The whole `MSG_REPORT_RSP`.
    fn response(&self, data: &ReportData) -> io::Result<Vec<u8>>;
}

struct SevGuest(PathBuf);

impl Reports for SevGuest {
    fn response(&self, data: &ReportData) -> io::Result<Vec<u8>> {
        device::snp_report(&self.0, data)
    }
}

impl Snp {
    /// The driver below `sys` (usually `/sys`) and its device below `dev`, if there is one.
    pub fn find(sys: &Path, dev: &Path) -> Option<Self> {
        let reports = ConfigFs(sys.join(super::REPORT_DIR));
        sys.join(DRIVER).is_dir().then(|| Self {
            mailbox: Arc::new(Mailbox::new(reports, PROVIDER)),
            device: Arc::new(SevGuest(dev.join(DEVICE))),
        })
    }

    async fn report(&self, data: ReportData) -> Result<Vec<u8>, PlatformError> {
        let (mailbox, device) = (Arc::clone(&self.mailbox), Arc::clone(&self.device));
        let asked = super::off_the_loop(move || {
            mailbox.ask(&data, accept).or_else(|mailbox| {
                let report = from_device(&*device, &data);
                report.map_err(|device| {
                    io::Error::other(format!("configfs-tsm: {mailbox}; /dev/sev-guest: {device}"))
                })
            })
        });
        let failed = |error: io::Error| PlatformError::new("getting an SEV-SNP report", error.to_string());
        asked.await.map_err(failed)
    }
}

impl Platform for Snp {
    /// There is no register: see the module's documentation.
    fn extend(&self, _: Digest48) -> BoxFuture<'_, Result<(), PlatformError>> {
        Box::pin(async { Ok(()) })
    }

    fn check_launch<'a>(&'a self, document: &'a [u8]) -> BoxFuture<'a, Result<(), PlatformError>> {
        Box::pin(async move {
            // Bound to nothing: this report is for the guest itself.
            let report = self.report(ReportData([0; 64])).await?;
            let committed: [u8; 32] = report[HOST_DATA_AT..][..32].try_into().expect("32 bytes");
            let (committed, given) = (Digest32(committed), Digest32::of(document));
            if committed == given {
                return Ok(());
            }
            let cause = format!(
                "the host gave a launch document with SHA-256 {given}, and started this guest with HOST_DATA \
                 {committed}; it has to start the guest with that SHA-256 as its host-data"
            );
            Err(PlatformError::new("checking the launch document", cause))
        })
    }

    fn quote(&self, data: ReportData) -> BoxFuture<'_, Result<Evidence, PlatformError>> {
        Box::pin(async move {
            Ok(Evidence::Snp {
                report: self.report(data).await?,
            })
        })
    }
}

fn from_device(device: &dyn Reports, data: &ReportData) -> io::Result<Vec<u8>> {
    let response = tsm::retry_passing(tsm::BUSY_PAUSE, || device.response(data))?;
    let field = |at: usize| u32::from_le_bytes(response[at..at + 4].try_into().expect("4 bytes"));
    if response.len() < REPORT_AT + REPORT_BYTES {
        return Err(io::Error::other("the answer is cut"));
    }
    let (status, bytes) = (field(0), field(4) as usize);
    if (status, bytes) != (0, REPORT_BYTES) {
        let text = format!("status {status:#x} and a report of {bytes} bytes, expected {REPORT_BYTES}");
        return Err(io::Error::other(text));
    }
    match accept(response[REPORT_AT..][..bytes].to_vec())? {
        (report, bound) if bound == *data => Ok(report),
        _ => Err(io::Error::other(
            "the report binds other data than it was asked to",
        )),
    }
}

/// The firmware made it, but the host passed it on: its length may lie.
fn accept(report: Vec<u8>) -> io::Result<(Vec<u8>, ReportData)> {
    if report.len() != REPORT_BYTES {
        let bytes = report.len();
        let text = format!("the report has {bytes} bytes, expected {REPORT_BYTES}");
        return Err(io::Error::other(text));
    }
    let bound = report[REPORT_DATA_AT..][..64].try_into().expect("64 bytes");
    Ok((report, ReportData(bound)))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use nix::errno::Errno;

    use super::{
        super::tsm::fake::{Event, Kernel},
        *,
    };

    const DATA: ReportData = ReportData([5; 64]);
    const DOCUMENT: &[u8] = b"launch document";

    /// Of a guest that was started for [`DOCUMENT`].
    fn report(data: &[u8]) -> Vec<u8> {
        let mut report = vec![3; REPORT_BYTES];
        report[REPORT_DATA_AT..][..64].copy_from_slice(data);
        report[HOST_DATA_AT..][..32].copy_from_slice(Digest32::of(DOCUMENT).as_bytes());
        report
    }

    fn response(report: &[u8]) -> Vec<u8> {
        let mut response = vec![0; device::SNP_RESPONSE_BYTES];
        response[4..8].copy_from_slice(&(report.len() as u32).to_le_bytes());
        response[REPORT_AT..][..report.len()].copy_from_slice(report);
        response
    }

    type Answer = fn(&[u8]) -> io::Result<Vec<u8>>;

    /// `/dev/sev-guest`, answering like these, then honestly.
    struct FakeDevice(Mutex<Vec<Answer>>);

    impl Reports for FakeDevice {
        fn response(&self, data: &ReportData) -> io::Result<Vec<u8>> {
            let lie = self.0.lock().unwrap().pop();
            lie.unwrap_or(|data| Ok(response(&report(data))))(&data.0)
        }
    }

    fn snp(kernel: &Kernel, answers: &[Answer]) -> Snp {
        Snp {
            mailbox: Arc::new(kernel.mailbox(PROVIDER)),
            device: Arc::new(FakeDevice(Mutex::new(answers.to_vec()))),
        }
    }

    fn without_device(kernel: &Kernel) -> Snp {
        Snp {
            device: Arc::new(SevGuest("/no/such/device".into())),
            ..snp(kernel, &[])
        }
    }

    fn expected() -> Evidence {
        Evidence::Snp {
            report: report(&DATA.0),
        }
    }

    #[tokio::test]
    async fn a_report_binds_what_was_asked() {
        let kernel = Kernel::new(PROVIDER, report).then(Event::OtherAnswers);
        let snp = without_device(&kernel);
        assert_eq!(snp.quote(DATA).await.unwrap(), expected());
        assert_eq!(kernel.writes(), 2);
        snp.extend(Digest48::ZERO).await.unwrap();
    }

    #[tokio::test]
    async fn a_report_of_another_length_is_refused() {
        for length in [REPORT_BYTES - 1, REPORT_BYTES + 1] {
            let kernel = Kernel::new(PROVIDER, move |_| vec![0; length]);
            let error = without_device(&kernel).quote(DATA).await.unwrap_err();
            assert!(error.to_string().contains(&length.to_string()), "{error}");
        }
    }

    #[tokio::test]
    async fn where_configfs_fails_the_report_is_the_devices() {
        let broken = Kernel::new("another provider", report);
        assert_eq!(snp(&broken, &[]).quote(DATA).await.unwrap(), expected());
        let interrupted: Answer = |_| Err(Errno::EINTR.into());
        let busy: Answer = |_| Err(Errno::EAGAIN.into());
        let snp = snp(&broken, &[interrupted, busy]);
        assert_eq!(snp.quote(DATA).await.unwrap(), expected());
    }

    #[tokio::test]
    async fn a_device_that_fails_or_lies_gives_no_report() {
        let lies: [(Answer, &str); 5] = [
            (|_| Err(Errno::EIO.into()), "os error 5"),
            (|_| Ok(response(&report(&[6; 64]))), "other data"),
            (|data| Ok(response(&report(data)[1..])), "1183 bytes"),
            (
                |data| {
                    let mut refused = response(&report(data));
                    refused[0] = 0x16;
                    Ok(refused)
                },
                "status 0x16",
            ),
            (|data| Ok(response(&report(data))[..1000].to_vec()), "cut"),
        ];
        for (lie, expected) in lies {
            let snp = snp(&Kernel::new("another provider", report), &[lie]);
            let error = snp.quote(DATA).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}, expected {expected}");
            assert!(error.contains("configfs-tsm: the provider is"), "{error}");
        }
    }

    #[tokio::test]
    async fn another_launch_document_than_the_host_started_the_guest_for_is_refused() {
        let snp = without_device(&Kernel::new(PROVIDER, report));
        snp.check_launch(DOCUMENT).await.unwrap();
        let error = snp.check_launch(b"another").await.unwrap_err().to_string();
        for digest in [Digest32::of(DOCUMENT), Digest32::of(b"another")] {
            assert!(error.contains(&digest.to_string()), "{error}");
        }
    }

    #[test]
    fn it_is_found_by_its_driver() {
        let sys = tempfile::tempdir().unwrap();
        assert!(Snp::find(sys.path(), sys.path()).is_none());
        std::fs::create_dir_all(sys.path().join(DRIVER)).unwrap();
        assert!(Snp::find(sys.path(), sys.path()).is_some());
    }
}
