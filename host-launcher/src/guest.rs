//! One running guest: QEMU, the vsock backend where one is needed, and how both end.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use cocoon_protocol::{
    host::{FromGuest, GUEST_CONTROL_PORT, LAST_RECORDS_LIMIT, ToGuest},
    read_frame_async, write_frame_async,
};
use tokio::{
    process::{Child, Command},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    child::{Spawner, wait_or_kill},
    guest_socket::{GuestSocket, remove_stale},
    qmp::{self, QmpCommands, ShutdownCause},
};

/// A started program offers its socket within this, on a very busy machine too.
const SOCKET_LIMIT: Duration = Duration::from_secs(20);

/// The guest takes the order to shut down within this, or it is not listening.
const ORDER_LIMIT: Duration = Duration::from_secs(5);

/// QEMU obeys QMP within this, or it is killed.
const QUIT_LIMIT: Duration = Duration::from_secs(5);

/// The guest powers off within this, on top of the grace for running requests: its last records, and the rest.
const POWER_OFF_LIMIT: Duration = LAST_RECORDS_LIMIT.saturating_add(Duration::from_secs(2));

/// Host-to-guest writes of 1 MiB hang with the backend's default of 65536.
const BACKEND_TX_BUFFER: &str = "28672";

/// The end of a log that is worth quoting.
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// Files and sockets of a run, all in the state directory.
#[derive(Debug, Clone)]
pub struct RunFiles {
    run: PathBuf,
    state: PathBuf,
}

impl RunFiles {
    /// Makes the folder for sockets, readable by the owner alone.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(state_dir: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let run = state_dir.join("run");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&run)?;
        Ok(Self {
            run,
            state: state_dir.to_owned(),
        })
    }

    /// Removes the sockets of an ended run; the next run would replace them, too.
    pub fn remove_sockets(&self) {
        if let Err(error) = fs::remove_dir_all(&self.run) {
            tracing::debug!(%error, "the sockets of this run stay");
        }
    }

    /// QEMU listens here.
    pub fn qmp(&self) -> PathBuf {
        self.run.join("qmp")
    }

    /// The backend listens here for QEMU.
    pub fn vhost_user(&self) -> PathBuf {
        self.run.join("vhost")
    }

    /// The backend listens here for us; with `_PORT` behind it, we listen for the guest.
    pub fn guest(&self) -> PathBuf {
        self.run.join("guest")
    }

    /// The guest's serial port.
    pub fn console(&self) -> PathBuf {
        self.state.join("console.log")
    }

    /// QEMU's standard error.
    pub fn qemu_log(&self) -> PathBuf {
        self.state.join("qemu.log")
    }

    fn backend_log(&self) -> PathBuf {
        self.state.join("vsock.log")
    }
}

/// Why a guest could not be started; nothing of it is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A program does not start.
    #[error("{} does not start", program.display())]
    Spawn {
        /// Which.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended at once.
    #[error("{} ended at once ({status}): {log}", program.display())]
    Ended {
        /// Which.
        program: PathBuf,
        /// How.
        status: ExitStatus,
        /// What it wrote.
        log: String,
    },
    /// It does not offer its socket.
    #[error("{} does not answer on its socket: {log}", program.display())]
    Silent {
        /// Which.
        program: PathBuf,
        /// What it wrote.
        log: String,
    },
    /// A file of the run.
    #[error("cannot prepare {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The vsock backend, running.
#[derive(Debug)]
pub struct Backend(Child);

impl Backend {
    /// Starts the backend and waits until QEMU can connect.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(spawner: &Spawner, program: &Path, files: &RunFiles) -> Result<Self, StartError> {
        for socket in [files.vhost_user(), files.guest()] {
            remove_stale(&socket).map_err(|source| StartError::File { path: socket, source })?;
        }
        let mut command = Command::new(program);
        command.arg("--socket").arg(files.vhost_user());
        command.arg("--uds-path").arg(files.guest());
        command.args(["--guest-cid", "3", "--tx-buffer-size", BACKEND_TX_BUFFER]);
        let log = files.backend_log();
        let mut child = spawn(spawner, program, command, &log).await?;
        wait_for_socket(program, &mut child, &files.vhost_user(), &log).await?;
        Ok(Self(child))
    }
}

/// A guest that runs.
#[derive(Debug)]
pub struct Guest {
    qemu: Child,
    backend: Option<Backend>,
    commands: QmpCommands,
    cause: JoinHandle<Option<ShutdownCause>>,
    socket: GuestSocket,
    /// When its first instruction ran.
    pub started: Instant,
}

/// How a guest ended by itself.
#[derive(Debug, Default)]
pub struct End {
    /// From QMP.
    pub cause: Option<ShutdownCause>,
    /// How QEMU or the backend exited.
    pub exit: Option<String>,
}

