//! Makes the CPU libtorch of release images from the locked wheel, in the builder root.
//!
//! The steps are in `recipe/libtorch.sh`. The result lies in the cache under a digest of everything that decides
//! it: `include/` for compiling the engine, `lib/` for that and for the root.

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

/// Changes when this module calls the script differently.
const METHOD: &str = "libtorch-1";
const SCRIPT: &str = "libtorch.sh";
const WHEEL: &str = "torch";

/// What libtorch is made from.
#[derive(Debug)]
pub struct LibtorchPlan {
    wheel: LockedInput,
    script: PathBuf,
    key: Digest32,
}

/// Why there is no libtorch.
#[derive(Debug, thiserror::Error)]
pub enum LibtorchError {
    /// The lock lacks the wheel.
    #[error("the wheel of torch is not locked")]
    Lock(#[from] LockError),
    /// The wheel is not at hand.
    #[error("the wheel of torch is not at hand")]
    Input(#[from] InputError),
    /// A step failed.
    #[error("libtorch was not made; the whole log is {}", log.display())]
    Build {
        /// What was said.
        log: PathBuf,
        /// Why.
        source: CommandError,
    },
    /// The cache or the recipe cannot be used.
    #[error("cannot use {} for making libtorch (it takes 1.5 GB for some seconds)", path.display())]
    File {
        /// Which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl LibtorchPlan {
    /// Collects what decides the libraries' bytes.
    ///
    /// # Errors
    /// See [`LibtorchError`].
    pub fn new(lock: &Lock, builder: &BuilderRoot, source: &Path) -> Result<Self, LibtorchError> {
        let script = source.join(recipe::FOLDER).join(SCRIPT);
        let text = fs::read(&script).map_err(|source| file_error(&script, source))?;
        let wheel = lock.source(WHEEL)?.clone();
        let digests = [builder.digest, wheel.sha256, Digest32::of(&text)];
        let parts = digests.iter().map(|digest| digest.as_bytes().as_slice());
        let key = Digest32::of_parts(parts.chain([METHOD.as_bytes()]));
        Ok(Self { wheel, script, key })
    }

    /// The folder, if the cache has it.
    pub fn cached(&self, cache: &Path) -> Option<PathBuf> {
        let path = self.path(cache);
        path.is_dir().then_some(path)
    }

    /// Makes the folder in the cache, again if it is there. The caller holds the cache's lock.
    ///
    /// # Errors
    /// See [`LibtorchError`]. Nothing incomplete is then under the folder's name.
    pub fn build(&self, sources: &Sources, builder: &BuilderRoot) -> Result<PathBuf, LibtorchError> {
        let wheel = sources.find(&self.wheel)?;
        let folder = sources.cache.join("libtorch");
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| LibtorchError::File { path, source }
        };
        fs::create_dir_all(&folder).map_err(failed(&folder))?;
        remove_killed(&folder).map_err(failed(&folder))?;
        let work = tempfile::Builder::new()
            .prefix(WORK_PREFIX)
            .tempdir_in(&folder)
            .map_err(failed(&folder))?;
        let (inputs, build) = (work.path().join("inputs"), work.path().join("build"));
        for new in [&inputs, &build] {
            fs::create_dir(new).map_err(failed(new))?;
        }
        let beside = inputs.join(&self.wheel.file);
        fs::hard_link(&wheel, &beside)
            .or_else(|_| fs::copy(&wheel, &beside).map(|_| ()))
            .map_err(failed(&wheel))?;
        fs::copy(&self.script, inputs.join(SCRIPT)).map_err(failed(&self.script))?;

        let sandbox = builder.sandbox([(&inputs, "/inputs", false), (&build, BUILD, true)]);
        let log = folder.join("build.log");
        fs::write(&log, "").map_err(failed(&log))?;
        let mut bash = sandbox.command("/bin/bash", &[]);
        bash.arg(format!("/inputs/{SCRIPT}"));
        bash.arg(format!("/inputs/{}", self.wheel.file));
        bash.args(["/build/libtorch", "strip"]);
        command::run(&mut bash, Some(&log)).map_err(|source| LibtorchError::Build { log, source })?;

        let (made, path) = (build.join("libtorch"), self.path(&sources.cache));
        // Later builds trust what has this name: a power cut must not leave it half written.
        nix::unistd::sync();
        if path.exists() {
            fs::remove_dir_all(&path).map_err(failed(&path))?;
        }
        fs::rename(&made, &path).map_err(failed(&path))?;
        Ok(path)
    }

    fn path(&self, cache: &Path) -> PathBuf {
        cache.join("libtorch").join(self.key.to_string())
    }
}

fn file_error(path: &Path, source: io::Error) -> LibtorchError {
    LibtorchError::File {
        path: path.to_owned(),
        source,
    }
}
