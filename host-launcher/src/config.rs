//! node.toml: what a provider configures. Everything that can be checked without starting anything is checked
//! when it is loaded, so that a wrong path is an error before the first second passes.

mod file;

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use cocoon_measurements::{LaunchPlatform, LaunchSpec, Manifest, ManifestError, SpecError};
use cocoon_protocol::{
    AccountAddress, ContractCode, LaunchDocument, LaunchDocumentError, Limits, ModelVolume, NetworkId,
    NumericProfile, Prices, Settlement, VerityVolume,
};
use serde::Deserialize;

use self::file::{ChainSection, File, parse};
use crate::boot::Deadlines;

/// A longer configuration or volume description is refused.
const TEXT_BYTES_MAX: u64 = 256 * 1024;

/// A Unix socket's path has at most 107 bytes (unix(7)); sockets in the state directory add up to this many.
const SOCKET_NAME_BYTES: usize = 24;

/// How vsock reaches the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VsockChoice {
    /// The kernel's if `/dev/vhost-vsock` exists, else the backend.
    #[default]
    Auto,
    /// The kernel's vhost-vsock.
    Kernel,
    /// The program vhost-device-vsock.
    Backend,
}

/// Which chain pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The one that the launcher embeds; its coins are worth nothing.
    Local,
    /// TON testnet.
    Testnet,
    /// TON mainnet.
    Mainnet,
}

impl Network {
    /// Its `global_id`.
    pub fn id(self) -> NetworkId {
        match self {
            Self::Local => NetworkId::LOCAL,
            Self::Testnet => NetworkId::TESTNET,
            Self::Mainnet => NetworkId::MAINNET,
        }
    }
}

/// Which chain, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChainChoice {
    /// The embedded one, whose liteserver listens here.
    Local {
        /// Loopback.
        address: SocketAddr,
    },
    /// TON itself, through the liteservers of this file.
    Public {
        /// A `global.config.json`.
        global_config: PathBuf,
    },
}

/// A checked configuration; all paths are absolute or relative to the working directory.
#[derive(Debug, Clone)]
pub struct Config {
    /// Everything that outlives a run, and the sockets of a run.
    pub state_dir: PathBuf,
    /// The image's manifest.
    pub manifest_path: PathBuf,
    /// What it says.
    pub manifest: Manifest,
    /// The machine.
    pub spec: LaunchSpec,
    /// The model volume, a disk image.
    pub model_image: PathBuf,
    /// How it is verified.
    pub model: ModelVolume,
    /// In which arithmetic it runs.
    pub numeric_profile: NumericProfile,
    /// What tokens cost.
    pub prices: Prices,
    /// What one request may ask for.
    pub limits: Limits,
    /// The settlement network.
    pub network: Network,
    /// The provider's account.
    pub payout_address: AccountAddress,
    /// How long a voucher may wait for later ones of its grant, so that one settlement pays for many answers. It
    /// does not wait beyond its grant's expiry.
    pub settle_delay_s: u32,
    /// Where clients connect.
    pub listen: SocketAddr,
    /// How the chain is reached.
    pub chain: ChainChoice,
    /// What Intel publishes about this machine's platform: passed on to clients, who cannot verify the guest without.
    pub tdx_collateral: Option<PathBuf>,
    /// QEMU, if not the one in PATH.
    pub qemu: Option<PathBuf>,
    /// The vsock backend, if not the one in the cache or PATH.
    pub vhost_device_vsock: Option<PathBuf>,
    /// How vsock reaches the guest.
    pub vsock: VsockChoice,
    /// How long each stage of the boot may take.
    pub deadlines: Deadlines,
}