impl Guest {
    /// Starts QEMU with these arguments and lets the machine run.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(
        spawner: &Spawner,
        program: &Path,
        argv: Vec<std::ffi::OsString>,
        files: &RunFiles,
        socket: GuestSocket,
        backend: Option<Backend>,
    ) -> Result<Self, StartError> {
        let qmp_socket = files.qmp();
        for path in [qmp_socket.clone(), files.console()] {
            remove_stale(&path).map_err(|source| StartError::File { path, source })?;
        }
        let mut command = Command::new(program);
        command.args(argv);
        let log = files.qemu_log();
        let mut qemu = spawn(spawner, program, command, &log).await?;
        wait_for_socket(program, &mut qemu, &qmp_socket, &log).await?;
        let connected = qmp::connect_and_start(&qmp_socket).await;
        let started = Instant::now();
        let (commands, mut events) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                return Err(match timeout(Duration::from_secs(1), qemu.wait()).await {
                    Ok(Ok(status)) => ended(program, status, &log),
                    _ => StartError::Silent {
                        program: program.to_owned(),
                        log: format!("{error}; {}", tail(&log)),
                    },
                });
            }
        };
        let cause = tokio::spawn(async move { events.shutdown().await });
        Ok(Self {
            qemu,
            backend,
            commands,
            cause,
            socket,
            started,
        })
    }

    /// How it is reached.
    pub fn socket(&self) -> &GuestSocket {
        &self.socket
    }

    /// Waits until the guest ends by itself. Can be dropped and called again.
    pub async fn ended(&mut self) -> End {
        let backend = async {
            match &mut self.backend {
                Some(Backend(child)) => child.wait().await,
                None => std::future::pending().await,
            }
        };
        let describe = |status: io::Result<ExitStatus>| match status {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let exit = tokio::select! {
            status = self.qemu.wait() => describe(status),
            status = backend => format!("the vsock backend ended: {}", describe(status)),
        };
        let cause = match timeout(Duration::from_secs(1), &mut self.cause).await {
            Ok(Ok(cause)) => cause,
            _ => None,
        };
        End {
            cause,
            exit: Some(exit),
        }
    }

    /// Stops the guest: it is asked and given `grace` for running requests, then QEMU is told to quit, then
    /// killed. Without a grace the guest is not asked. Returns in which of these ways it went, in words.
    pub async fn stop(mut self, grace: Option<Duration>) -> &'static str {
        let how = self.stop_qemu(grace).await;
        if let Some(Backend(mut child)) = self.backend {
            let _ = wait_or_kill(&mut child, Duration::from_millis(500)).await;
        }
        how
    }

    async fn stop_qemu(&mut self, grace: Option<Duration>) -> &'static str {
        if let Ok(Some(_)) = self.qemu.try_wait() {
            return "the guest had ended";
        }
        if let Some(grace) = grace
            && self.powers_off(grace).await
        {
            return "the guest powered itself off";
        }
        if self.commands.quit().await.is_ok()
            && let Ok(Ok(_)) = timeout(QUIT_LIMIT, self.qemu.wait()).await
        {
            return "QEMU was told to quit";
        }
        let _ = self.qemu.kill().await;
        "QEMU was killed"
    }

    async fn powers_off(&mut self, grace: Duration) -> bool {
        let order = self.order_shutdown(grace);
        match timeout(ORDER_LIMIT, order).await {
            Ok(Ok(())) => {
                if let Ok(Ok(_)) = timeout(grace + POWER_OFF_LIMIT, self.qemu.wait()).await {
                    return true;
                }
                tracing::warn!("the guest took the order to shut down and did not power off in time");
            }
            Ok(Err(error)) => tracing::warn!(%error, "the guest does not take the order to shut down"),
            Err(_) => tracing::warn!("the guest does not take the order to shut down in time"),
        }
        false
    }

    async fn order_shutdown(&self, grace: Duration) -> anyhow::Result<()> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let mut stream = self.socket.connect(GUEST_CONTROL_PORT).await?;
        write_frame_async(&mut stream, &ToGuest::Shutdown { grace_ms }).await?;
        let FromGuest::Ok = read_frame_async(&mut stream).await?;
        Ok(())
    }
}

async fn spawn(
    spawner: &Spawner,
    program: &Path,
    mut command: Command,
    log: &Path,
) -> Result<Child, StartError> {
    let file = File::create(log).map_err(|source| StartError::File {
        path: log.to_owned(),
        source,
    })?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
    let spawned = spawner.spawn(command).await;
    spawned.map_err(|source| StartError::Spawn {
        program: program.to_owned(),
        source,
    })
}

async fn wait_for_socket(
    program: &Path,
    child: &mut Child,
    socket: &Path,
    log: &Path,
) -> Result<(), StartError> {
    let deadline = Instant::now() + SOCKET_LIMIT;
    while !socket.exists() {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(ended(program, status, log));
        }
        if Instant::now() >= deadline {
            return Err(StartError::Silent {
                program: program.to_owned(),
                log: tail(log),
            });
        }
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

fn ended(program: &Path, status: ExitStatus, log: &Path) -> StartError {
    StartError::Ended {
        program: program.to_owned(),
        status,
        log: tail(log),
    }
}

/// The end of a log, as text.
pub fn tail(path: &Path) -> String {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let read = || {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = vec![];
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        io::Result::Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn script(dir: &Path, body: &str) -> PathBuf {
        let path = dir.join("program");
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn files(dir: &Path) -> (RunFiles, GuestSocket) {
        let files = RunFiles::create(dir).unwrap();
        let base = files.guest();
        (files, GuestSocket::Backend { base })
    }

    #[tokio::test]
    async fn a_qemu_that_ends_at_once_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let (files, socket) = files(dir.path());
        let program = script(dir.path(), "echo 'could not load kernel' >&2; exit 1");
        let spawner = Spawner::start().unwrap();
        let error = Guest::start(&spawner, &program, vec![], &files, socket, None)
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("could not load kernel") && text.contains("exit status: 1"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_backend_that_ends_at_once_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let (files, _) = files(dir.path());
        let program = script(dir.path(), "echo 'address in use' >&2; exit 2");
        let spawner = Spawner::start().unwrap();
        let error = Backend::start(&spawner, &program, &files).await.unwrap_err();
        assert!(error.to_string().contains("address in use"));
    }

    #[test]
    fn only_the_end_of_a_long_log_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "a".repeat(100_000) + "end\n").unwrap();
        let text = tail(&path);
        assert!(text.ends_with("aend") && text.len() < 20_000);
        assert_eq!(tail(&dir.path().join("none")), "");
    }
}
