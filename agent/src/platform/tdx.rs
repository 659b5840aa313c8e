//! Intel TDX through the kernel: quotes from configfs-tsm (Documentation/ABI/testing/configfs-tsm-report),
//! RTMR3 through sysfs (Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest).

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use cocoon_evidence::{Digest48, ReportData};
use nix::errno::Errno;

use super::{Platform, PlatformError};
use crate::transport::BoxFuture;

const MEASUREMENTS: &str = "devices/virtual/misc/tdx_guest/measurements";
const RTMR3: &str = "rtmr3:sha384";
const REPORTS: &str = "kernel/config/tsm/report";
const PROVIDER: &str = "tdx_guest";

/// The kernel's own limit on an outblob is 32 KiB.
const QUOTE_BYTES_MAX: usize = 32 * 1024;

/// Of a quote's header, and of the TD report that follows it in version 4 (Intel TDX DCAP Quote Generation
/// Library, "Quote format version 4" and "5").
const HEADER_BYTES: usize = 48;
const TD_REPORT_BYTES: usize = 584;
/// In version 5 the header is followed by the body's type and length.
const BODY_TYPE_BYTES: usize = 2;

/// The quoting enclave serves one request at a time for the whole machine.
const BUSY_RETRIES: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// TDX, as the kernel under `sys` (usually `/sys`) shows it.
pub struct Tdx(Arc<Paths>);

struct Paths {
    measurements: PathBuf,
    report: PathBuf,
    /// One quote at a time: the report directory is a single mailbox.
    quoting: Mutex<()>,
}

impl Tdx {
    /// Looks below `sys`.
    pub fn new(sys: &Path) -> Self {
        Self(Arc::new(Paths {
            measurements: sys.join(MEASUREMENTS),
            report: sys.join(REPORTS).join("cocoon"),
            quoting: Mutex::new(()),
        }))
    }

    /// Whether the kernel has the TDX guest driver and its measurement registers.
    pub fn is_present(&self) -> bool {
        self.0.measurements.is_dir()
    }
}

impl Platform for Tdx {
    fn extend(&self, digest: Digest48) -> BoxFuture<'_, Result<(), PlatformError>> {
        let register = self.0.measurements.join(RTMR3);
        Box::pin(async move {
            // The write extends: R' = SHA-384(R || 48 bytes). It is not repeated on failure.
            let written = fs::OpenOptions::new()
                .write(true)
                .open(&register)
                .and_then(|mut file| io::Write::write_all(&mut file, digest.as_bytes()));
            written.map_err(|error| PlatformError::new("extending RTMR3 through sysfs", error.to_string()))
        })
    }

    fn quote(&self, data: ReportData) -> BoxFuture<'_, Result<Vec<u8>, PlatformError>> {
        let paths = Arc::clone(&self.0);
        Box::pin(async move {
            tokio::task::spawn_blocking(move || paths.quote(&data))
                .await
                .unwrap_or_else(|_| Err(io::Error::other("the quoting task ended early")))
                .map_err(|error| {
                    PlatformError::new("getting a TDX quote from configfs-tsm", error.to_string())
                })
        })
    }
}

impl Paths {
    fn quote(&self, data: &ReportData) -> io::Result<Vec<u8>> {
        let _alone = self.quoting.lock().unwrap_or_else(PoisonError::into_inner);
        match fs::create_dir(&self.report) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let provider = fs::read_to_string(self.report.join("provider"))?;
        if provider.trim_end() != PROVIDER {
            return Err(io::Error::other(format!(
                "the provider is {provider:?}, expected {PROVIDER:?}"
            )));
        }
        retry_busy(|| self.quote_once(data))
    }

    /// The generation counts writes: if it is the same before and after, the outblob answers this inblob.
    fn quote_once(&self, data: &ReportData) -> io::Result<Vec<u8>> {
        fs::write(self.report.join("inblob"), data.0)?;
        let before = self.generation()?;
        let quote = fs::read(self.report.join("outblob"))?;
        if self.generation()? != before {
            return Err(Errno::EBUSY.into());
        }
        match quote.len() {
            0 => Err(io::Error::other("the quote is empty")),
            bytes if bytes > QUOTE_BYTES_MAX => Err(io::Error::other(format!("the quote has {bytes} bytes"))),
            _ => without_padding(quote),
        }
    }

