//! A QEMU driven over qtest: this program does the memory and port accesses that firmware would do.
//!
//! The protocol is text, a command a line, an answer a line (QEMU, `system/qtest.c`, "Protocol"). It runs over
//! QEMU's standard input and output, so that no socket has a name. QEMU is a program of the user's choice, but
//! its answers are bounded in length and time all the same, and it is killed when the [`Qtest`] goes.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};

/// The longest block that is read at once.
pub(super) const READ_BYTES_MAX: usize = 1024 * 1024;

/// Base64 of [`READ_BYTES_MAX`] and "OK ".
const REPLY_BYTES_MAX: usize = READ_BYTES_MAX / 3 * 4 + 64;

/// What QEMU says on standard error before it gives up is a line or two.
const STDERR_BYTES_MAX: u64 = 4096;

/// Why QEMU could not be driven.
#[derive(Debug, thiserror::Error)]
pub enum QtestError {
    /// The program does not start.
    #[error("cannot start {program}")]
    Start {
        /// Which program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// It ended, or was silent until the deadline; with what it said on standard error.
    #[error("QEMU does not answer: {reason}{}", said(stderr))]
    Gone {
        /// What happened to the connection.
        reason: std::io::Error,
        /// Its last words.
        stderr: String,
    },
    /// An answer that the protocol does not have.
    #[error("QEMU answers {command:?} with {reply:?}")]
    Reply {
        /// What was asked.
        command: String,
        /// The answer's first characters.
        reply: String,
    },
}

fn said(stderr: &str) -> String {
    match stderr.trim() {
        "" => String::new(),
        words => format!("; it says: {words}"),
    }
}

/// A started machine.
#[derive(Debug)]
pub(super) struct Qtest {
    child: Child,
    stream: BufReader<UnixStream>,
    stderr: Option<ChildStderr>,
    deadline: Instant,
}

impl Qtest {
    /// Starts `program` with the arguments of a machine. All of its life, including what is asked later, has to
    /// fit in `limit`.
    pub(super) fn start(program: &Path, machine: &[String], limit: Duration) -> Result<Self, QtestError> {
        let failed = |source| QtestError::Start {
            program: program.display().to_string(),
            source,
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let input: OwnedFd = theirs.try_clone().map_err(failed)?.into();
        let output: OwnedFd = theirs.into();
        let mut child = Command::new(program)
            .args(machine)
            .args(["-qtest", "stdio", "-qtest-log", "none"])
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(output))
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        Ok(Self {
            stderr: child.stderr.take(),
            child,
            stream: BufReader::new(ours),
            deadline: Instant::now() + limit,
        })
    }

    /// Writes to an I/O port.
    pub(super) fn out(&mut self, width: Width, port: u16, value: u32) -> Result<(), QtestError> {
        let command = format!("out{} {port:#x} {value:#x}", width.letter());
        self.command(&command).map(drop)
    }

    /// Reads from an I/O port.
    pub(super) fn input(&mut self, width: Width, port: u16) -> Result<u32, QtestError> {
        let command = format!("in{} {port:#x}", width.letter());
        let reply = self.command(&command)?;
        let digits = reply.strip_prefix("0x").unwrap_or(&reply);
        u32::from_str_radix(digits, 16).map_err(|_| unexpected(&command, &reply))
    }

    /// Writes to memory.
    pub(super) fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), QtestError> {
        let command = format!(
            "b64write {address:#x} {:#x} {}",
            bytes.len(),
            BASE64_STANDARD.encode(bytes)
        );
        self.command(&command).map(drop)
    }

    /// Reads from memory, at most [`READ_BYTES_MAX`].
    pub(super) fn read(&mut self, address: u64, length: usize) -> Result<Vec<u8>, QtestError> {
        let command = format!("b64read {address:#x} {length:#x}");
        let reply = self.command(&command)?;
        BASE64_STANDARD
            .decode(&reply)
            .ok()
            .filter(|bytes| bytes.len() == length)
            .ok_or_else(|| unexpected(&command, &reply))
    }

