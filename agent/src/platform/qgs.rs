//! Intel's quote generation service (QGS) on the host, spoken to over vsock: the way to a TDX quote where the kernel
//! has no configfs-tsm or the hypervisor does not forward quote requests.
//!
//! A TD report goes out, a quote comes back. Message layout: Intel DCAP, `qgs_msg_lib.h`, version 1; on a stream each
//! message follows its length, 4 bytes, big-endian. The host can answer anything: lengths are bounded and have to
//! agree, there is one deadline for all of it, and the caller holds the quote against what it asked for.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use cocoon_evidence::ReportData;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::device;
use crate::transport::{BoxFuture, BoxStream, Dial};

/// Where Intel's service listens unless told otherwise (`/etc/qgs.conf`).
const PORT: u32 = 4050;

/// For connecting, asking and the answer; whoever waits for fresh evidence waits little longer.
const DEADLINE: Duration = Duration::from_secs(6);

/// As the kernel's mailbox ([`super::tsm`]).
const QUOTE_BYTES_MAX: usize = 32 * 1024;
/// The name of an attestation key, 16 bytes so far.
const KEY_NAME_BYTES_MAX: usize = 256;

const MAJOR: u16 = 1;
const MINOR: u16 = 1;
const GET_QUOTE_REQUEST: u32 = 0;
const GET_QUOTE_RESPONSE: u32 = 1;

/// Version, type, size of the message with this header, error code.
const HEADER_BYTES: usize = 16;
/// In a request: of the report and of the list of key names. In a response: of the chosen name and of the quote.
const LENGTHS_BYTES: usize = 8;
const BODY_AT: usize = HEADER_BYTES + LENGTHS_BYTES;

/// Makes TD reports.
pub(crate) trait TdReports: Send + Sync {
    /// A report over this data.
    fn report(&self, data: &ReportData) -> io::Result<Vec<u8>>;
}

/// `/dev/tdx_guest`.
pub(crate) struct TdxDevice(pub(crate) PathBuf);

impl TdReports for TdxDevice {
    fn report(&self, data: &ReportData) -> io::Result<Vec<u8>> {
        device::td_report(&self.0, data)
    }
}

/// The service.
pub(crate) struct Qgs {
    reports: Arc<dyn TdReports>,
    dial: Arc<dyn Dial>,
}

impl Qgs {
    /// Shows it reports of `reports`, reached through `dial`.
    pub(crate) fn new(reports: Arc<dyn TdReports>, dial: Arc<dyn Dial>) -> Self {
        Self { reports, dial }
    }

    /// What it says is a quote over this data.
    pub(crate) fn quote(&self, data: ReportData) -> BoxFuture<'_, io::Result<Vec<u8>>> {
        Box::pin(async move {
            let reports = Arc::clone(&self.reports);
            let report = super::off_the_loop(move || reports.report(&data)).await?;
            let late = io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time");
            let asked = timeout(DEADLINE, ask(&*self.dial, &report)).await;
            parse(&asked.map_err(|_| late)??)
        })
    }
}

async fn ask(dial: &dyn Dial, report: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = dial.dial(PORT).await?;
    let request = request(report);
    stream.write_all(&(request.len() as u32).to_be_bytes()).await?;
    stream.write_all(&request).await?;
    stream.flush().await?;
    read(&mut stream).await
}

async fn read(stream: &mut BoxStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let bytes = u32::from_be_bytes(length) as usize;
    if !(BODY_AT..=BODY_AT + KEY_NAME_BYTES_MAX + QUOTE_BYTES_MAX).contains(&bytes) {
        return Err(invalid(format!("it announces an answer of {bytes} bytes")));
    }
    let mut response = vec![0; bytes];
    stream.read_exact(&mut response).await?;
    Ok(response)
}

/// Asks for any key that the service has: the client's policy judges by whom a quote is signed.
fn request(report: &[u8]) -> Vec<u8> {
    let bytes = (BODY_AT + report.len()) as u32;
    let mut request = Vec::with_capacity(BODY_AT + report.len());
    request.extend(MAJOR.to_le_bytes());
    request.extend(MINOR.to_le_bytes());
    for field in [GET_QUOTE_REQUEST, bytes, 0, report.len() as u32, 0] {
        request.extend(field.to_le_bytes());
    }
    request.extend(report);
    request
}

