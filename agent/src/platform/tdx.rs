//! Intel TDX through the kernel: quotes from configfs-tsm (Documentation/ABI/testing/configfs-tsm-report) or, where
//! that fails, from the host's quote generation service; RTMR3 through sysfs
//! (Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest).

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use cocoon_evidence::{Digest48, Platform as Evidence, ReportData};

use super::{
    Platform, PlatformError,
    qgs::{Qgs, TdxDevice},
    tsm::{ConfigFs, Mailbox},
};
use crate::transport::{BoxFuture, Dial};

/// Below `/dev`.
const DEVICE: &str = "tdx_guest";
const MEASUREMENTS: &str = "devices/virtual/misc/tdx_guest/measurements";
const RTMR3: &str = "rtmr3:sha384";
const PROVIDER: &str = "tdx_guest";

/// Of a quote's header, and of the TD report that follows it in version 4 (Intel TDX DCAP Quote Generation
/// Library, "Quote format version 4" and "5").
const HEADER_BYTES: usize = 48;
const TD_REPORT_BYTES: usize = 584;
/// In version 5 the header is followed by the body's type and length.
const BODY_TYPE_BYTES: usize = 2;
/// In the TD report, of both versions.
const REPORT_DATA_AT: usize = 520;

/// TDX, as the kernel shows it.
pub struct Tdx {
    measurements: PathBuf,
    mailbox: Arc<Mailbox>,
    service: Qgs,
    /// Which of the two is asked first: the one that gave the last quote, unless it failed or was given up since. The
    /// other may take long to fail.
    from_service: AtomicBool,
}

impl Tdx {
    /// The kernel's TDX guest driver and its measurement registers below `sys` (usually `/sys`), if they are there.
    pub fn find(sys: &Path, dev: &Path, dial: &Arc<dyn Dial>) -> Option<Self> {
        let measurements = sys.join(MEASUREMENTS);
        let reports = ConfigFs(sys.join(super::REPORT_DIR));
        measurements.is_dir().then(|| Self {
            measurements,
            mailbox: Arc::new(Mailbox::new(reports, PROVIDER)),
            service: Qgs::new(Arc::new(TdxDevice(dev.join(DEVICE))), Arc::clone(dial)),
            from_service: AtomicBool::new(false),
        })
    }

    async fn ask(&self, from_service: bool, data: ReportData) -> io::Result<Vec<u8>> {
        if !from_service {
            let mailbox = Arc::clone(&self.mailbox);
            return super::off_the_loop(move || mailbox.ask(&data, accept)).await;
        }
        match accept(self.service.quote(data).await?)? {
            (quote, bound) if bound == data => Ok(quote),
            _ => Err(io::Error::other(
                "its quote is not over the report that it was given",
            )),
        }
    }
}

impl Platform for Tdx {
    fn extend(&self, digest: Digest48) -> BoxFuture<'_, Result<(), PlatformError>> {
        let register = self.measurements.join(RTMR3);
        Box::pin(async move {
            // The write extends: R' = SHA-384(R || 48 bytes). It is not repeated on failure.
            let written = fs::OpenOptions::new()
                .write(true)
                .open(&register)
                .and_then(|mut file| io::Write::write_all(&mut file, digest.as_bytes()));
            written.map_err(|error| PlatformError::new("extending RTMR3 through sysfs", error.to_string()))
        })
    }

    fn quote(&self, data: ReportData) -> BoxFuture<'_, Result<Evidence, PlatformError>> {
        Box::pin(async move {
            let before = self.from_service.load(Ordering::Relaxed);
            let mut failures = vec![];
            for from_service in [before, !before] {
                // Before it is asked: whoever asks may lose patience with it, and has to get to the other next time.
                self.from_service.store(!from_service, Ordering::Relaxed);
                match self.ask(from_service, data).await {
                    Ok(quote) => {
                        self.from_service.store(from_service, Ordering::Relaxed);
                        return Ok(Evidence::Tdx { quote });
                    }
                    Err(error) if from_service => {
                        failures.push(format!("the host's quoting service: {error}"));
                    }
                    Err(error) => failures.push(format!("configfs-tsm: {error}")),
                }
            }
            Err(PlatformError::new("getting a TDX quote", failures.join("; ")))
        })
    }
}

