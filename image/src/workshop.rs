//! The parts of a release image, each made in the builder root.
//!
//! Firmware, kernel and libtorch are kept in the cache under digests of all that decides them. Programs are compiled whole
//! each time: cargo would trust what an earlier run left.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use cocoon_evidence::Digest32;
use tempfile::TempDir;

use crate::{
    builder::BuilderRoot,
    command::CommandError,
    crates::{self, CratesError},
    input::Sources,
    kernel::{Ingredients, KernelError, KernelPlan, MODULES_TREE},
    lock::Lock,
    program::{self, LockedPlaces},
    progress::Progress,
    publish::{WORK_PREFIX, remove_killed},
    recipe::Program,
    script::{Script, ScriptError, ScriptPlan},
};

/// What the lock calls NVIDIA's driver.
const DRIVER: &str = "nvidia-driver";
/// What the lock calls the wheels with CUDA's libraries, and PyTorch's.
const CUDA: [&str; 14] = [
    "torch",
    "cublas",
    "cuda-runtime",
    "cudnn",
    "cufft",
    "cufile",
    "cupti",
    "curand",
    "cusparse",
    "cusparselt",
    "nccl",
    "nvjitlink",
    "nvrtc",
    "nvshmem",
];

/// For which kind of machine firmware is.
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
    fn name(self) -> &'static str {
        match self {
            Self::Tdx => "TDX",
            Self::Snp => "SEV-SNP",
            Self::Plain => "machines with a TPM",
        }
    }

    /// Each has a folder of its own in the cache: they are made at the same time.
    fn part(self) -> &'static str {
        match self {
            Self::Tdx => "firmware-tdx",
            Self::Snp => "firmware-snp",
            Self::Plain => "firmware-plain",
        }
    }

    /// edk2's name of it.
    fn description(self) -> &'static str {
        match self {
            Self::Tdx => "IntelTdx/IntelTdxX64",
            Self::Snp => "AmdSev/AmdSevX64",
            Self::Plain => "OvmfPkgX64",
        }
    }
}

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
    /// How many compilers run at a time for a part; no result depends on it.
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
    Firmware(#[source] ScriptError),
    /// The kernel.
    #[error("there is no kernel")]
    Kernel(#[from] KernelError),
    /// libtorch.
    #[error("there is no libtorch")]
    Libtorch(#[source] ScriptError),
    /// CUDA's libraries.
    #[error("there are no CUDA libraries")]
    Cuda(#[source] ScriptError),
    /// NVIDIA's driver.
    #[error("there is no GPU driver")]
    Driver(#[source] ScriptError),
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

/// A part that the cache keeps.
#[derive(Debug, Clone)]
pub struct Made {
    /// The file or folder.
    pub path: PathBuf,
    /// What it was made from, beside the builder root, for the manifest.
    pub inputs: BTreeMap<String, Digest32>,
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
    pub fn firmware(&self, platform: Platform) -> Result<Made, PartError> {
        let script = Script {
            part: platform.part(),
            name: "firmware.sh",
            inputs: &["edk2", "edk2-debian"],
            given: &[],
            source: None,
            arguments: &[platform.description()],
            result: "firmware.fd",
        };
        let stage = format!(
            "firmware for {}: compiling, about 4 minutes on two cores",
            platform.name()
        );
        self.make(script, &stage).map_err(PartError::Firmware)
    }

    /// The folder with libtorch for the CPU: `include/` for compiling the engine, `lib/` for that and for the root.
    ///
    /// # Errors
    /// See [`PartError`].
    pub fn libtorch(&self) -> Result<Made, PartError> {
        let script = Script {
            part: "libtorch",
            name: "libtorch.sh",
            inputs: &["torch"],
            given: &[],
            source: None,
            arguments: &["/inputs/torch", "/build/libtorch", "strip"],
            result: "libtorch",
        };
        let stage = "libtorch: fetching the wheel (531 MB) if need be, and unpacking";
        self.make(script, stage).map_err(PartError::Libtorch)
    }

    /// The folder with the libraries of CUDA and the half of libtorch that calls them, in `lib/`.
    ///
    /// # Errors
    /// See [`PartError`].
    pub fn cuda(&self) -> Result<Made, PartError> {
        let script = Script {
            part: "cuda",
            name: "cuda.sh",
            inputs: &CUDA,
            given: &[],
            source: None,
            arguments: &["/inputs", "/build/cuda"],
            result: "cuda",
        };
        let stage = "CUDA: fetching 13 wheels (1.8 GB) if need be, and unpacking";
        self.make(script, stage).map_err(PartError::Cuda)
    }

    /// The folder with what the root has of NVIDIA's driver: modules for this kernel, the GPU's firmware, and libraries
    /// in `lib/`.
    ///
    /// # Errors
    /// See [`PartError`].
    pub fn driver(&self, kernel: &Made) -> Result<Made, PartError> {
        let driver = self.lock.given_source(DRIVER);
        let version = &driver.map_err(|error| PartError::Driver(error.into()))?.version;
        let tree = Made {
            path: kernel.path.with_file_name(MODULES_TREE),
            inputs: kernel.inputs.clone(),
        };
        let script = Script {
            part: "nvidia",
            name: "nvidia.sh",
            inputs: &[],
            given: &[DRIVER],
            source: Some(&tree),
            arguments: &["/inputs/nvidia-driver", version, "/source", "/build/nvidia"],
            result: "nvidia",
        };
        let stage = "NVIDIA's driver: unpacking, and compiling modules, about 3 minutes";
        self.make(script, stage).map_err(PartError::Driver)
    }

    fn make(&self, script: Script, stage: &str) -> Result<Made, ScriptError> {
        let plan = ScriptPlan::new(script, self.lock, self.builder.digest, self.source)?;
        let path = match self.kept(plan.cached(&self.sources.cache)) {
            Some(path) => path,
            None => self
                .progress
                .during(stage, || plan.make(self.sources, self.builder, self.jobs))?,
        };
        let inputs = plan.inputs();
        Ok(Made { path, inputs })
    }

    /// The kernel with these fragments of the recipe's folder.
    ///
    /// # Errors
    /// See [`PartError`].
    pub fn kernel(&self, fragments: &[String]) -> Result<Made, PartError> {
        let ingredients = Ingredients::load(self.source, self.lock, fragments).map_err(KernelError::from)?;
        let plan = KernelPlan::locked(ingredients, self.builder.clone());
        let path = match self.kept(plan.cached(&self.sources.cache)) {
            Some(path) => path,
            None => self
                .progress
                .during("kernel: compiling, about 6 minutes on two cores", || {
                    plan.build(self.sources, &self.sources.cache, self.jobs)
                })?,
        };
        let inputs = plan.inputs();
        Ok(Made { path, inputs })
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
        let stage = format!("{package}: compiling, about 3 minutes on two cores");
        let built = self.progress.during(&stage, || {
            program::compile_locked(program, self.builder, places, &log).map_err(|source| {
                PartError::Program {
                    package: package.clone(),
                    log: log.clone(),
                    source,
                }
            })
        })?;
        let path = folder.path().join(package);
        fs::rename(built, &path).map_err(failed)?;
        // What the compilers left has 1 GB.
        fs::remove_dir_all(folder.path().join("target")).map_err(failed)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_only_the_image_for_gpus_is_made_of_is_used() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let lock = Lock::load(source).unwrap();
        lock.given_source(DRIVER).unwrap();
        let locked = lock.gpu.sources.iter().map(|input| input.name.as_str());
        let mut locked: Vec<_> = locked.chain(["torch"]).collect();
        let mut used = CUDA;
        locked.sort_unstable();
        used.sort_unstable();
        assert_eq!(locked, used);
    }
}
