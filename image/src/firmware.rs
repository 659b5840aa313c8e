//! Builds UEFI firmware from edk2's source in the builder root.
//!
//! The steps are in `recipe/firmware.sh`; this module gives them their inputs and keeps what they made under a
//! digest of everything that decides it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use cocoon_evidence::Digest32;

use crate::{
    builder::BuilderRoot,
    command::{self, CommandError},
    input::{InputError, Sources},
    lock::{Lock, LockError, LockedInput},
    publish::{WORK_PREFIX, remove_killed},
    recipe,
    sandbox::BUILD,
};

const SCRIPT: &str = "firmware.sh";

/// For which kind of machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// Intel TDX.
    Tdx,
    /// AMD SEV-SNP.
    Snp,
    /// A machine without either, with a TPM.
    Plain,
}

impl Platform {
    /// edk2's name of it.
    fn description(self) -> &'static str {
        match self {
            Self::Tdx => "IntelTdx/IntelTdxX64",
            Self::Snp => "AmdSev/AmdSevX64",
            Self::Plain => "OvmfPkgX64",
        }
    }
}

/// What firmware is built from.
#[derive(Debug)]
pub struct FirmwarePlan {
    platform: Platform,
    edk2: LockedInput,
    patches: LockedInput,
    script: PathBuf,
    key: Digest32,
}

/// Why there is no firmware.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// The lock lacks its source.
    #[error("the firmware's source is not locked")]
    Lock(#[from] LockError),
    /// The source is not at hand.
    #[error("the firmware's source is not at hand")]
    Input(#[from] InputError),
    /// A step failed.
    #[error("the firmware was not built; the whole log is {}", log.display())]
    Build {
        /// What was said.
        log: PathBuf,
        /// Why.
        source: CommandError,
    },
    /// The cache or the recipe cannot be used.
    #[error("cannot use {} for building firmware (it takes 2 GB for some minutes)", path.display())]
    File {
        /// Which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl FirmwarePlan {
    /// Collects what decides the firmware's bytes.
    ///
    /// # Errors
    /// See [`FirmwareError`].
    pub fn new(
        platform: Platform,
        lock: &Lock,
        builder: &BuilderRoot,
        source: &Path,
    ) -> Result<Self, FirmwareError> {
        let script = source.join(recipe::FOLDER).join(SCRIPT);
        let text = fs::read(&script).map_err(|source| file_error(&script, source))?;
        let (edk2, patches) = (lock.source("edk2")?.clone(), lock.source("edk2-debian")?.clone());
        let digests = [builder.digest, edk2.sha256, patches.sha256, Digest32::of(&text)];
        let parts = digests.iter().map(|digest| digest.as_bytes().as_slice());
        let key = Digest32::of_parts(parts.chain([platform.description().as_bytes()]));
        Ok(Self {
            platform,
            edk2,
            patches,
            script,
            key,
        })
    }

    /// The firmware, if the cache has it.
    pub fn cached(&self, cache: &Path) -> Option<PathBuf> {
        let path = self.path(cache);
        path.is_file().then_some(path)
    }

    /// Builds the firmware into the cache. The caller holds the cache's lock.
    ///
    /// # Errors
    /// See [`FirmwareError`]. The cache then has no firmware under this key, but a log.
    pub fn build(
        &self,
        sources: &Sources,
        builder: &BuilderRoot,
        jobs: usize,
    ) -> Result<PathBuf, FirmwareError> {
        let (edk2, patches) = (sources.find(&self.edk2)?, sources.find(&self.patches)?);
        let folder = sources.cache.join("firmware");
        fs::create_dir_all(&folder).map_err(|source| file_error(&folder, source))?;
        remove_killed(&folder).map_err(|source| file_error(&folder, source))?;
        let work = tempfile::Builder::new()
            .prefix(WORK_PREFIX)
            .tempdir_in(&folder)
            .map_err(|source| file_error(&folder, source))?;
        let (inputs, build) = (work.path().join("inputs"), work.path().join("build"));
        for new in [&inputs, &build] {
            fs::create_dir(new).map_err(|source| file_error(new, source))?;
        }
        for (from, name) in [
            (&edk2, "edk2.tar.xz"),
            (&patches, "edk2-debian.tar.xz"),
            (&self.script, SCRIPT),
        ] {
            fs::copy(from, inputs.join(name)).map_err(|source| file_error(from, source))?;
        }
        let sandbox = builder.sandbox([(&inputs, "/inputs", false), (&build, BUILD, true)]);
        let log = folder.join("build.log");
        fs::write(&log, "").map_err(|source| file_error(&log, source))?;
        let script = format!("/inputs/{SCRIPT}");
        let mut command = sandbox.command("/bin/bash", &[]);
        command.args([&script, self.platform.description(), &jobs.to_string()]);
        command::run(&mut command, Some(&log)).map_err(|source| FirmwareError::Build { log, source })?;

        let (made, path) = (build.join("firmware.fd"), self.path(&sources.cache));
        // Later builds trust what has this name: a power cut must not leave it half written.
        let written = fs::File::open(&made).and_then(|file| file.sync_all());
        written.map_err(|source| file_error(&made, source))?;
        fs::rename(&made, &path).map_err(|source| file_error(&path, source))?;
        Ok(path)
    }

    fn path(&self, cache: &Path) -> PathBuf {
        cache.join("firmware").join(format!("{}.fd", self.key))
    }
}

fn file_error(path: &Path, source: io::Error) -> FirmwareError {
    FirmwareError::File {
        path: path.to_owned(),
        source,
    }
}