/// A quote and what it binds.
fn accept(quote: Vec<u8>) -> io::Result<(Vec<u8>, ReportData)> {
    let quote = without_padding(quote)?;
    let body_at = match quote[0] {
        5 => HEADER_BYTES + BODY_TYPE_BYTES + 4,
        _ => HEADER_BYTES,
    };
    let bound = quote
        .get(body_at + REPORT_DATA_AT..)
        .and_then(|rest| rest.first_chunk());
    let bound = bound.ok_or_else(|| io::Error::other("the quote has no report data"))?;
    let bound = ReportData(*bound);
    Ok((quote, bound))
}

/// The quote without the zeros that some quote generation services put behind it: verifiers refuse bytes that no
/// field accounts for. The quote came through the host, so its lengths may lie; then it is no quote.
fn without_padding(mut quote: Vec<u8>) -> io::Result<Vec<u8>> {
    let length = length(&quote).filter(|length| *length <= quote.len());
    let length =
        length.ok_or_else(|| io::Error::other("the quote is cut, or of another version than 4 and 5"))?;
    if quote[length..].iter().any(|byte| *byte != 0) {
        let more = quote.len() - length;
        return Err(io::Error::other(format!(
            "{more} bytes follow the quote, and not all are zero"
        )));
    }
    quote.truncate(length);
    Ok(quote)
}

