//! The subcommands' arguments, and how they call the library.

use std::{
    env, fmt,
    io::{self, Write as _},
    path::{Path, PathBuf},
    thread,
};

use anyhow::Context as _;
use clap::ValueEnum;
use cocoon_image::{
    command::CommandError,
    crates::CratesError,
    given::GivenError,
    image::BuildError,
    input::{DEBIAN_ARCHIVE, InputError, Sources},
    lock::Lock,
    recipe,
    toolchain::ToolchainError,
};
use cocoon_measurements::ImageProfile;

mod build;
mod enter;
mod inspect;
mod lock;
mod part;
mod sbom;
mod sign;
mod verify;

pub(crate) use build::{BuildArguments, build};
pub(crate) use enter::{EnterArguments, enter};
pub(crate) use inspect::{InspectArguments, inspect};
pub(crate) use lock::{LockCommand, lock};
pub(crate) use part::{PartArguments, part};
pub(crate) use sbom::{SbomArguments, sbom};
pub(crate) use sign::{SignArguments, VerifySignatureArguments, sign, signature_code, verify_signature};
pub(crate) use verify::{VerifyArguments, verify};

/// Prints a line of the result. That nobody reads on is an error like any other.
pub(crate) fn print_line(line: impl fmt::Display) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{line}").context("writing to standard output")
}

/// Exit code: the files are not those that they should be.
pub(crate) const DIFFERS: u8 = 10;

/// Which image.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Profile {
    Dev,
    Cpu,
    Gpu,
}

impl From<Profile> for ImageProfile {
    fn from(profile: Profile) -> Self {
        match profile {
            Profile::Dev => Self::Dev,
            Profile::Cpu => Self::Cpu,
            Profile::Gpu => Self::Gpu,
        }
    }
}

/// Where things are, for every subcommand that uses locked inputs.
#[derive(Debug, clap::Args)]
pub(crate) struct InputArguments {
    /// Where the kernel, compiled programs and fetched inputs are kept between builds
    /// [default: ~/.cache/cocoon].
    #[arg(long, value_name = "DIR", env = "COCOON_CACHE")]
    cache: Option<PathBuf>,
    /// A folder that is searched for locked inputs before the cache and Debian's mirror.
    #[arg(long, value_name = "DIR", env = "COCOON_INPUTS")]
    inputs: Option<PathBuf>,
    /// Debian's archive of old versions, or a copy of it; asked when no configured mirror has a file.
    #[arg(long, value_name = "ADDRESS", env = "COCOON_ARCHIVE", default_value = DEBIAN_ARCHIVE)]
    archive: String,
    /// A served folder that `lock bundle` wrote; asked last.
    #[arg(long, value_name = "ADDRESS", env = "COCOON_BUNDLE")]
    bundle: Option<String>,
    /// Root of Cocoon's source tree [default: the one that the current folder is in].
    #[arg(long, value_name = "DIR")]
    source: Option<PathBuf>,
}

/// How parts of a release image are made.
#[derive(Debug, clap::Args)]
pub(crate) struct WorkArguments {
    /// Make again what the cache has.
    #[arg(long)]
    fresh: bool,
    /// How many compilers run at a time for a part, of which an image makes two at once; the result does not depend on it
    /// [default: one for each core].
    #[arg(long, value_name = "NUMBER")]
    jobs: Option<usize>,
}

impl WorkArguments {
    fn jobs(&self) -> usize {
        let all = || thread::available_parallelism().map_or(1, usize::from);
        self.jobs.unwrap_or_else(all)
    }
}

impl InputArguments {
    fn cache(&self) -> anyhow::Result<PathBuf> {
        let cache = match &self.cache {
            Some(cache) => cache.clone(),
            None => env::home_dir()
                .context("there is no home folder for the cache; give --cache")?
                .join(".cache/cocoon"),
        };
        std::path::absolute(cache).context("--cache")
    }

    fn source(&self) -> anyhow::Result<PathBuf> {
        let source = match &self.source {
            Some(source) => source.clone(),
            None => find_source()?,
        };
        std::path::absolute(source).context("--source")
    }

    fn sources(&self, lock: &Lock) -> anyhow::Result<Sources> {
        let mut sources = Sources::new(self.inputs.clone(), &self.cache()?, &lock.builder.snapshot);
        sources.archive.clone_from(&self.archive);
        sources.bundle.clone_from(&self.bundle);
        Ok(sources)
    }
}

fn find_source() -> anyhow::Result<PathBuf> {
    let current = env::current_dir().context("there is no current folder")?;
    current
        .ancestors()
        .find(|folder| folder.join(recipe::FOLDER).is_dir())
        .map(Path::to_owned)
        .context("the current folder is in no source tree of Cocoon; give --source")
}

/// Something is not installed or not at hand: nothing is wrong with the sources.
pub(crate) fn is_missing_input(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref().is_some_and(BuildError::is_missing_input)
            || matches!(cause.downcast_ref(), Some(InputError::Missing { .. }))
            || matches!(cause.downcast_ref(), Some(GivenError::NotGiven { .. }))
            || matches!(cause.downcast_ref(), Some(CratesError::Missing { .. }))
            || matches!(cause.downcast_ref(), Some(ToolchainError::Missing { .. }))
            || matches!(cause.downcast_ref(), Some(CommandError::MissingTool { .. }))
    })
}

#[cfg(test)]
mod tests {
    use cocoon_evidence::Digest32;
    use cocoon_image::{kernel::KernelError, workshop::PartError};

    use super::*;

    /// The documentation promises 3 for the one and 1 for the other: who waits for a file to appear waits for ever
    /// where it is there and wrong.
    #[test]
    fn an_input_with_other_content_is_not_a_missing_one() {
        let of_the_kernel =
            |error: InputError| anyhow::Error::from(BuildError::Kernel(KernelError::Input(error)));
        assert!(is_missing_input(&of_the_kernel(InputError::Missing {
            file: "source".into(),
            sha256: Digest32::ZERO,
            wanted: "it".into(),
            folder: Path::new("inputs").into(),
            reasons: "".into(),
        })));
        assert!(!is_missing_input(&of_the_kernel(InputError::WrongContent {
            path: "source".into(),
            found_bytes: 1,
            found: Digest32::ZERO,
            expected_bytes: 1,
            expected: Digest32::ZERO,
        })));
    }

    #[test]
    fn crates_that_cargo_does_not_have_are_missing_and_a_lock_that_pins_nothing_is_wrong() {
        let of_a_program =
            |error: CratesError| anyhow::Error::from(BuildError::Part(PartError::Crates(error)));
        assert!(is_missing_input(&of_a_program(CratesError::Missing {
            file: "leaf-2.0.0.crate".into(),
            sha256: Digest32::ZERO,
            home: "cargo".into(),
        })));
        assert!(!is_missing_input(&of_a_program(CratesError::Unpinned {
            name: "leaf".into(),
            version: "2.0.0".into(),
            origin: "git".into(),
        })));
    }
}
