//! The supervisor: brings a node up, keeps it, and takes it down in order, whatever happened.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use anyhow::Context as _;
use cocoon_measurements::{Artifact, LaunchInputs, LaunchPlatform, measure};
use cocoon_protocol::{
    host::{GUEST_TLS_PORT, HOST_PORT},
    read_frame_async,
    simulated::PLATFORM_PORT,
    write_frame_async,
};
use cocoon_settlement::{ChainClient, GlobalConfig, LocalChain, LocalChainHandle, deposit_code};
use cocoon_simulator::{InitialRegisters, SimulatedPlatform, SimulatedTd};
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    boot::{self, BootProgress, Evidence},
    child::Spawner,
    config::{ChainChoice, Config, VsockChoice},
    exit::{Exit, Failure, OrExit as _},
    guest::{Backend, End, Guest, RunFiles, tail},
    guest_socket::{GuestSocket, remove_stale},
    journal::Journal,
    platform, programs,
    progress::Reporter,
    qemu::{Accelerator, Machine, Sockets, kvm_works},
    relay::{RelayCounters, RelayLimits, relay},
    services::{BootEvent, Services, Terms, now_s},
    settler::{Settler, totals},
    state_dir::{StateDir, write_atomically},
    status::{
        CLAIMS_MAX, Connections, FromSupervisor, NodeState, Provider, Status, ToSupervisor, Usage,
        control_socket,
    },
};

/// How long running requests may still take when the node is stopped.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// How long the last settlements may take when the node is stopped; what is left waits in the journal.
const FLUSH_LIMIT: Duration = Duration::from_secs(20);

/// The chain tells a balance within this, or `status` goes without.
const BALANCE_LIMIT: Duration = Duration::from_secs(5);

/// People and scripts that ask at the same time.
const CONTROL_CONNECTIONS_MAX: usize = 32;

/// The simulated platform of a state directory; the one that `root` prints and `up` uses.
///
/// # Errors
/// The directory cannot be written.
pub fn simulated_platform(state_dir: &Path) -> Result<SimulatedPlatform, Failure> {
    StateDir::create(state_dir).or_exit(Exit::Internal)?;
    let opened = SimulatedPlatform::open_or_create(&state_dir.join("simulated-platform"), now_s());
    let platform = opened.or_exit(Exit::Internal)?;
    write_atomically(&simulated_root(state_dir), platform.root_pem().as_bytes())
        .context("writing the simulated platform's root certificate")
        .or_exit(Exit::Internal)?;
    Ok(platform)
}

fn simulated_root(state_dir: &Path) -> PathBuf {
    state_dir.join("simulated-root.pem")
}

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
    stop_requests: tokio::sync::Mutex<mpsc::Receiver<oneshot::Sender<String>>>,
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

/// What `status` tells from.
struct Shared {
    config: Config,
    url: String,
    chain: ChainClient,
    ton_config: PathBuf,
    settler: Settler,
    relayed: Arc<RelayCounters>,
    now: Mutex<Now>,
}

struct Now {
    state: NodeState,
    accelerator: &'static str,
    boot: BootProgress,
}

/// Why supervision ended.
enum Stop {
    /// Ctrl-C or SIGTERM.
    Signal,
    /// `cocoon-launch down`; told once everything is stopped.
    Down(oneshot::Sender<String>),
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

