//! The supervisor: brings a node up, keeps it, and takes it down in order, whatever happened.

mod control;
mod open;
mod shared;

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use cocoon_protocol::{
    host::{GUEST_TLS_PORT, HOST_PORT},
    simulated::PLATFORM_PORT,
};
use cocoon_settlement::{ChainClient, LocalChainHandle, deposit_code};
use cocoon_simulator::SimulatedTd;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until, timeout},
};

use self::{
    control::{listen_for_control, serve_control},
    open::{backend_program, bind, check_artifacts, listen, open_chain, start_platform},
    shared::{Now, Shared, launch_document_path},
};
pub use self::{open::simulated_platform, shared::journal_path};
use crate::{
    boot::{self, BootProgress, Evidence},
    child::Spawner,
    config::Config,
    exit::{Exit, Failure, OrExit as _},
    guest::{Backend, End, Guest, RunFiles, tail},
    guest_socket::GuestSocket,
    platform, programs,
    progress::Reporter,
    qemu::{Accelerator, Machine, Sockets, accelerator, kvm_works, open_kvm},
    relay::{RelayLimits, relay},
    services::{BootEvent, Services, Terms},
    settler::Settler,
    state_dir::{StateDir, write_atomically},
    status::{NodeState, control_socket},
};

/// How long running requests may still take when the node is stopped.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// How long the last settlements may take when the node is stopped; what is left waits in the journal.
const FLUSH_LIMIT: Duration = Duration::from_secs(60);

/// Runs a node until it is told to stop or its guest ends. Returns once nothing of it is left.
///
/// # Errors
/// Each with the code that the process exits with.
pub async fn run(config: Config, reporter: &Reporter) -> Result<(), Failure> {
    let mut signals = Signals::new().or_exit(Exit::Internal)?;
    let state_dir = StateDir::take_over(&config.state_dir)
        .await
        .map_err(|error| Failure {
            exit: match error {
                crate::state_dir::StateDirError::Busy { .. } => Exit::Busy,
                crate::state_dir::StateDirError::Io { .. } => Exit::Internal,
            },
            error: error.into(),
        })?;
    let checked = check_artifacts(&config, reporter);
    let node = Node::prepare(config, reporter, state_dir).await?;
    let outcome = node.supervise(reporter, &mut signals, checked).await;
    node.finish(outcome, reporter, &mut signals).await
}

/// Everything of a node but its guest.
struct Node {
    shared: Arc<Shared>,
    services: Arc<Services<ChainClient>>,
    boot_events: tokio::sync::Mutex<mpsc::Receiver<BootEvent>>,
    stop_requests: tokio::sync::Mutex<mpsc::Receiver<oneshot::Sender<Option<String>>>>,
    listener: Mutex<Option<TcpListener>>,
    td: Mutex<Option<SimulatedTd>>,
    local_chain: Option<LocalChainHandle>,
    files: RunFiles,
    qemu: PathBuf,
    backend: Option<PathBuf>,
    spawner: Spawner,
    /// Control socket and settler.
    tasks: JoinSet<()>,
    _state_dir: StateDir,
}

/// Why supervision ended.
enum Stop {
    /// Ctrl-C or SIGTERM.
    Signal,
    /// `cocoon-launch down`; told once everything is stopped.
    Down(oneshot::Sender<Option<String>>),
}

/// How supervision ended: with a running guest to be stopped, or with a failure.
enum Outcome {
    Asked(Stop, Option<Guest>),
    Failed(Failure, Option<Guest>),
}

