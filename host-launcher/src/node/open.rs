//! What a node opens before its guest starts: platform, chain, addresses and programs.

use std::{
    fs::File,
    io::{self, Read as _},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use cocoon_evidence::{ENDORSEMENTS_BYTES_MAX, Endorsements};
use cocoon_measurements::{Artifact, LaunchInputs, LaunchPlatform, Manifest, measure};
use cocoon_settlement::{ChainClient, GlobalConfig, LocalChain, LocalChainHandle};
use cocoon_simulator::{InitialRegisters, SimulatedPlatform, SimulatedTd};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    config::{ChainChoice, Config, VsockChoice},
    exit::{Exit, Failure, OrExit as _},
    guest_socket::{GuestListener, GuestSocket},
    programs,
    progress::Reporter,
    services::now_s,
    state_dir::{StateDir, write_atomically},
};

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

pub(super) fn simulated_root(state_dir: &Path) -> PathBuf {
    state_dir.join("simulated-root.pem")
}

/// Compares the image with its manifest beside the boot. Nothing depends on the answer: clients refuse what a
/// changed kernel, command line or firmware measures to, and dm-verity refuses a changed root.
pub(super) fn check_artifacts(config: &Config, reporter: &Reporter) -> JoinHandle<()> {
    let (artifacts, manifest) = (config.manifest.artifacts.clone(), config.manifest_path.clone());
    let reporter = reporter.clone();
    tokio::task::spawn_blocking(move || {
        let check = |(name, artifact): (&'static str, &Artifact)| {
            if let Err(error) = artifact.verify(name, &Manifest::artifact_path(&manifest, artifact)) {
                reporter.warn(format!(
                    "{error}. The guest is booted as it is: clients will refuse it"
                ));
            }
        };
        artifacts.named().for_each(check);
    })
}

pub(super) fn backend_program(config: &Config) -> Result<Option<PathBuf>, Failure> {
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

pub(super) async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
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

pub(super) fn listen(socket: &GuestSocket, port: u32) -> Result<GuestListener, Failure> {
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

pub(super) type EndorsementsSource = Box<dyn Fn() -> Result<Vec<u8>, String> + Send + Sync>;

/// On a simulated platform, a TD whose registers come from the very bytes that QEMU is given.
pub(super) fn start_platform(
    config: &Config,
    state_dir: &Path,
    reporter: &Reporter,
) -> Result<(Option<SimulatedTd>, EndorsementsSource), Failure> {
    if config.spec.platform != LaunchPlatform::Simulated {
        reporter.warn("platform = \"tdx\": this version was never run on TDX hardware");
        return Ok((None, tdx_endorsements(config.tdx_collateral.clone(), reporter)));
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
            .map(|collateral| Endorsements::of_tdx(collateral).encode())
            .map_err(|error| format!("{:#}", anyhow::Error::from(error)))
    };
    Ok((Some(td), Box::new(endorsements)))
}

/// Read whenever the guest asks, so that a newer file needs no restart.
fn tdx_endorsements(collateral: Option<PathBuf>, reporter: &Reporter) -> EndorsementsSource {
    let Some(path) = collateral else {
        reporter.warn(
            "node.toml names no [tdx] collateral: clients cannot verify this node. `cocoon-measure collateral \
             fetch` writes it",
        );
        return Box::new(|| Ok(vec![]));
    };
    Box::new(move || read_collateral(&path))
}

fn read_collateral(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |why: &dyn std::fmt::Display| format!("[tdx] collateral {}: {why}", path.display());
    let mut collateral = vec![];
    File::open(path)
        .and_then(|file| {
            file.take(ENDORSEMENTS_BYTES_MAX as u64)
                .read_to_end(&mut collateral)
        })
        .map_err(|error| failed(&error))?;
    let endorsements = Endorsements::of_tdx(collateral).encode();
    if endorsements.len() > ENDORSEMENTS_BYTES_MAX {
        return Err(failed(&"this is larger than any collateral"));
    }
    Ok(endorsements)
}

pub(super) async fn open_chain(
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collateral_is_read_anew_and_what_cannot_be_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("collateral.json");
        for collateral in [b"older".to_vec(), b"newer".to_vec()] {
            std::fs::write(&path, &collateral).unwrap();
            let read = Endorsements::decode(&read_collateral(&path).unwrap()).unwrap();
            assert_eq!(read.tdx, collateral);
        }
        std::fs::write(&path, vec![0; ENDORSEMENTS_BYTES_MAX]).unwrap();
        let refused = read_collateral(&path).unwrap_err();
        assert!(refused.contains("larger than any"), "{refused}");
        std::fs::remove_file(&path).unwrap();
        let refused = read_collateral(&path).unwrap_err();
        assert!(refused.contains("collateral.json: No such file"), "{refused}");
    }
}