/// What the quote's own fields say.
fn length(quote: &[u8]) -> Option<usize> {
    let u32_at = |at: usize| {
        let bytes = quote.get(at..at.checked_add(4)?)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    let signed = match quote.get(..2)? {
        [4, 0] => HEADER_BYTES + TD_REPORT_BYTES,
        [5, 0] => {
            let size_at = HEADER_BYTES + BODY_TYPE_BYTES;
            u32_at(size_at)?.checked_add(size_at + 4)?
        }
        _ => return None,
    };
    signed.checked_add(4)?.checked_add(u32_at(signed)?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::errno::Errno;

    use super::{
        super::{
            qgs::fake::{Answer, FakeQgs, PlainReports, Quote},
            tsm::fake::{Event, Kernel},
        },
        *,
    };

    fn tdx_of(mailbox: Mailbox, service: &Arc<FakeQgs>) -> Tdx {
        Tdx {
            measurements: PathBuf::new(),
            mailbox: Arc::new(mailbox),
            service: Qgs::new(Arc::new(PlainReports), Arc::clone(service) as Arc<dyn Dial>),
            from_service: AtomicBool::new(false),
        }
    }

    /// A kernel whose answers are these quotes, with the report data that was asked for.
    fn tdx(quote: impl Fn() -> Vec<u8> + Send + 'static) -> Tdx {
        let kernel = Kernel::new(PROVIDER, move |data| over(quote(), data));
        tdx_of(kernel.mailbox(PROVIDER), &FakeQgs::absent())
    }

    fn over(mut quote: Vec<u8>, data: &[u8]) -> Vec<u8> {
        let body_at = if quote[0] == 5 {
            HEADER_BYTES + 6
        } else {
            HEADER_BYTES
        };
        quote[body_at + REPORT_DATA_AT..][..64].copy_from_slice(data);
        quote
    }

    const DATA: ReportData = ReportData([7; 64]);

    fn expected() -> Evidence {
        Evidence::Tdx {
            quote: over(quote(4), &DATA.0),
        }
    }

    /// A quote of this version as far as its lengths go: body, and 300 bytes of signature data.
    fn quote(version: u8) -> Vec<u8> {
        let mut quote = vec![0; HEADER_BYTES];
        quote[0] = version;
        let body_bytes = match version {
            5 => TD_REPORT_BYTES + 64,
            _ => TD_REPORT_BYTES,
        };
        if version == 5 {
            quote.extend(3u16.to_le_bytes());
            quote.extend((body_bytes as u32).to_le_bytes());
        }
        quote.extend(vec![0xbb; body_bytes]);
        quote.extend(300u32.to_le_bytes());
        quote.extend(vec![0xcc; 300]);
        quote
    }

    #[tokio::test]
    async fn extend_writes_the_digest_into_the_register() {
        let sys = tempfile::tempdir().unwrap();
        let find = || {
            let dial: Arc<dyn Dial> = FakeQgs::absent();
            Tdx::find(sys.path(), sys.path(), &dial)
        };
        assert!(find().is_none());
        let register = sys.path().join(MEASUREMENTS).join(RTMR3);
        fs::create_dir_all(register.parent().unwrap()).unwrap();
        let tdx = find().unwrap();
        assert!(tdx.extend(Digest48::ZERO).await.is_err(), "there is no register");
        fs::write(&register, []).unwrap();
        let digest = Digest48::of(b"event");
        tdx.extend(digest).await.unwrap();
        assert_eq!(fs::read(register).unwrap(), digest.as_bytes());
    }

    #[tokio::test]
    async fn without_configfs_the_quote_is_the_services_and_the_service_is_asked_first_from_then_on() {
        let service = FakeQgs::new(|data| over([quote(4), vec![0; 50]].concat(), data));
        let nowhere = ConfigFs("/no/such/configfs/tsm/report/cocoon".into());
        let tdx = tdx_of(Mailbox::new(nowhere, PROVIDER), &service);
        for asked in 1..3 {
            assert_eq!(tdx.quote(DATA).await.unwrap(), expected());
            assert_eq!(service.asked.load(Ordering::SeqCst), asked);
        }
    }

    #[tokio::test]
    async fn a_kernel_that_cannot_quote_is_asked_once_and_again_only_when_the_service_fails() {
        let kernel = Kernel::new(PROVIDER, |data| over(quote(4), data)).then(Event::Fails(Errno::ENXIO));
        let service = FakeQgs::new(|data| over(quote(4), data));
        let tdx = tdx_of(kernel.mailbox(PROVIDER), &service);
        for _ in 0..2 {
            assert_eq!(tdx.quote(DATA).await.unwrap(), expected());
        }
        assert_eq!(kernel.writes(), 1);
        service.then(|_| Answer::Bytes(vec![]));
        for writes in [2, 3] {
            assert_eq!(tdx.quote(DATA).await.unwrap(), expected());
            assert_eq!(kernel.writes(), writes);
        }
        assert_eq!(service.asked.load(Ordering::SeqCst), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn who_loses_patience_with_one_way_to_a_quote_gets_it_the_other_way_next_time() {
        let kernel = Kernel::new(PROVIDER, |data| over(quote(4), data)).then(Event::Fails(Errno::ENXIO));
        let service = FakeQgs::new(|data| over(quote(4), data));
        let tdx = tdx_of(kernel.mailbox(PROVIDER), &service);
        assert_eq!(tdx.quote(DATA).await.unwrap(), expected());
        service.then(|_| Answer::Never);
        let impatient = tokio::time::timeout(Duration::from_secs(1), tdx.quote(DATA));
        assert!(impatient.await.is_err(), "the service hangs");
        assert_eq!(tdx.quote(DATA).await.unwrap(), expected());
        assert_eq!(service.asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_quote_of_the_service_over_another_report_or_that_is_none_is_refused() {
        let failing = || Kernel::new(PROVIDER, |_| vec![]).mailbox(PROVIDER);
        let others: [Quote; 3] = [
            |_| over(quote(4), &[8; 64]),
            |_| vec![7; 2000],
            |data| [over(quote(4), data), vec![1]].concat(),
        ];
        for other in others {
            let error = tdx_of(failing(), &FakeQgs::new(other)).quote(DATA).await;
            let text = error.unwrap_err().to_string();
            assert!(
                text.contains("configfs-tsm") && text.contains("quoting service"),
                "{text}"
            );
        }
    }

    #[tokio::test]
    async fn a_quote_binds_what_was_asked_and_the_zeros_behind_it_are_cut_off() {
        for version in [4, 5] {
            let padded = tdx(move || [quote(version), vec![0; 3000]].concat());
            let data = ReportData([7; 64]);
            let Evidence::Tdx { quote: trimmed } = padded.quote(data).await.unwrap() else {
                panic!("the platform is TDX");
            };
            assert_eq!(trimmed.len(), quote(version).len(), "version {version}");
            assert_eq!(accept(trimmed).unwrap().1, data);
        }
    }

    #[test]
    fn a_quote_that_lies_about_its_length_is_refused() {
        for version in [4, 5] {
            let whole = quote(version);
            for cut in 0..whole.len() {
                assert!(
                    without_padding(whole[..cut].to_vec()).is_err(),
                    "{version} cut at {cut}"
                );
            }
            assert!(without_padding([whole.clone(), vec![0, 1]].concat()).is_err());
            let length_at = whole.len() - 304;
            let mut giant = whole;
            giant[length_at..length_at + 4].fill(0xff);
            assert!(without_padding(giant).is_err());
        }
        assert!(without_padding(quote(3)).is_err());
    }
}