/// The quote in a response, if all that the response says of itself is true.
fn parse(response: &[u8]) -> io::Result<Vec<u8>> {
    let field = |at: usize| {
        let bytes = response.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(u32::from_le_bytes)
            .ok_or_else(|| invalid("its answer is cut".into()))
    };
    let (version, kind, bytes, error) = (field(0)?, field(4)?, field(8)?, field(12)?);
    let major = version as u16;
    if (major, kind) != (MAJOR, GET_QUOTE_RESPONSE) {
        let text = format!("it answered with a message of version {major}, type {kind}");
        return Err(invalid(text));
    }
    if error != 0 {
        return Err(io::Error::other(format!("it answered with error {error:#x}")));
    }
    let (name_bytes, quote_bytes) = (field(16)? as usize, field(20)? as usize);
    let quote_at = BODY_AT.saturating_add(name_bytes);
    let ends_at = quote_at.saturating_add(quote_bytes);
    if (bytes as usize, ends_at) != (response.len(), response.len()) {
        return Err(invalid("the lengths in its answer do not agree".into()));
    }
    if !(1..=QUOTE_BYTES_MAX).contains(&quote_bytes) {
        return Err(invalid(format!("it gave a quote of {quote_bytes} bytes")));
    }
    Ok(response[quote_at..].to_vec())
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
pub(crate) mod fake {
    use std::{
        collections::VecDeque,
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use tokio::io::{DuplexStream, duplex};

    use super::*;

    /// What a quote over a TD report with this data is.
    pub(crate) type Quote = fn(&[u8]) -> Vec<u8>;

    /// What the service does with a connection; `quote` is what it would answer.
    pub(crate) type Lie = fn(quote: Vec<u8>) -> Answer;

    /// Written as they are, in pieces.
    pub(crate) enum Answer {
        /// And then it closes.
        Bytes(Vec<u8>),
        /// One at a time.
        ByteByByte(Vec<u8>),
        /// Nothing, and the connection stays open.
        Never,
    }

    /// A quote generation service: reads a request as Intel's does, and answers as it is told.
    pub(crate) struct FakeQgs {
        pub(crate) asked: AtomicUsize,
        lies: Mutex<VecDeque<Lie>>,
        /// `None`: nobody listens.
        quote: Option<Quote>,
    }

    impl FakeQgs {
        pub(crate) fn new(quote: Quote) -> Arc<Self> {
            Self::of(Some(quote))
        }

        pub(crate) fn absent() -> Arc<Self> {
            Self::of(None)
        }

        fn of(quote: Option<Quote>) -> Arc<Self> {
            Arc::new(Self {
                asked: AtomicUsize::new(0),
                lies: Mutex::default(),
                quote,
            })
        }

        /// The next connection is answered like this.
        pub(crate) fn then(&self, lie: Lie) {
            self.lies.lock().unwrap().push_back(lie);
        }
    }

    impl Dial for FakeQgs {
        fn dial(&self, port: u32) -> BoxFuture<'_, io::Result<BoxStream>> {
            assert_eq!(port, PORT);
            self.asked.fetch_add(1, Ordering::SeqCst);
            let Some(quote) = self.quote else {
                return Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) });
            };
            let (ours, theirs) = duplex(512);
            let lie = self.lies.lock().unwrap().pop_front();
            tokio::spawn(serve(theirs, quote, lie));
            Box::pin(async move { Ok(Box::new(ours) as BoxStream) })
        }
    }

    async fn serve(mut stream: DuplexStream, quote: Quote, lie: Option<Lie>) {
        let mut head = [0; 4 + BODY_AT];
        stream.read_exact(&mut head).await.unwrap();
        let field = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        // Length before the message; version 1.1; request; size; no error; report; no key names.
        let report_bytes = device::TD_REPORT_BYTES as u32;
        let size = BODY_AT as u32 + report_bytes;
        assert_eq!(head[..4], size.to_be_bytes());
        assert_eq!(head[4..8], [1, 0, 1, 0]);
        assert_eq!([8, 12, 16, 20, 24].map(field), [0, size, 0, report_bytes, 0]);
        let mut report = [0; device::TD_REPORT_BYTES];
        stream.read_exact(&mut report).await.unwrap();
        let quote = quote(&report[..64]);
        let honest: Lie = |quote| Answer::Bytes(framed(&response(&quote)));
        match lie.unwrap_or(honest)(quote) {
            // Who has seen enough is gone.
            Answer::Bytes(bytes) => drop(stream.write_all(&bytes).await),
            Answer::ByteByByte(bytes) => {
                for byte in bytes {
                    stream.write_all(&[byte]).await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
            Answer::Never => std::future::pending().await,
        }
    }

    /// A report that begins with the data it is over.
    pub(crate) struct PlainReports;

    impl TdReports for PlainReports {
        fn report(&self, data: &ReportData) -> io::Result<Vec<u8>> {
            let mut report = data.0.to_vec();
            report.resize(device::TD_REPORT_BYTES, 0);
            Ok(report)
        }
    }

    pub(crate) fn response(quote: &[u8]) -> Vec<u8> {
        let mut response = vec![1, 0, 1, 0];
        let name = [0xab; 16];
        let bytes = (BODY_AT + name.len() + quote.len()) as u32;
        for field in [
            GET_QUOTE_RESPONSE,
            bytes,
            0,
            name.len() as u32,
            quote.len() as u32,
        ] {
            response.extend(field.to_le_bytes());
        }
        response.extend(name);
        response.extend(quote);
        response
    }

    pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
        [&(message.len() as u32).to_be_bytes(), message].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        fake::{Answer, FakeQgs, Lie, PlainReports, framed, response},
        *,
    };

    const DATA: ReportData = ReportData([7; 64]);

    async fn quote_after(lie: Option<Lie>) -> io::Result<Vec<u8>> {
        let service = FakeQgs::new(|data| [b"quote over ", data].concat());
        lie.into_iter().for_each(|lie| service.then(lie));
        Qgs::new(Arc::new(PlainReports), service).quote(DATA).await
    }

    fn expected() -> Vec<u8> {
        [b"quote over ".as_slice(), &DATA.0].concat()
    }

    #[tokio::test]
    async fn a_quote_comes_back_for_a_report_whole_or_in_pieces() {
        assert_eq!(quote_after(None).await.unwrap(), expected());
        let slow: Lie = |quote| Answer::ByteByByte(framed(&response(&quote)));
        assert_eq!(quote_after(Some(slow)).await.unwrap(), expected());
    }

    /// Of each lie, what the error says.
    #[tokio::test]
    async fn a_service_that_lies_or_fails_gives_no_quote() {
        fn changed(quote: &[u8], at: usize, value: u32) -> Answer {
            let mut response = response(quote);
            response[at..at + 4].copy_from_slice(&value.to_le_bytes());
            Answer::Bytes(framed(&response))
        }
        let lies: [(Lie, &str); 13] = [
            (|quote| changed(&quote, 0, 2), "version 2"),
            (|quote| changed(&quote, 4, 0), "type 0"),
            (|quote| changed(&quote, 8, 9), "do not agree"),
            (|quote| changed(&quote, 12, 0x1_2001), "error 0x12001"),
            (|quote| changed(&quote, 16, u32::MAX), "do not agree"),
            (|quote| changed(&quote, 16, 0), "do not agree"),
            (|quote| changed(&quote, 20, u32::MAX), "do not agree"),
            (|quote| changed(&quote, 20, 3), "do not agree"),
            (|_| Answer::Bytes(framed(&response(&[]))), "quote of 0 bytes"),
            (
                |_| Answer::Bytes(framed(&response(&vec![7; QUOTE_BYTES_MAX + 1]))),
                "quote of 32769 bytes",
            ),
            (|_| Answer::Bytes(vec![0xff; 4]), "4294967295 bytes"),
            (|_| Answer::Bytes(framed(&[0; 20])), "20 bytes"),
            (
                |quote| {
                    let mut cut = framed(&response(&quote));
                    cut.truncate(60);
                    Answer::Bytes(cut)
                },
                "early eof",
            ),
        ];
        for (lie, expected) in lies {
            let error = quote_after(Some(lie)).await.unwrap_err();
            assert!(
                error.to_string().contains(expected),
                "{error}, expected {expected}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_hangs_or_is_not_there_is_given_up() {
        let error = quote_after(Some(|_| Answer::Never)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let absent = Qgs::new(Arc::new(PlainReports), FakeQgs::absent());
        let error = absent.quote(DATA).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
