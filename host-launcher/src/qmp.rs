//! QEMU's control socket (QMP): why a guest stopped, and how to stop it.
//!
//! QEMU exits 0 on power-off, reboot, panic and SIGTERM alike, so only the SHUTDOWN event tells them apart
//! (docs/interop/qmp-intro, qapi/run-state.json).

use std::{fmt, io, path::Path, time::Duration};

use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::sleep,
};

/// QEMU's answers and events are short.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// QEMU's main loop answers within this unless the machine is unusable.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// Why a virtual machine stopped (qapi/run-state.json, ShutdownCause).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShutdownCause {
    /// The guest powered off.
    GuestShutdown,
    /// The guest reset itself, which under `-no-reboot` ends it: a panic or a triple fault.
    GuestReset,
    /// The guest panicked and said so.
    GuestPanic,
    /// QMP quit.
    HostQmpQuit,
    /// SIGTERM or SIGINT to QEMU.
    HostSignal,
    /// Anything else, in QEMU's word.
    #[serde(untagged)]
    Other(String),
}

impl fmt::Display for ShutdownCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GuestShutdown => "the guest powered itself off",
            Self::GuestReset => "the guest reset itself (a kernel panic or a triple fault)",
            Self::GuestPanic => "the guest's kernel panicked",
            Self::HostQmpQuit => "QEMU was told to quit",
            Self::HostSignal => "QEMU was stopped by a signal",
            Self::Other(reason) => return write!(f, "QEMU reports {reason}"),
        })
    }
}

/// One line from QEMU.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Greeting,
    Answer,
    Refused(String),
    Shutdown(ShutdownCause),
    OtherEvent,
}

fn parse(line: &[u8]) -> io::Result<Line> {
    #[derive(Deserialize)]
    struct Raw {
        #[serde(rename = "QMP")]
        greeting: Option<serde::de::IgnoredAny>,
        r#return: Option<serde::de::IgnoredAny>,
        error: Option<RawError>,
        event: Option<String>,
        data: Option<RawData>,
    }
    #[derive(Deserialize)]
    struct RawError {
        desc: String,
    }
    #[derive(Deserialize)]
    struct RawData {
        reason: Option<ShutdownCause>,
    }
    let raw: Raw = serde_json::from_slice(line).map_err(io::Error::other)?;
    Ok(match raw {
        Raw {
            greeting: Some(_), ..
        } => Line::Greeting,
        Raw {
            r#return: Some(_), ..
        } => Line::Answer,
        Raw {
            error: Some(error), ..
        } => Line::Refused(error.desc),
        Raw {
            event: Some(event),
            data,
            ..
        } if event == "SHUTDOWN" => Line::Shutdown(
            data.and_then(|data| data.reason)
                .unwrap_or(ShutdownCause::Other("a shutdown without a reason".into())),
        ),
        Raw { event: Some(_), .. } => Line::OtherEvent,
        _ => return Err(io::Error::other("a QMP line that is neither answer nor event")),
    })
}

/// The sending half: commands whose answers nobody waits for.
#[derive(Debug)]
pub struct QmpCommands(OwnedWriteHalf);

