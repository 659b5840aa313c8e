//! The kernel's mailbox for quotes and reports: configfs-tsm (Documentation/ABI/testing/configfs-tsm-report).
//!
//! One writes what is to be bound into `inblob` and reads the answer from `outblob`; `generation` counts writes.
//! The mailbox is one for whoever may open it, so an answer counts only if nobody else wrote meanwhile and it
//! binds what was asked. The quoting enclave serves the whole machine and may be busy.

use std::{
    fs, io,
    io::Read as _,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use cocoon_evidence::ReportData;
use nix::errno::Errno;

/// The kernel's own limit on an outblob was 32 KiB for long; no quote or report has half of that.
const OUTBLOB_BYTES_MAX: usize = 32 * 1024;
/// `generation`, `provider`.
const TEXT_BYTES_MAX: usize = 256;

const BUSY_RETRIES: u32 = 50;
pub(crate) const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// The files of one report directory.
pub(crate) trait Attributes: Send + Sync {
    /// At most one byte more than `bytes_max`.
    fn read(&self, name: &str, bytes_max: usize) -> io::Result<Vec<u8>>;
    /// In one piece.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
}

/// A directory that the kernel fills when it is made.
pub(crate) struct ConfigFs(pub(crate) PathBuf);

impl ConfigFs {
    fn make(&self) -> io::Result<()> {
        match fs::create_dir(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }
}

impl Attributes for ConfigFs {
    fn read(&self, name: &str, bytes_max: usize) -> io::Result<Vec<u8>> {
        self.make()?;
        let mut bytes = vec![];
        let file = fs::File::open(self.0.join(name))?;
        file.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.make()?;
        let mut file = fs::OpenOptions::new().write(true).open(self.0.join(name))?;
        io::Write::write_all(&mut file, bytes)
    }
}

/// Asks one provider.
pub(crate) struct Mailbox {
    attributes: Box<dyn Attributes>,
    provider: &'static str,
    pause: Duration,
    one: Mutex<()>,
}

impl Mailbox {
    /// Through these files.
    pub(crate) fn new(attributes: impl Attributes + 'static, provider: &'static str) -> Self {
        Self {
            attributes: Box::new(attributes),
            provider,
            pause: BUSY_PAUSE,
            one: Mutex::new(()),
        }
    }

    /// An answer that binds `data`, as `accept` reads it: the answer cleaned up, or why it is none.
    pub(crate) fn ask(
        &self,
        data: &ReportData,
        accept: impl Fn(Vec<u8>) -> io::Result<(Vec<u8>, ReportData)>,
    ) -> io::Result<Vec<u8>> {
        let _alone = self.one.lock().unwrap_or_else(PoisonError::into_inner);
        let provider = self.text("provider")?;
        if provider != self.provider {
            let expected = self.provider;
            let text = format!("the provider is {provider:?}, expected {expected:?}");
            return Err(io::Error::other(text));
        }
        retry_passing(self.pause, || {
            let (answer, bound) = accept(self.ask_once(data)?)?;
            // Of another writer whom the generation did not give away.
            if bound != *data {
                return Err(Errno::EBUSY.into());
            }
            Ok(answer)
        })
    }

    /// Each write adds one to the generation: more, and somebody else's inblob may have been answered.
    fn ask_once(&self, data: &ReportData) -> io::Result<Vec<u8>> {
        let before = self.generation()?;
        self.attributes.write("inblob", &data.0)?;
        let answer = self.attributes.read("outblob", OUTBLOB_BYTES_MAX)?;
        if self.generation()? != before.wrapping_add(1) {
            return Err(Errno::EBUSY.into());
        }
        match answer.len() {
            0 => Err(io::Error::other("the answer is empty")),
            bytes if bytes > OUTBLOB_BYTES_MAX => Err(io::Error::other(format!(
                "the answer is over {OUTBLOB_BYTES_MAX} bytes"
            ))),
            _ => Ok(answer),
        }
    }

    fn generation(&self) -> io::Result<u32> {
        let text = self.text("generation")?;
        text.parse()
            .map_err(|_| io::Error::other(format!("the generation is {text:?}, expected a number")))
    }

    fn text(&self, name: &str) -> io::Result<String> {
        let bytes = self.attributes.read(name, TEXT_BYTES_MAX)?;
        Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
    }
}

/// Tries again what failed for a reason that passes: a busy enclave, an interruption.
pub(crate) fn retry_passing<T>(pause: Duration, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let passing = [Errno::EBUSY, Errno::EINTR, Errno::EAGAIN].map(|errno| errno as i32);
    for _ in 0..BUSY_RETRIES {
        match attempt() {
            Err(error) if error.raw_os_error().is_some_and(|code| passing.contains(&code)) => {
                thread::sleep(pause);
            }
            other => return other,
        }
    }
    Err(io::Error::other(
        "busy for 5 s, is the quote generation service running on the host?",
    ))
}

#[cfg(test)]
pub(crate) mod fake {
    use std::{collections::VecDeque, sync::Arc};

    use super::*;

    /// What happens when the outblob is read.
    pub(crate) enum Event {
        /// The read fails.
        Fails(Errno),
        /// Somebody else writes just before.
        OtherWrites,
        /// Somebody else's answer stands there, and the generation does not tell.
        OtherAnswers,
    }

    /// The kernel's report directory (drivers/virt/coco/guest/report.c): writes count up, an answer is made when it
    /// is read, for what was written last, and only if something was.
    #[derive(Clone)]
    pub(crate) struct Kernel(Arc<Mutex<State>>);

    type Answer = Box<dyn Fn(&[u8]) -> Vec<u8> + Send>;

    struct State {
        provider: String,
        generation: u32,
        inblob: Vec<u8>,
        events: VecDeque<Event>,
        answer: Answer,
    }

    impl Kernel {
        pub(crate) fn new(provider: &str, answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> Self {
            Self(Arc::new(Mutex::new(State {
                provider: provider.into(),
                // The counter wraps around in a test, as it does in the kernel.
                generation: u32::MAX,
                inblob: vec![],
                events: VecDeque::new(),
                answer: Box::new(answer),
            })))
        }

        pub(crate) fn then(self, event: Event) -> Self {
            self.0.lock().unwrap().events.push_back(event);
            self
        }

        pub(crate) fn writes(&self) -> u32 {
            self.0.lock().unwrap().generation.wrapping_sub(u32::MAX)
        }

        pub(crate) fn mailbox(&self, provider: &'static str) -> Mailbox {
            Mailbox {
                pause: Duration::ZERO,
                ..Mailbox::new(self.clone(), provider)
            }
        }
    }

    impl Attributes for Kernel {
        fn read(&self, name: &str, bytes_max: usize) -> io::Result<Vec<u8>> {
            let mut state = self.0.lock().unwrap();
            let mut bytes = match name {
                "provider" => format!("{}\n", state.provider).into_bytes(),
                "generation" => format!("{}\n", state.generation).into_bytes(),
                "outblob" if state.inblob.is_empty() => return Err(Errno::EINVAL.into()),
                "outblob" => match state.events.pop_front() {
                    Some(Event::Fails(errno)) => return Err(errno.into()),
                    Some(Event::OtherWrites) => {
                        state.generation = state.generation.wrapping_add(1);
                        (state.answer)(&[9; 64])
                    }
                    Some(Event::OtherAnswers) => (state.answer)(&[9; 64]),
                    None => (state.answer)(&state.inblob),
                },
                _ => return Err(Errno::ENOENT.into()),
            };
            bytes.truncate(bytes_max + 1);
            Ok(bytes)
        }

        fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
            assert_eq!((name, bytes.len()), ("inblob", 64));
            let mut state = self.0.lock().unwrap();
            state.generation = state.generation.wrapping_add(1);
            state.inblob = bytes.into();
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        fake::{Event, Kernel},
        *,
    };

    const DATA: ReportData = ReportData([7; 64]);

    /// An answer that is what it binds.
    fn echo() -> Kernel {
        Kernel::new("tdx_guest", <[u8]>::to_vec)
    }

    fn ask(kernel: &Kernel) -> io::Result<Vec<u8>> {
        kernel.mailbox("tdx_guest").ask(&DATA, |answer| {
            let bound = ReportData(answer.as_slice().try_into().map_err(io::Error::other)?);
            Ok((answer, bound))
        })
    }

    #[track_caller]
    fn is_asked_again_after(event: Event) {
        let kernel = echo().then(event);
        assert_eq!(ask(&kernel).unwrap(), DATA.0);
        assert_eq!(kernel.writes(), 2);
    }

    #[test]
    fn an_answer_is_taken_at_once_if_nothing_is_wrong() {
        let kernel = echo();
        assert_eq!(ask(&kernel).unwrap(), DATA.0);
        assert_eq!(kernel.writes(), 1);
    }

    /// The count of writes says that another's inblob may have been answered.
    #[test]
    fn another_writer_in_between_loses_the_race_for_both() {
        let kernel = echo().then(Event::OtherWrites);
        assert_eq!(ask(&kernel).unwrap(), DATA.0);
        // Ours, theirs, ours.
        assert_eq!(kernel.writes(), 3);
    }

    /// The kernel itself saw a write between ours and the read.
    #[test]
    fn a_read_that_the_kernel_calls_outdated_is_asked_again() {
        is_asked_again_after(Event::Fails(Errno::EWOULDBLOCK));
    }

    #[test]
    fn an_answer_to_somebody_else_under_our_generation_is_not_taken() {
        is_asked_again_after(Event::OtherAnswers);
    }

    #[test]
    fn a_busy_enclave_is_asked_again() {
        is_asked_again_after(Event::Fails(Errno::EBUSY));
    }

    #[test]
    fn an_interrupted_read_is_asked_again() {
        is_asked_again_after(Event::Fails(Errno::EINTR));
    }

    /// A pipe of one page gives no read more than that.
    #[test]
    fn an_answer_that_comes_in_short_reads_is_put_together() {
        let sys = tempfile::tempdir().unwrap();
        let path = sys.path().join("outblob");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let answer: Vec<_> = (0..20_000_u32).map(|n| n as u8).collect();
        let written = answer.clone();
        let writer = thread::spawn(move || {
            let mut pipe = fs::OpenOptions::new().write(true).open(path).unwrap();
            nix::fcntl::fcntl(&pipe, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
            io::Write::write_all(&mut pipe, &written).unwrap();
        });
        let files = ConfigFs(sys.path().into());
        assert_eq!(files.read("outblob", OUTBLOB_BYTES_MAX).unwrap(), answer);
        writer.join().unwrap();
    }

    #[test]
    fn an_enclave_that_stays_busy_and_other_errors_end() {
        let kernel = (0..BUSY_RETRIES).fold(echo(), |kernel, _| kernel.then(Event::OtherAnswers));
        assert!(ask(&kernel).unwrap_err().to_string().contains("busy"));
        assert_eq!(kernel.writes(), BUSY_RETRIES);
        let kernel = echo().then(Event::Fails(Errno::EIO));
        assert_eq!(ask(&kernel).unwrap_err().raw_os_error(), Some(Errno::EIO as i32));
        assert_eq!(kernel.writes(), 1);
    }

    #[test]
    fn another_provider_an_empty_and_a_giant_answer_are_refused() {
        let error = ask(&Kernel::new("sev_guest", <[u8]>::to_vec)).unwrap_err();
        assert!(error.to_string().contains("sev_guest"), "{error}");
        for length in [0, OUTBLOB_BYTES_MAX + 1] {
            assert!(ask(&Kernel::new("tdx_guest", move |_| vec![7; length])).is_err());
        }
    }

    #[test]
    fn the_files_of_the_kernel_are_read_and_written() {
        let sys = tempfile::tempdir().unwrap();
        let files = ConfigFs(sys.path().join("cocoon"));
        assert!(files.read("provider", TEXT_BYTES_MAX).is_err());
        fs::write(files.0.join("provider"), "tdx_guest\n").unwrap();
        fs::write(files.0.join("inblob"), []).unwrap();
        files.write("inblob", &DATA.0).unwrap();
        assert_eq!(files.read("inblob", 64).unwrap(), DATA.0);
        assert_eq!(files.read("inblob", 9).unwrap().len(), 10);
        let error = files.write("moreblob", &[1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