/// Why a configuration is refused. Each is the provider's to mend.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that is named cannot be read.
    #[error("cannot read the {what} {}; check the path in node.toml (relative paths start at its folder)", path.display())]
    Read {
        /// Which file, in words.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// node.toml is not valid.
    #[error("{} is not valid: {message}{hint}", path.display())]
    Syntax {
        /// node.toml.
        path: PathBuf,
        /// The parser's words, with line and column.
        message: String,
        /// The key that may have been meant.
        hint: String,
    },
    /// The manifest.
    #[error("the image's manifest cannot be used")]
    Manifest(#[source] ManifestError),
    /// The LaunchSpec.
    #[error("the LaunchSpec cannot be used")]
    Spec(#[source] SpecError),
    /// The JSON beside the model volume.
    #[error("{} does not describe a model volume; `cocoon-image model pack` writes it beside the image", path.display())]
    Volume {
        /// That file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The launch document that would come out.
    #[error("node.toml does not make a valid launch document")]
    Document(#[source] LaunchDocumentError),
    /// Two values that do not go together, or a file that is not what it should be.
    #[error("{0}")]
    Value(String),
}

impl Config {
    /// Reads node.toml and what it names.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let file = parse(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let manifest_path = folder.join(&file.image.manifest);
        let manifest = Manifest::load(&manifest_path).map_err(ConfigError::Manifest)?;
        let spec = LaunchSpec::load(&folder.join(&file.spec)).map_err(ConfigError::Spec)?;
        check_launchable(&spec)?;
        let model_image = folder.join(&file.model.volume);
        let verity = read_volume(&model_image)?;
        let chain = chain_choice(folder, &file, &spec)?;
        let config = Self {
            state_dir: absolute(&folder.join(&file.state_dir))?,
            manifest_path,
            manifest,
            spec,
            model_image,
            model: ModelVolume {
                name: file.model.name,
                verity,
            },
            numeric_profile: file.model.numeric_profile,
            prices: file.prices,
            limits: file.limits,
            network: file.settlement.network,
            payout_address: file.settlement.payout_address,
            settle_delay_s: file.settlement.delay_s,
            listen: file.listen.address,
            chain,
            tdx_collateral: file.tdx.collateral.map(|path| folder.join(path)),
            qemu: file.tools.qemu.map(|path| folder.join(path)),
            vhost_device_vsock: file.tools.vhost_device_vsock.map(|path| folder.join(path)),
            vsock: file.tools.vsock,
            deadlines: file.deadlines,
        };
        config.check_files()?;
        Ok(config)
    }

    /// Only where the node's state is: a running node is found and stopped even if the image or the model that
    /// it was started from is gone.
    ///
    /// # Errors
    /// node.toml cannot be read or is not valid.
    pub fn state_dir_of(path: &Path) -> Result<PathBuf, ConfigError> {
        let folder = path.parent().unwrap_or(Path::new(""));
        absolute(&folder.join(parse(path)?.state_dir))
    }

    /// The launch document: the same configuration gives the same bytes.
    ///
    /// # Errors
    /// [`ConfigError::Document`] names the value that is out of range.
    pub fn launch_document(&self, contract_code: ContractCode) -> Result<Vec<u8>, ConfigError> {
        let document = LaunchDocument {
            version: 1,
            model: self.model.clone(),
            numeric_profile: self.numeric_profile,
            prices: self.prices,
            limits: self.limits,
            settlement: Settlement {
                network: self.network.id(),
                payout_address: self.payout_address,
                contract_code,
            },
        };
        let bytes = serde_json::to_vec(&document).expect("a launch document holds nothing that JSON cannot");
        LaunchDocument::parse(&bytes).map_err(ConfigError::Document)?;
        Ok(bytes)
    }

    /// Where the firmware for the LaunchSpec's platform lies.
    pub fn firmware(&self) -> PathBuf {
        let (_, firmware) = self.manifest.artifacts.firmware_for(self.spec.platform);
        Manifest::artifact_path(&self.manifest_path, firmware)
    }

    /// Where the kernel lies.
    pub fn kernel(&self) -> PathBuf {
        Manifest::artifact_path(&self.manifest_path, &self.manifest.artifacts.kernel)
    }

    /// Where the root disk lies.
    pub fn root(&self) -> PathBuf {
        Manifest::artifact_path(&self.manifest_path, &self.manifest.artifacts.root)
    }

    fn check_files(&self) -> Result<(), ConfigError> {
        let socket_bytes = self.state_dir.as_os_str().len() + SOCKET_NAME_BYTES;
        if socket_bytes > 107 {
            return Err(ConfigError::Value(format!(
                "state_dir {} is too long: the path of a Unix socket in it would have {socket_bytes} bytes, \
                 Linux allows 107; choose a shorter one",
                self.state_dir.display()
            )));
        }
        for (what, path) in [("firmware", self.firmware()), ("root disk", self.root())] {
            length_of(what, &path)?;
        }
        check_kernel(&self.kernel())?;
        if let Some(path) = &self.tdx_collateral {
            if self.spec.platform != LaunchPlatform::Tdx {
                return Err(ConfigError::Value(
                    "[tdx] is for platform = \"tdx\" in the LaunchSpec; leave it out".into(),
                ));
            }
            length_of("[tdx] collateral", path)?;
        }
        let needed = self
            .model
            .verity
            .data_blocks
            .saturating_mul(VerityVolume::BLOCK_BYTES);
        let found = length_of("model volume", &self.model_image)?;
        if found <= needed {
            return Err(ConfigError::Value(format!(
                "the model volume {} has {found} bytes, but its description says {needed} bytes of data with a \
                 hash tree behind them; copy or pack it again",
                self.model_image.display()
            )));
        }
        Ok(())
    }
}

/// A LaunchSpec can describe more machines, for predictions, than this launcher starts.
fn check_launchable(spec: &LaunchSpec) -> Result<(), ConfigError> {
    let refuse = |reason: &str| Err(ConfigError::Value(reason.to_owned()));
    if spec.platform == LaunchPlatform::Snp {
        return refuse("this launcher starts platform = \"simulated\" and \"tdx\" only, not \"snp\"");
    }
    if spec.pcie_devices() != spec.machine.devices() {
        return refuse(
            "this launcher starts the devices of the machine profile only: leave [[devices]] out of the LaunchSpec",
        );
    }
    if spec.vcpus.get() > VCPUS_MAX {
        return refuse("more than 255 vCPUs need interrupt remapping, which this launcher does not set up");
    }
    Ok(())
}

const VCPUS_MAX: u32 = 255;

fn chain_choice(folder: &Path, file: &File, spec: &LaunchSpec) -> Result<ChainChoice, ConfigError> {
    let refuse = |reason: &str| Err(ConfigError::Value(reason.to_owned()));
    match (file.settlement.network, &file.chain) {
        (
            Network::Local,
            ChainSection {
                global_config: Some(_),
                ..
            },
        ) => refuse(
            "[chain] global_config is for testnet and mainnet; with network = \"local\" the launcher runs the \
             chain itself",
        ),
        (Network::Local, ChainSection { address, .. }) => {
            let address = address.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
            if !address.ip().is_loopback() {
                return refuse(
                    "[chain] address has to be a loopback address: everybody can mint on the local chain",
                );
            }
            Ok(ChainChoice::Local { address })
        }
        _ if spec.platform == LaunchPlatform::Simulated => refuse(
            "the simulated platform proves nothing, so it settles on the local chain only: set [settlement] \
             network = \"local\", or platform = \"tdx\" in the LaunchSpec",
        ),
        (
            _,
            ChainSection {
                global_config: Some(path),
                address: None,
            },
        ) => Ok(ChainChoice::Public {
            global_config: folder.join(path),
        }),
        _ => refuse(
            "testnet and mainnet need [chain] global_config = the path of their global.config.json, and no \
             [chain] address",
        ),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path).map_err(|source| ConfigError::Read {
        what: "working directory for",
        path: path.to_owned(),
        source,
    })
}

fn read_text(what: &'static str, path: &Path) -> Result<String, ConfigError> {
    let read = || {
        if fs::metadata(path)?.len() > TEXT_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        fs::read_to_string(path)
    };
    read().map_err(|source| ConfigError::Read {
        what,
        path: path.to_owned(),
        source,
    })
}

/// The description that `cocoon-image model pack` writes beside the volume.
fn read_volume(image: &Path) -> Result<VerityVolume, ConfigError> {
    let path = image.with_extension("json");
    let text = read_text("description of the model volume", &path)?;
    let volume: ModelVolume =
        serde_json::from_str(&text).map_err(|source| ConfigError::Volume { path, source })?;
    Ok(volume.verity)
}

fn length_of(what: &'static str, path: &Path) -> Result<u64, ConfigError> {
    let open = || fs::File::open(path)?.metadata();
    let metadata = open().map_err(|source| ConfigError::Read {
        what,
        path: path.to_owned(),
        source,
    })?;
    if metadata.is_file() && metadata.len() > 0 {
        return Ok(metadata.len());
    }
    Err(ConfigError::Value(format!(
        "the {what} {} is empty or not a file",
        path.display()
    )))
}

/// A bzImage says so at 0x202 (Linux/x86 boot protocol, "HdrS"). Hashes are not compared here: a changed
/// kernel boots, and every client refuses what it measures to.
fn check_kernel(path: &Path) -> Result<(), ConfigError> {
    use std::os::unix::fs::FileExt as _;
    length_of("kernel", path)?;
    let mut magic = [0; 4];
    let read = fs::File::open(path).and_then(|file| file.read_exact_at(&mut magic, 0x202));
    if read.is_ok() && &magic == b"HdrS" {
        return Ok(());
    }
    Err(ConfigError::Value(format!(
        "{} is not a Linux kernel (bzImage); build the image again with cocoon-image",
        path.display()
    )))
}

#[cfg(test)]
pub(crate) mod tests;