    fn command(&mut self, command: &str) -> Result<String, QtestError> {
        let sent = self
            .remaining()
            .and_then(|remaining| self.stream.get_ref().set_write_timeout(Some(remaining)))
            .and_then(|()| writeln!(self.stream.get_mut(), "{command}"));
        sent.map_err(|reason| self.gone(reason))?;
        loop {
            let line = self.line().map_err(|reason| self.gone(reason))?;
            // Interrupts are reported between answers, if a device raises one.
            if line.starts_with("IRQ ") {
                continue;
            }
            return match line.strip_prefix("OK") {
                Some(rest) => Ok(rest.trim().to_owned()),
                None => Err(unexpected(command, &line)),
            };
        }
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = Vec::new();
        loop {
            let remaining = self.remaining()?;
            self.stream.get_ref().set_read_timeout(Some(remaining))?;
            let available = self.stream.fill_buf()?;
            if available.is_empty() {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let newline = available.iter().position(|byte| *byte == b'\n');
            let taken = newline.map_or(available.len(), |at| at + 1);
            line.extend_from_slice(&available[..newline.unwrap_or(taken)]);
            self.stream.consume(taken);
            if line.len() > REPLY_BYTES_MAX {
                return Err(std::io::Error::other("its answer is too long"));
            }
            if newline.is_some() {
                return String::from_utf8(line).map_err(std::io::Error::other);
            }
        }
    }

    fn remaining(&self) -> std::io::Result<Duration> {
        let remaining = self.deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        Ok(remaining)
    }

    fn gone(&mut self, reason: std::io::Error) -> QtestError {
        self.end();
        let mut words = Vec::new();
        if let Some(stderr) = self.stderr.take() {
            // What was read before an error is still the best that is known.
            let _ = stderr.take(STDERR_BYTES_MAX).read_to_end(&mut words);
        }
        QtestError::Gone {
            reason,
            stderr: String::from_utf8_lossy(&words).into_owned(),
        }
    }

    fn end(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Qtest {
    fn drop(&mut self) {
        self.end();
    }
}

/// How wide a port access is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Width {
    Byte,
    Word,
    Long,
}

impl Width {
    fn letter(self) -> char {
        match self {
            Self::Byte => 'b',
            Self::Word => 'w',
            Self::Long => 'l',
        }
    }
}

fn unexpected(command: &str, reply: &str) -> QtestError {
    let start = |text: &str| text.chars().take(80).collect();
    QtestError::Reply {
        command: start(command),
        reply: start(reply),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A program in QEMU's place; its arguments are ignored.
    fn impostor(script: &str, limit: Duration) -> Result<u32, QtestError> {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("qemu");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        Qtest::start(&program, &[], limit)?.input(Width::Byte, 0x511)
    }

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn an_answer_is_a_number() {
        assert_eq!(impostor("read x; echo OK 0x0051; cat", SOON).unwrap(), 0x51);
        let with_interrupt = "read x; echo IRQ raise 4; echo OK 0x7; cat";
        assert_eq!(impostor(with_interrupt, SOON).unwrap(), 7);
    }

    #[test]
    fn a_qemu_that_ends_is_quoted() {
        let error = impostor("echo 'no such machine' >&2; exit 1", SOON).unwrap_err();
        assert!(error.to_string().ends_with("it says: no such machine"), "{error}");
    }

    #[test]
    fn a_qemu_that_is_silent_is_killed_at_the_deadline() {
        let started = Instant::now();
        let error = impostor("exec sleep 60", Duration::from_millis(300)).unwrap_err();
        assert!(matches!(error, QtestError::Gone { .. }), "{error}");
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn an_endless_answer_is_refused() {
        let error = impostor("read x; exec tr '\\0' A </dev/zero", SOON).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
    }

    #[test]
    fn other_answers_are_refused() {
        for answer in ["FAIL Unknown command", "OK 0xzz", "hello"] {
            let error = impostor(&format!("read x; echo '{answer}'; cat"), SOON).unwrap_err();
            assert!(matches!(error, QtestError::Reply { .. }), "{error}");
        }
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Qtest::start(Path::new("/no/such/qemu"), &[], SOON).unwrap_err();
        assert_eq!(error.to_string(), "cannot start /no/such/qemu");
    }
}