    fn generation(&self) -> io::Result<String> {
        fs::read_to_string(self.report.join("generation"))
    }
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

fn retry_busy<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let passing = [Errno::EBUSY, Errno::EINTR, Errno::EAGAIN].map(|errno| errno as i32);
    for _ in 0..BUSY_RETRIES {
        match attempt() {
            Err(error) if error.raw_os_error().is_some_and(|code| passing.contains(&code)) => {
                thread::sleep(BUSY_PAUSE);
            }
            other => return other,
        }
    }
    Err(io::Error::other(
        "busy for 5 s, is the quote generation service running on the host?",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree like the kernel's, made of plain files.
    fn fake_sys(provider: &str) -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        let report = sys.path().join(REPORTS).join("cocoon");
        fs::create_dir_all(&report).unwrap();
        fs::create_dir_all(sys.path().join(MEASUREMENTS)).unwrap();
        fs::write(sys.path().join(MEASUREMENTS).join(RTMR3), []).unwrap();
        fs::write(report.join("provider"), provider).unwrap();
        fs::write(report.join("generation"), "1\n").unwrap();
        fs::write(report.join("outblob"), quote(4)).unwrap();
        sys
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
    async fn extend_writes_the_digest_and_quote_writes_the_report_data() {
        let sys = fake_sys("tdx_guest\n");
        let tdx = Tdx::new(sys.path());
        assert!(tdx.is_present());
        let digest = Digest48::of(b"event");
        tdx.extend(digest).await.unwrap();
        let register = sys.path().join(MEASUREMENTS).join(RTMR3);
        assert_eq!(fs::read(register).unwrap(), digest.as_bytes());

        assert_eq!(tdx.quote(ReportData([7; 64])).await.unwrap(), quote(4));
        let inblob = sys.path().join(REPORTS).join("cocoon/inblob");
        assert_eq!(fs::read(inblob).unwrap(), [7; 64]);
    }

    #[tokio::test]
    async fn the_zeros_behind_a_quote_are_cut_off() {
        for version in [4, 5] {
            let sys = fake_sys(PROVIDER);
            let padded = [quote(version), vec![0; 3000]].concat();
            fs::write(sys.path().join(REPORTS).join("cocoon/outblob"), padded).unwrap();
            let trimmed = Tdx::new(sys.path()).quote(ReportData([0; 64])).await.unwrap();
            assert_eq!(trimmed, quote(version), "version {version}");
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

    #[tokio::test]
    async fn another_provider_an_empty_and_a_giant_quote_are_refused() {
        let other = fake_sys("sev_guest\n");
        let error = Tdx::new(other.path())
            .quote(ReportData([0; 64]))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("sev_guest"), "{error}");
        for quote in [vec![], vec![0; QUOTE_BYTES_MAX + 1]] {
            let sys = fake_sys(PROVIDER);
            fs::write(sys.path().join(REPORTS).join("cocoon/outblob"), quote).unwrap();
            assert!(Tdx::new(sys.path()).quote(ReportData([0; 64])).await.is_err());
        }
    }

    #[tokio::test]
    async fn without_the_device_nothing_is_extended() {
        let sys = tempfile::tempdir().unwrap();
        let tdx = Tdx::new(sys.path());
        assert!(!tdx.is_present());
        assert!(tdx.extend(Digest48::ZERO).await.is_err());
    }

    #[test]
    fn busy_is_tried_again_and_other_errors_are_not() {
        let mut left = 3;
        let value = retry_busy(|| {
            left -= 1;
            if left > 0 {
                Err(Errno::EBUSY.into())
            } else {
                Ok(left)
            }
        });
        assert_eq!(value.unwrap(), 0);
        let mut calls = 0;
        let refused = retry_busy::<()>(|| {
            calls += 1;
            Err(Errno::EACCES.into())
        });
        assert!(refused.is_err());
        assert_eq!(calls, 1);
    }
}
