//! AMD SEV-SNP through the kernel: attestation reports from configfs-tsm.
//!
//! SNP has no register that a guest can extend. What binds a guest's launch document is HOST_DATA, which the host
//! sets before the launch and the report carries; what binds its other events is the report data, which covers
//! the whole log in every use ([`cocoon_evidence::TlsBinding`], [`cocoon_evidence::FreshBinding`]). A verifier
//! checks both, so nothing here has to be believed.

use std::{io, path::Path, sync::Arc};

use cocoon_evidence::{Digest48, Platform as Evidence, ReportData};

use super::{
    Platform, PlatformError,
    tsm::{ConfigFs, Mailbox},
};
use crate::transport::BoxFuture;

/// The driver's device (drivers/virt/coco/sev-guest).
const DEVICE: &str = "devices/virtual/misc/sev-guest";
const PROVIDER: &str = "sev_guest";

/// AMD 56860, SEV-SNP Firmware ABI, chapter 7, `ATTESTATION_REPORT`.
const REPORT_BYTES: usize = 0x4a0;
const REPORT_DATA_AT: usize = 0x50;

/// SEV-SNP, as the kernel shows it.
pub struct Snp(Arc<Mailbox>);

impl Snp {
    /// The driver's reports below `sys` (usually `/sys`), if there is one.
    pub fn find(sys: &Path) -> Option<Self> {
        let reports = ConfigFs(sys.join(super::REPORT_DIR));
        let device = sys.join(DEVICE);
        device
            .is_dir()
            .then(|| Self(Arc::new(Mailbox::new(reports, PROVIDER))))
    }
}

impl Platform for Snp {
    /// There is no register: see the module's documentation.
    fn extend(&self, _: Digest48) -> BoxFuture<'_, Result<(), PlatformError>> {
        Box::pin(async { Ok(()) })
    }

    fn quote(&self, data: ReportData) -> BoxFuture<'_, Result<Evidence, PlatformError>> {
        let mailbox = Arc::clone(&self.0);
        Box::pin(async move {
            let report = super::off_the_loop(move || mailbox.ask(&data, accept)).await;
            report.map(|report| Evidence::Snp { report }).map_err(|error| {
                PlatformError::new("getting an SEV-SNP report from configfs-tsm", error.to_string())
            })
        })
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
    use super::{
        super::tsm::fake::{Event, Kernel},
        *,
    };

    fn report(data: &[u8]) -> Vec<u8> {
        let mut report = vec![3; REPORT_BYTES];
        report[REPORT_DATA_AT..][..64].copy_from_slice(data);
        report
    }

    #[tokio::test]
    async fn a_report_binds_what_was_asked() {
        let kernel = Kernel::new(PROVIDER, report).then(Event::OtherAnswers);
        let snp = Snp(Arc::new(kernel.mailbox(PROVIDER)));
        let data = ReportData([5; 64]);
        let expected = Evidence::Snp {
            report: report(&data.0),
        };
        assert_eq!(snp.quote(data).await.unwrap(), expected);
        assert_eq!(kernel.writes(), 2);
        snp.extend(Digest48::ZERO).await.unwrap();
    }

    #[tokio::test]
    async fn a_report_of_another_length_is_refused() {
        for length in [REPORT_BYTES - 1, REPORT_BYTES + 1] {
            let kernel = Kernel::new(PROVIDER, move |_| vec![0; length]);
            let snp = Snp(Arc::new(kernel.mailbox(PROVIDER)));
            let error = snp.quote(ReportData([0; 64])).await.unwrap_err();
            assert!(error.to_string().contains(&length.to_string()), "{error}");
        }
    }

    #[test]
    fn it_is_found_by_its_device() {
        let sys = tempfile::tempdir().unwrap();
        assert!(Snp::find(sys.path()).is_none());
        std::fs::create_dir_all(sys.path().join(DEVICE)).unwrap();
        assert!(Snp::find(sys.path()).is_some());
    }
}
