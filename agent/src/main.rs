//! Starts as PID 1, never returns: the guest serves, or it powers off.

use std::{io::Write as _, path::Path, sync::Arc, thread, time::Duration};

use cocoon_agent::{
    boot::{self, Disks, Parts},
    console::{Console, EXPORT},
    driver::{self, DriverError},
    engine::Engine,
    guest,
    host::HostClient,
    modules, platform,
    process::{Children, EngineCommand, GpuCommand},
    serve::{self, Deadlines},
    system,
    transport::{Dial, VsockDial, VsockListen},
};
use cocoon_protocol::host::{GUEST_CONTROL_PORT, GUEST_TLS_PORT, Stage, ToHost};
use tokio::signal::unix::{SignalKind, signal};
use tracing::error;

/// How long the host gets to take the reason of a failed boot.
const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(5);

/// As [`Console`] would write it, but ready: the code that formats lines is then not read, nor hashed, before it.
const FIRST_LINE: &str = concat!(
    "cocoon-agent INFO: version ",
    env!("CARGO_PKG_VERSION"),
    " starts\n"
);

const ENGINE: &str = "/usr/bin/cocoon-engine";
/// In images with a GPU driver.
const GPU_PROGRAM: &str = "/usr/bin/cocoon-gpu";
const ENGINE_USER: u32 = 1000;
const LINKER: &str = "/lib64/ld-linux-x86-64.so.2";

/// What the engine reads: its libraries, the model, and how many processors of which kind there are.
const ENGINE_READS: [&str; 5] = [
    "/lib",
    "/usr/lib",
    boot::MODEL_PARENT,
    "/proc/cpuinfo",
    "/sys/devices/system/cpu",
];

/// Memory that the engine leaves to the kernel (64 MiB), to connections ([`serve::CONNECTIONS_MAX`]) and to prompts,
/// which are in memory up to twice: as they came and on their way to the engine.
const RESERVED_BYTES: u64 = (64 << 20) + (92 << 20) + 2 * serve::PROMPT_BYTES_MAX as u64;

/// Connections, and what else is open: children, the host, the platform's files.
const OPEN_FILES: u64 = serve::CONNECTIONS_MAX as u64 + 256;

fn main() {
    if std::process::id() != 1 {
        eprintln!("cocoon-agent is PID 1 of a Cocoon guest; boot one with: cocoon-launch up");
        std::process::exit(2);
    }
    // Whatever fails from here on, the console of a dev image shows that the kernel, the root and the loader did not.
    // A console that cannot be written to is no reason not to start.
    let _ = std::io::stderr().write_all(FIRST_LINE.as_bytes());
    // The message of a panic may hold content; its place cannot.
    std::panic::set_hook(Box::new(|info| {
        eprintln!("cocoon-agent: panic at {:?}", info.location());
        system::power_off();
    }));
    if let Err(error) = system::forbid_dumps() {
        eprintln!("cocoon-agent: forbidding core dumps: {error}");
        system::power_off();
    }
    let _ = tracing::subscriber::set_global_default(Console);
    let mounted = system::mount_all();
    system::limit_read_ahead(Path::new("/sys/block"));
    if let Err(error) = system::run(live(mounted)) {
        error!(target: EXPORT, "no event loop: {error}");
    }
    system::power_off();
}

async fn live(mounted: Result<(), system::MountError>) {
    let dial: Arc<dyn Dial> = Arc::new(VsockDial);
    let host = Arc::new(HostClient::new(Arc::clone(&dial)));
    if let Err(reason) = serve(mounted, dial, Arc::clone(&host)).await {
        error!(target: EXPORT, "{reason}");
        let last_words = ToHost::BootFailed { reason };
        // If the host does not listen, QEMU's end is all it learns.
        let _ = host.tell(&last_words, LAST_WORDS_DEADLINE).await;
    }
}

async fn serve(
    mounted: Result<(), system::MountError>,
    dial: Arc<dyn Dial>,
    host: Arc<HostClient>,
) -> Result<(), String> {
    mounted.map_err(|error| format!("{error}: {}", error.cause()))?;
    // Before anything that takes its time: drivers, and the engine's libraries.
    boot::tell_stage(&host, Stage::Agent, Duration::ZERO).await;
    start_driver().map_err(|error| error.to_string())?;
    modules::lock(Path::new(modules::SWITCH)).map_err(|error| error.to_string())?;
    system::allow_open_files(OPEN_FILES)
        .map_err(|error| format!("allowing {OPEN_FILES} open files: {error}"))?;
    // Before the engine starts, which is granted what is below.
    system::make_mount_point(boot::MODEL_DIR.as_ref())
        .map_err(|error| format!("making {}: {error}", boot::MODEL_DIR))?;
    let children = Children::default();
    reap_on_signal(children.clone())?;
    let engine = Engine::start(Arc::new(EngineCommand {
        program: ENGINE.into(),
        arguments: vec![],
        user: ENGINE_USER,
        threads: thread::available_parallelism().map_or(1, usize::from),
        console: cfg!(feature = "simulated"),
        readable: ENGINE_READS.map(Into::into).into(),
        linkers: vec![LINKER.into()],
        memory_bytes_max: system::memory_bytes().saturating_sub(RESERVED_BYTES),
        children: children.clone(),
    }));
    let platform = platform::detect(Path::new("/sys"), Path::new("/dev"), Arc::clone(&dial))
        .map_err(|error| error.to_string())?;
    let volumes = Arc::new(Disks {
        sys_block: "/sys/block".into(),
    });
    let gpus = Arc::new(GpuCommand {
        program: GPU_PROGRAM.into(),
        console: cfg!(feature = "simulated"),
        children: children.clone(),
    });
    let parts = Parts {
        host,
        platform,
        volumes,
        gpus,
        engine,
    };
    let guest = boot::boot(parts).await.map_err(|error| error.to_string())?;
    let listen =
        |port| VsockListen::bind(port).map_err(|error| format!("listening on vsock port {port}: {error}"));
    let https = Box::new(listen(GUEST_TLS_PORT)?);
    let mut control = listen(GUEST_CONTROL_PORT)?;
    #[cfg(feature = "simulated")]
    tokio::spawn(cocoon_agent::danger::inject_faults(
        listen(cocoon_protocol::simulated::FAULT_PORT)?,
        guest.engine.clone(),
        children,
    ));
    #[cfg(feature = "simulated")]
    tokio::spawn(cocoon_agent::firmware_log::tell(listen(
        cocoon_protocol::simulated::FIRMWARE_LOG_PORT,
    )?));
    guest::run(guest, dial, https, &mut control, Deadlines::default())
        .await
        .map_err(|error| error.to_string())
}

/// In images for GPUs.
fn start_driver() -> Result<(), DriverError> {
    if driver::load(Path::new(driver::FOLDER), driver::insert)? {
        driver::make_files(&driver::devices(Path::new("/proc"))?, Path::new("/dev"))?;
    }
    Ok(())
}

/// As PID 1 this process collects every ended process of the guest.
fn reap_on_signal(children: Children) -> Result<(), String> {
    let mut ended =
        signal(SignalKind::child()).map_err(|error| format!("registering for ended children: {error}"))?;
    tokio::spawn(async move {
        while ended.recv().await.is_some() {
            children.reap();
        }
    });
    Ok(())
}