        let (journal, replay) = Journal::open(&journal_path(state_dir.path())).or_exit(Exit::Internal)?;
        let delay = Duration::from_secs(config.settle_delay_s.into());
        let settler = Settler::new(config.prices, delay);
        replay.records.iter().for_each(|record| settler.note(record));
        if replay.torn_bytes > 0 {
            reporter.warn(format!(
                "the journal's last entry was torn by a crash before it was acknowledged; {} bytes were cut",
                replay.torn_bytes
            ));
        }
        reporter.step(format!("journal: {} usage records", replay.records.len()));

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
            journal: Arc::new(Mutex::new(journal)),
            settler: settler.clone(),
            chain: chain.clone(),
            terms,
            credits: Mutex::new(HashMap::new()),
        });
        let mut tasks = JoinSet::new();
        let control = listen_for_control(state_dir.path()).or_exit(Exit::Internal)?;
        tasks.spawn(serve_control(control, shared.clone(), stop_sender));
        tasks.spawn(async move { settler.run(chain).await });
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
        let usable = kvm_works(
            &self.spawner,
            &self.qemu,
            &config.firmware(),
            &config.kernel(),
            &config.state_dir,
        )
        .await;
        match (config.spec.platform, usable) {
            (_, true) => Ok(Accelerator::Kvm),
            (LaunchPlatform::Simulated, false) => {
                reporter
                    .step("KVM does not boot this kernel here: QEMU emulates the processor, which is slower");
                Ok(Accelerator::Tcg)
            }
            (LaunchPlatform::Tdx | LaunchPlatform::Snp, false) => Err(Failure::new(
                Exit::Missing,
                "platform = \"tdx\" needs /dev/kvm on a host with TDX enabled; on other machines use platform = \
                 \"simulated\" in the LaunchSpec",
            )),
        }
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
        reporter.step("stopped");
        if let Some(reply) = reply {
            let _ = reply.send("stopped".into());
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

impl Shared {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn status(&self) -> Status {
        let provider = self.provider().await;
        let (records, mut claims) = self.settler.claims();
        let (served_nano, settled_nano) = totals(&claims);
        claims.sort_by_key(|claim| claim.settlement.is_final());
        claims.truncate(CLAIMS_MAX);
        let simulated = self.config.spec.platform == LaunchPlatform::Simulated;
        let state_dir = &self.config.state_dir;
        let now = self.now();
        Status {
            state: now.state,
            pid: std::process::id(),
            url: self.url.clone(),
            platform: if simulated { "simulated" } else { "tdx" }.into(),
            accelerator: now.accelerator.into(),
            simulated_root: simulated.then(|| simulated_root(state_dir)),
            ton_config: self.ton_config.clone(),
            launch_document: launch_document_path(state_dir),
            console: state_dir.join("console.log"),
            stages: now.boot.reached().to_vec(),
            connections: Connections {
                open: self.relayed.open.load(Ordering::Relaxed),
                total: self.relayed.total.load(Ordering::Relaxed),
            },
            usage: Usage {
                records,
                served_nano,
                settled_nano,
                claims,
            },
            provider,
        }
    }

    async fn provider(&self) -> Provider {
        let payout_address = self.config.payout_address;
        let (balance_nano, error) = match timeout(BALANCE_LIMIT, self.chain.balance(&payout_address)).await {
            Ok(Ok(nano)) => (Some(nano), None),
            Ok(Err(error)) => (None, Some(format!("{:#}", anyhow::Error::from(error)))),
            Err(_) => (None, Some("the chain does not answer in time".into())),
        };
        Provider {
            payout_address,
            balance_nano,
            error,
        }
    }
}

/// Where usage records are kept.
pub fn journal_path(state_dir: &Path) -> PathBuf {
    state_dir.join("journal")
}

fn launch_document_path(state_dir: &Path) -> PathBuf {
    state_dir.join("launch-document.json")
}

/// Compares the image with its manifest beside the boot. Nothing depends on the answer: clients refuse what a
/// changed kernel, command line or firmware measures to, and dm-verity refuses a changed root.
fn check_artifacts(config: &Config, reporter: &Reporter) -> JoinHandle<()> {
    let paths = [config.firmware(), config.kernel(), config.root()];
    let (artifacts, reporter) = (config.manifest.artifacts.clone(), reporter.clone());
    tokio::task::spawn_blocking(move || {
        let check = |((name, artifact), path): ((&'static str, &Artifact), PathBuf)| {
            if let Err(error) = artifact.verify(name, &path) {
                reporter.warn(format!(
                    "{error}. The guest is booted as it is: clients will refuse it"
                ));
            }
        };
        artifacts.named().into_iter().zip(paths).for_each(check);
    })
}

fn backend_program(config: &Config) -> Result<Option<PathBuf>, Failure> {
    let kernel = match config.vsock {
        VsockChoice::Kernel => true,
        VsockChoice::Backend => false,
        VsockChoice::Auto => Path::new("/dev/vhost-vsock").exists(),
    };
    if kernel {
        return Ok(None);
    }
    programs::vsock_backend(config.vhost_device_vsock.as_deref())
        .map(Some)
        .or_exit(Exit::Missing)
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => "another program has this address: stop it, or choose another one",
            io::ErrorKind::PermissionDenied => "ports below 1024 need root: choose a higher one",
            _ => "choose an address of this machine",
        };
        let message = format!("cannot listen on [listen] address {address}: {error}; {remedy}");
        Failure::new(Exit::Busy, message)
    })
}

fn listen(socket: &GuestSocket, port: u32) -> Result<crate::guest_socket::GuestListener, Failure> {
    socket.listen(port).map_err(|error| {
        let message = match error.kind() {
            io::ErrorKind::AddrInUse => format!(
                "vsock port {port} of this host is taken, probably by another node; set [tools] vsock = \
                 \"backend\" in node.toml for all but one of them"
            ),
            _ => format!("cannot listen on vsock port {port}: {error}"),
        };
        Failure::new(Exit::Busy, message)
    })
}

type Endorsements = Box<dyn Fn() -> Result<Vec<u8>, String> + Send + Sync>;