impl QmpCommands {
    /// Ends QEMU at once.
    ///
    /// # Errors
    /// The socket is gone.
    pub async fn quit(&mut self) -> io::Result<()> {
        self.0.write_all(b"{\"execute\":\"quit\"}\n").await
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct QmpEvents(BufReader<OwnedReadHalf>);

impl QmpEvents {
    async fn line(&mut self) -> io::Result<Line> {
        let mut line = vec![];
        let bytes = (&mut self.0)
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)
            .await?;
        if bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        parse(&line)
    }

    /// Waits until the machine stops; `None` if QEMU's socket closes without a word.
    pub async fn shutdown(&mut self) -> Option<ShutdownCause> {
        loop {
            match self.line().await {
                Ok(Line::Shutdown(cause)) => return Some(cause),
                Ok(Line::Refused(reason)) => tracing::warn!("QEMU refused a command: {reason}"),
                Ok(Line::Greeting | Line::Answer | Line::OtherEvent) => {}
                Err(_) => return None,
            }
        }
    }
}

/// Connects to a QEMU started with `-S`, and lets the machine run. That way no event can be missed.
///
/// # Errors
/// Those of the socket, and QEMU's refusals.
pub async fn connect_and_start(socket: &Path) -> io::Result<(QmpCommands, QmpEvents)> {
    tokio::time::timeout(ANSWER_TIMEOUT, async {
        let (reader, mut writer) = connect(socket).await?.into_split();
        let mut events = QmpEvents(BufReader::new(reader));
        for command in ["qmp_capabilities", "cont"] {
            writer
                .write_all(format!("{{\"execute\":\"{command}\"}}\n").as_bytes())
                .await?;
            loop {
                match events.line().await? {
                    Line::Answer => break,
                    Line::Refused(reason) => return Err(io::Error::other(reason)),
                    Line::Greeting | Line::Shutdown(_) | Line::OtherEvent => {}
                }
            }
        }
        Ok((QmpCommands(writer), events))
    })
    .await
    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// QEMU's socket has a name a moment before somebody listens on it. The caller sets the deadline.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(socket).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => sleep(RETRY_PAUSE).await,
            connected => return connected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_qemu_are_understood() {
        let check =
            |line: &str, expected: Line| assert_eq!(parse(line.as_bytes()).unwrap(), expected, "{line}");
        check(
            r#"{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7}},"capabilities":["oob"]}}"#,
            Line::Greeting,
        );
        check(r#"{"return": {}}"#, Line::Answer);
        check(
            r#"{"error": {"class": "GenericError", "desc": "no"}}"#,
            Line::Refused("no".into()),
        );
        check(
            r#"{"timestamp":{"seconds":1,"microseconds":2},"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-reset"}}"#,
            Line::Shutdown(ShutdownCause::GuestReset),
        );
        check(
            r#"{"event":"SHUTDOWN","data":{"guest":false,"reason":"subsystem-reset"}}"#,
            Line::Shutdown(ShutdownCause::Other("subsystem-reset".into())),
        );
        check(r#"{"event":"RESUME"}"#, Line::OtherEvent);
        for hostile in ["", "{}", "[]", "\u{0}", r#"{"event":3}"#] {
            assert!(parse(hostile.as_bytes()).is_err(), "{hostile}");
        }
    }

    #[tokio::test]
    async fn a_socket_on_which_nobody_listens_yet_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        // Bound and closed: the name is there, and connecting is refused.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let connecting = tokio::spawn({
            let path = path.clone();
            async move { connect(&path).await }
        });
        sleep(RETRY_PAUSE * 3).await;
        assert!(!connecting.is_finished());
        let ready = dir.path().join("ready");
        let _listener = tokio::net::UnixListener::bind(&ready).unwrap();
        std::fs::rename(&ready, &path).unwrap();
        assert!(connecting.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_machine_is_started_and_its_end_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let qemu = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (reader, mut writer) = stream.into_split();
            let mut commands = BufReader::new(reader).lines();
            writer.write_all(b"{\"QMP\":{}}\n").await.unwrap();
            let mut executed = vec![];
            while let Some(command) = commands.next_line().await.unwrap() {
                let event = b"{\"event\":\"RESUME\"}\n{\"return\":{}}\n";
                writer.write_all(event).await.unwrap();
                executed.push(command);
                if executed.len() == 3 {
                    let event = b"{\"event\":\"SHUTDOWN\",\"data\":{\"reason\":\"host-qmp-quit\"}}\n";
                    writer.write_all(event).await.unwrap();
                    break;
                }
            }
            executed
        });
        let (mut commands, mut events) = connect_and_start(&path).await.unwrap();
        commands.quit().await.unwrap();
        assert_eq!(events.shutdown().await, Some(ShutdownCause::HostQmpQuit));
        assert_eq!(events.shutdown().await, None, "the socket closed");
        let executed = qemu.await.unwrap().join(" ");
        assert!(executed.contains("cont") && executed.contains("quit"));
    }
}
