//! The parts of a release image, each made in the builder root.
//!
//! Firmware and libtorch are kept in the cache under digests of all that decides them. Programs are compiled whole
//! each time: cargo would trust what an earlier run left.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{
    builder::BuilderRoot,
    command::CommandError,
    crates::{self, CratesError},
    firmware::{FirmwareError, FirmwarePlan, Platform},
    input::Sources,
    kernel::{Ingredients, KernelError, KernelPlan},
    libtorch::{LibtorchError, LibtorchPlan},
    lock::Lock,
    program::{self, LockedPlaces},
    progress::Progress,
    publish::{WORK_PREFIX, remove_killed},
    recipe::Program,
};

/// What every part is made with. Whoever has one holds the cache's lock.
#[derive(Debug)]
pub struct Workshop<'a> {
    /// Root of the source tree.
    pub source: &'a Path,
    /// The source tree's lock.
    pub lock: &'a Lock,
    /// Where inputs and results are kept.
    pub sources: &'a Sources,
    /// Where everything runs.
    pub builder: &'a BuilderRoot,
    /// How many compilers run at a time; no result depends on it.
    pub jobs: usize,
    /// Make what the cache has again.
    pub fresh: bool,
    /// Told of every stage.
    pub progress: &'a Progress,
}

/// Why a part was not made.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// Firmware.
    #[error("there is no firmware")]
    Firmware(#[from] FirmwareError),
    /// The kernel.
    #[error("there is no kernel")]
    Kernel(#[from] KernelError),
    /// libtorch.
    #[error("there is no libtorch")]
    Libtorch(#[from] LibtorchError),
    /// The programs' crates.
    #[error("the programs' crates are not at hand")]
    Crates(#[from] CratesError),
    /// A program.
    #[error("{package} was not built; the whole log is {}", log.display())]
    Program {
        /// The crate.
        package: String,
        /// What was said.
        log: PathBuf,
        /// Why.
        source: CommandError,
    },
    /// The cache cannot be used.
    #[error("cannot use {} for compiling programs (it takes 1 GB for some minutes)", path.display())]
    File {
        /// Which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A program just compiled; its folder goes when this is dropped.
#[derive(Debug)]
pub struct Compiled {
    /// The program.
    pub path: PathBuf,
    _folder: TempDir,
}

impl Workshop<'_> {
    /// UEFI firmware for a kind of machine.
    ///
    /// # Errors
    /// See [`PartError`].
    pub fn firmware(&self, platform: Platform) -> Result<PathBuf, PartError> {
        let plan = FirmwarePlan::new(platform, self.lock, self.builder, self.source)?;
        if let Some(path) = self.kept(plan.cached(&self.sources.cache)) {
            return Ok(path);
        }
        self.progress
            .stage("firmware: compiling, about 4 minutes on two cores");
        Ok(plan.build(self.sources, self.builder, self.jobs)?)
    }

    /// The kernel with these fragments of the recipe's folder.
    ///
    /// # Errors
    /// See [`PartError`].
    pub fn kernel(&self, fragments: &[String]) -> Result<PathBuf, PartError> {
        let ingredients = Ingredients::load(self.source, self.lock, fragments).map_err(KernelError::from)?;
        let plan = KernelPlan::locked(ingredients, self.builder.clone());
        if let Some(path) = self.kept(plan.cached(&self.sources.cache)) {
            return Ok(path);
        }
        self.progress
            .stage("kernel: compiling, about 6 minutes on two cores");
        Ok(plan.build(self.sources, &self.sources.cache, self.jobs)?)
    }

    /// The folder with libtorch for the CPU.
    ///
    /// # Errors
    /// See [`PartError`].
    pub fn libtorch(&self) -> Result<PathBuf, PartError> {
        let plan = LibtorchPlan::new(self.lock, self.builder, self.source)?;
        if let Some(path) = self.kept(plan.cached(&self.sources.cache)) {
            return Ok(path);
        }
        self.progress
            .stage("libtorch: fetching the wheel (531 MB) if need be, and unpacking");
        Ok(plan.build(self.sources, self.builder)?)
    }

    /// A program of this workspace; `libtorch` is the folder of that name, for one that needs it.
    ///
    /// # Errors
    /// See [`PartError`].
    pub fn program(&self, program: &Program, libtorch: Option<&Path>) -> Result<Compiled, PartError> {
        let Program { package, .. } = program;
        self.progress
            .stage(&format!("{package}: checking and unpacking crates"));
        let crates = crates::vendor(self.source, &program::cargo_home(), &self.sources.cache)?;
        let programs = self.sources.cache.join("programs");
        let failed = |source| PartError::File {
            path: programs.clone(),
            source,
        };
        fs::create_dir_all(&programs).map_err(failed)?;
        let prefix = format!("{WORK_PREFIX}{package}-");
        let folder = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(&programs)
            .map_err(failed)?;
        let log = programs.join(format!("{package}.log"));
        fs::write(&log, "").map_err(failed)?;
        let places = LockedPlaces {
            source: self.source,
            crates: &crates,
            libtorch,
            build: folder.path(),
            jobs: self.jobs,
        };
        self.progress
            .stage(&format!("{package}: compiling, about 3 minutes on two cores"));
        let path = program::compile_locked(program, self.builder, places, &log).map_err(|source| {
            PartError::Program {
                package: package.clone(),
                log: log.clone(),
                source,
            }
        })?;
        Ok(Compiled {
            path,
            _folder: folder,
        })
    }

    /// Removes what killed builds left.
    ///
    /// # Errors
    /// See [`PartError`].
    pub fn sweep(&self) -> Result<(), PartError> {
        let path = self.sources.cache.join("programs");
        let swept = fs::create_dir_all(&path).and_then(|()| remove_killed(&path));
        swept.map_err(|source| PartError::File { path, source })
    }

    fn kept(&self, cached: Option<PathBuf>) -> Option<PathBuf> {
        cached.filter(|_| !self.fresh)
    }
}