/// On a simulated platform, a TD whose registers come from the very bytes that QEMU is given.
fn start_platform(
    config: &Config,
    state_dir: &Path,
    reporter: &Reporter,
) -> Result<(Option<SimulatedTd>, Endorsements), Failure> {
    if config.spec.platform != LaunchPlatform::Simulated {
        reporter.warn(
            "platform = \"tdx\": this version was never run on TDX hardware and passes no endorsements on, so \
             clients cannot verify this node",
        );
        return Ok((None, Box::new(|| Ok(vec![]))));
    }
    let read = |path: PathBuf| {
        std::fs::read(&path)
            .with_context(|| format!("reading {}", path.display()))
            .or_exit(Exit::Usage)
    };
    let (firmware, kernel) = (read(config.firmware())?, read(config.kernel())?);
    let prediction = measure(LaunchInputs {
        firmware: &firmware,
        kernel: &kernel,
        initrd: None,
        command_line: &config.manifest.command_line,
        spec: &config.spec,
        tables: None,
        smbios: None,
    })
    .context("measuring what QEMU is given")
    .or_exit(Exit::Usage)?;
    let [mrtd, rtmr0, rtmr1, rtmr2] = prediction
        .sole_values()
        .expect("a simulated platform's registers have one value each");
    let platform = simulated_platform(state_dir)?;
    let td = platform.start_td(InitialRegisters {
        mrtd,
        rtmr0,
        rtmr1,
        rtmr2,
    });
    reporter.step("SIMULATED platform: registers from the bytes that QEMU is given");
    let endorsements = move || {
        platform
            .collateral(now_s())
            .map(|collateral| cocoon_evidence::Endorsements::of_tdx(collateral).encode())
            .map_err(|error| format!("{:#}", anyhow::Error::from(error)))
    };
    Ok((Some(td), Box::new(endorsements)))
}

async fn open_chain(
    config: &Config,
    state_dir: &Path,
) -> Result<(ChainClient, PathBuf, Option<LocalChainHandle>), Failure> {
    let (global_config, path, local) = match &config.chain {
        ChainChoice::Local { address } => {
            let chain = LocalChain::open(state_dir.join("chain"))
                .context("opening the local chain")
                .or_exit(Exit::Chain)?;
            let handle = chain
                .serve(*address)
                .await
                .with_context(|| format!("serving the local chain on {address}"))
                .or_exit(Exit::Chain)?;
            let path = state_dir.join("global.config.json");
            write_atomically(&path, handle.global_config().to_json().as_bytes())
                .context("writing the local chain's global.config.json")
                .or_exit(Exit::Internal)?;
            (handle.global_config().clone(), path, Some(handle))
        }
        ChainChoice::Public { global_config } => {
            let loaded = GlobalConfig::load(global_config).or_exit(Exit::Usage)?;
            (loaded, global_config.clone(), None)
        }
    };
    let client = ChainClient::connect(&global_config, config.network.id())
        .await
        .context("connecting to the chain")
        .or_exit(Exit::Chain)?;
    Ok((client, path, local))
}

fn listen_for_control(state_dir: &Path) -> anyhow::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = control_socket(state_dir);
    let bound = || {
        remove_stale(&path)?;
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        io::Result::Ok(listener)
    };
    bound().with_context(|| format!("listening on {}", path.display()))
}

/// Answers `status` and `down`; ends after the answer to the `down` that stopped the node.
async fn serve_control(
    listener: UnixListener,
    shared: Arc<Shared>,
    stop: mpsc::Sender<oneshot::Sender<String>>,
) {
    let (stopped_sender, mut stopped) = watch::channel(());
    let stopped_sender = Arc::new(stopped_sender);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept(), if connections.len() < CONTROL_CONNECTIONS_MAX => {
                let (shared, stop, told) = (shared.clone(), stop.clone(), stopped_sender.clone());
                connections.spawn(async move {
                    if answer_control(stream, &shared, &stop).await == Answered::Down {
                        told.send_replace(());
                    }
                });
            }
            Some(_) = connections.join_next() => {}
            Ok(()) = stopped.changed() => return,
        }
    }
}

#[derive(PartialEq, Eq)]
enum Answered {
    Status,
    Down,
}

async fn answer_control(
    mut stream: UnixStream,
    shared: &Shared,
    stop: &mpsc::Sender<oneshot::Sender<String>>,
) -> Answered {
    let request = timeout(Duration::from_secs(5), read_frame_async(&mut stream)).await;
    let (answer, answered) = match request {
        Ok(Ok(ToSupervisor::Status)) => (
            FromSupervisor::Status(Box::new(shared.status().await)),
            Answered::Status,
        ),
        Ok(Ok(ToSupervisor::Down)) => {
            let (reply, stopped) = oneshot::channel();
            if stop.send(reply).await.is_err() {
                return Answered::Status;
            }
            // A node that stops for another reason drops the sender: it is stopped all the same.
            let how = stopped.await.unwrap_or_else(|_| "stopped".into());
            (FromSupervisor::Stopped { how }, Answered::Down)
        }
        Ok(Err(_)) | Err(_) => return Answered::Status,
    };
    if let Err(error) = write_frame_async(&mut stream, &answer).await {
        tracing::debug!(%error, "nobody waits for an answer on the control socket");
    }
    answered
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