impl Node {
    async fn prepare(config: Config, reporter: &Reporter, state_dir: StateDir) -> Result<Self, Failure> {
        let qemu = programs::qemu(config.qemu.as_deref()).or_exit(Exit::Missing)?;
        let backend = backend_program(&config)?;
        let spawner = Spawner::start().or_exit(Exit::Internal)?;
        let files = RunFiles::create(state_dir.path())
            .context("making the folder for sockets")
            .or_exit(Exit::Internal)?;
        let listener = bind(config.listen).await?;
        let address = listener.local_addr().or_exit(Exit::Internal)?;

        let document = config.launch_document(deposit_code()).or_exit(Exit::Usage)?;
        write_atomically(&launch_document_path(state_dir.path()), &document)
            .context("writing the launch document")
            .or_exit(Exit::Internal)?;
        let (td, endorsements) = start_platform(&config, state_dir.path(), reporter)?;
        let (chain, ton_config, local_chain) = open_chain(&config, state_dir.path()).await?;
        reporter.step(format!("chain: {}", ton_config.display()));

        let delay = Duration::from_secs(config.settle_delay_s.into());
        let settler = Settler::new(config.prices, delay);
        let (journal, torn_bytes) = settler
            .take_up(&journal_path(state_dir.path()))
            .or_exit(Exit::Internal)?;
        if torn_bytes > 0 {
            reporter.warn(format!(
                "the journal's last entry was torn by a crash before it was acknowledged; {torn_bytes} bytes were cut"
            ));
        }
        reporter.step(format!("journal: {} usage records", settler.claims().0));

        let journal = Arc::new(Mutex::new(journal));
        let (boot_sender, boot_events) = mpsc::channel(16);
        let (stop_sender, stop_requests) = mpsc::channel(4);
        let terms = Terms {
            network: config.network.id(),
            payout_address: config.payout_address,
            prices: config.prices,
        };
        let shared = Arc::new(Shared {
            url: format!("https://{address}"),
            chain: chain.clone(),
            ton_config,
            settler: settler.clone(),
            relayed: Arc::default(),
            now: Mutex::new(Now {
                state: NodeState::Booting,
                accelerator: "",
                boot: BootProgress::new(config.deadlines),
            }),
            config,
        });
        let services = Arc::new(Services {
            document,
            endorsements,
            boot: boot_sender,
            journal: journal.clone(),
            settler: settler.clone(),
            chain: chain.clone(),
            terms,
            granted: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        let control = listen_for_control(state_dir.path()).or_exit(Exit::Internal)?;
        tasks.spawn(serve_control(control, shared.clone(), stop_sender));
        tasks.spawn(async move { settler.run(chain, journal).await });
        Ok(Self {
            shared,
            services,
            boot_events: tokio::sync::Mutex::new(boot_events),
            stop_requests: tokio::sync::Mutex::new(stop_requests),
            listener: Mutex::new(Some(listener)),
            td: Mutex::new(td),
            local_chain,
            files,
            qemu,
            backend,
            spawner,
            tasks,
            _state_dir: state_dir,
        })
    }

    /// Boots, serves, and returns when asked to stop or when something failed.
    async fn supervise(
        &self,
        reporter: &Reporter,
        signals: &mut Signals,
        checked: JoinHandle<()>,
    ) -> Outcome {
        let guest = tokio::select! {
            started = self.start_guest(reporter) => started,
            stop = self.asked_to_stop(signals) => return Outcome::Asked(stop, None),
        };
        let (mut guest, _host_side) = match guest {
            Ok(started) => started,
            Err(failure) => return Outcome::Failed(failure, None),
        };
        let booted = tokio::select! {
            booted = self.boot(&mut guest, reporter) => booted,
            stop = self.asked_to_stop(signals) => return self.stop_guest(stop, guest, reporter).await,
        };
        if let Err(failure) = booted {
            return Outcome::Failed(failure, Some(guest));
        }
        let relaying = self.start_relay(&guest);
        let _ = checked.await;
        self.shared.now().state = NodeState::Serving;
        reporter.serving(self.shared.url.clone());
        let outcome = tokio::select! {
            end = guest.ended() => Err(self.died(end)),
            stop = self.asked_to_stop(signals) => Ok(stop),
        };
        let outcome = match outcome {
            Ok(stop) => self.stop_guest(stop, guest, reporter).await,
            Err(failure) => Outcome::Failed(failure, Some(guest)),
        };
        relaying.abort();
        outcome
    }

    async fn asked_to_stop(&self, signals: &mut Signals) -> Stop {
        let mut requests = self.stop_requests.lock().await;
        tokio::select! {
            () = signals.next() => Stop::Signal,
            Some(reply) = requests.recv() => Stop::Down(reply),
        }
    }

    /// Starts backend, host services and QEMU, in this order: the guest calls as soon as it can.
    async fn start_guest(&self, reporter: &Reporter) -> Result<(Guest, JoinSet<()>), Failure> {
        let config = &self.shared.config;
        let accelerator = self.choose_accelerator(reporter).await?;
        self.shared.now().accelerator = accelerator.name();
        let (socket, backend) = match &self.backend {
            Some(program) => {
                let started = Backend::start(&self.spawner, program, &self.files).await;
                let base = self.files.guest();
                (
                    GuestSocket::Backend { base },
                    Some(started.or_exit(Exit::Internal)?),
                )
            }
            // Unique on this host: the process id of the only supervisor of this guest, above the reserved ones.
            None => (
                GuestSocket::Kernel {
                    cid: 1_000 + std::process::id(),
                },
                None,
            ),
        };
        let mut host_side = JoinSet::new();
        host_side.spawn(self.services.clone().serve(listen(&socket, HOST_PORT)?));
        let td = self.td.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(td) = td {
            host_side.spawn(platform::play(td, listen(&socket, PLATFORM_PORT)?));
        }
        let machine = Machine {
            spec: &config.spec,
            accelerator,
            firmware: &config.firmware(),
            kernel: &config.kernel(),
            command_line: &config.manifest.command_line,
            root: &config.root(),
            model: &config.model_image,
            console: &self.files.console(),
            sockets: Sockets {
                qmp: &self.files.qmp(),
                vhost_user: &self.files.vhost_user(),
                guest: &socket,
            },
        };
        let argv = machine.argv();
        tracing::debug!(?argv, "starting QEMU");
        let started = Guest::start(
            &self.spawner,
            &self.qemu,
            argv,
            &self.files,
            socket.clone(),
            backend,
        )
        .await;
        let guest = started.context("booting the guest").or_exit(Exit::BootFailed)?;
        reporter.step(format!(
            "QEMU runs ({}, {} vCPUs, {} MiB)",
            accelerator.name(),
            config.spec.vcpus.get(),
            config.spec.memory_mib.get()
        ));
        Ok((guest, host_side))
    }

    async fn choose_accelerator(&self, reporter: &Reporter) -> Result<Accelerator, Failure> {
        let config = &self.shared.config;
        let (firmware, kernel) = (config.firmware(), config.kernel());
        let boots = kvm_works(&self.spawner, &self.qemu, &firmware, &kernel, &config.state_dir);
        let chosen = accelerator(config.spec.platform, open_kvm(), boots).await;
        let accelerator = chosen.map_err(|error| {
            let reason = format!(
                "platform = \"tdx\" needs /dev/kvm on a host with TDX enabled, and it cannot be opened ({error}); on \
                 other machines use platform = \"simulated\" in the LaunchSpec"
            );
            Failure::new(Exit::Missing, reason)
        })?;
        if accelerator == Accelerator::Tcg {
            reporter.step("KVM does not boot this kernel here: QEMU emulates the processor, which is slower");
        }
        Ok(accelerator)
    }

    /// Waits until the guest serves.
    async fn boot(&self, guest: &mut Guest, reporter: &Reporter) -> Result<(), Failure> {
        let mut events = self.boot_events.lock().await;
        let started = guest.started;
        loop {
            let Some((stage, due)) = self.shared.now().boot.awaited() else {
                return Ok(());
            };
            let began = self
                .shared
                .now()
                .boot
                .reached()
                .last()
                .map_or(0, |last| last.elapsed_ms);
            tokio::select! {
                biased;
                Some(event) = events.recv() => self.note(event, started, reporter)?,
                end = guest.ended() => {
                    // The agent's own words may have arrived with the end.
                    while let Ok(event) = events.try_recv() {
                        self.note(event, started, reporter)?;
                    }
                    return Err(self.boot_failed(Evidence { cause: end.cause, qemu_exit: end.exit, ..Evidence::default() }));
                }
                () = sleep_until(started + due) => {
                    let allowed = due.saturating_sub(Duration::from_millis(began));
                    return Err(self.boot_failed(Evidence { overdue: Some((stage, allowed)), ..Evidence::default() }));
                }
            }
        }
    }

    fn note(&self, event: BootEvent, started: Instant, reporter: &Reporter) -> Result<(), Failure> {
        match event {
            BootEvent::Failed { reason } => Err(self.boot_failed(Evidence {
                boot_failed: Some(reason),
                ..Evidence::default()
            })),
            BootEvent::Stage { stage, uptime_ms } => {
                if self.shared.now().boot.note(stage, started.elapsed(), uptime_ms) {
                    reporter.step(format!(
                        "guest: {} ({:.2} s after its kernel started)",
                        boot::name(stage),
                        Duration::from_millis(uptime_ms).as_secs_f64()
                    ));
                }
                Ok(())
            }
        }
    }

    fn boot_failed(&self, evidence: Evidence) -> Failure {
        let evidence = Evidence {
            qemu_stderr: tail(&self.files.qemu_log()),
            console: tail(&self.files.console()),
            ..evidence
        };
        Failure::new(Exit::BootFailed, format!("the guest did not come up: {evidence}"))
    }

    fn died(&self, end: End) -> Failure {
        let evidence = Evidence {
            cause: end.cause,
            qemu_exit: end.exit,
            qemu_stderr: tail(&self.files.qemu_log()),
            console: tail(&self.files.console()),
            ..Evidence::default()
        };
        Failure::new(
            Exit::GuestDied,
            format!(
                "the guest ended without being asked to: {evidence}\nstart it again with: cocoon-launch up"
            ),
        )
    }

    fn start_relay(&self, guest: &Guest) -> JoinHandle<()> {
        let listener = self
            .listener
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let (socket, counters) = (guest.socket().clone(), self.shared.relayed.clone());
        tokio::spawn(async move {
            if let Some(listener) = listener {
                relay(listener, socket, GUEST_TLS_PORT, RelayLimits::default(), counters).await;
            }
        })
    }

    /// Stops a guest while relay and host services still run, so that running requests end well.
    async fn stop_guest(&self, stop: Stop, guest: Guest, reporter: &Reporter) -> Outcome {
        self.shared.now().state = NodeState::Stopping;
        let agent_is_up = self.shared.now().boot.is_agent_up();
        let how = guest.stop(agent_is_up.then_some(SHUTDOWN_GRACE)).await;
        reporter.step(how);
        Outcome::Asked(stop, None)
    }

    async fn finish(
        mut self,
        outcome: Outcome,
        reporter: &Reporter,
        signals: &mut Signals,
    ) -> Result<(), Failure> {
        self.shared.now().state = NodeState::Stopping;
        let (guest, result, reply) = match outcome {
            Outcome::Asked(Stop::Signal, guest) => (guest, Ok(()), None),
            Outcome::Asked(Stop::Down(reply), guest) => (guest, Ok(()), Some(reply)),
            Outcome::Failed(failure, guest) => (guest, Err(failure), None),
        };
        let orderly = async {
            if let Some(guest) = guest {
                guest.stop(None).await;
            }
            self.shared.settler.flush(FLUSH_LIMIT).await;
        };
        tokio::select! {
            () = orderly => {}
            () = signals.next() => tracing::warn!("stopping at once; what is not settled waits in the journal"),
        }
        if let Some(chain) = self.local_chain.take() {
            chain.shutdown().await;
        }
        let _ = std::fs::remove_file(control_socket(&self.shared.config.state_dir));
        self.files.remove_sockets();
        let unsettled = self.shared.settler.unsettled();
        if let Some(unsettled) = &unsettled {
            reporter.warn(unsettled);
        }
        reporter.step("stopped");
        if let Some(reply) = reply {
            let _ = reply.send(unsettled);
            // The answer is on its way through the control task.
            while timeout(Duration::from_secs(1), self.tasks.join_next())
                .await
                .is_ok_and(|joined| joined.is_some())
            {}
        }
        self.tasks.shutdown().await;
        result
    }
}

/// Ctrl-C and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
