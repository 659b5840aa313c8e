//! `cocoon-image build`.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use cocoon_image::{
    image::{self, Outcome, Request},
    lock::Lock,
    program::Places,
    progress::Progress,
};
use cocoon_measurements::ImageProfile;

use super::{InputArguments, Profile, WorkArguments, sign::source};

const LIBTORCH: &str = "libtorch-2.11.0";

#[derive(Debug, clap::Args)]
pub(crate) struct BuildArguments {
    /// Which image. `dev` has a console and can run without TDX, simulated; never use it for other people's prompts.
    /// It is compiled with this machine's compilers; all others in the builder root, the same bytes for everybody.
    /// `gpu` needs NVIDIA's driver, which you have to bring; without it this says from where, and ends with 3.
    #[arg(long)]
    profile: Profile,
    /// The folder that the image appears as. An older image there is replaced when the new one is complete.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The folder that scripts/libtorch makes, for dev images [default: libtorch-2.11.0 in the cache].
    #[arg(long, value_name = "DIR", env = "LIBTORCH")]
    libtorch: Option<PathBuf>,
    #[command(flatten)]
    work: WorkArguments,
    #[command(flatten)]
    inputs: InputArguments,
}

pub(crate) fn build(arguments: BuildArguments) -> anyhow::Result<()> {
    let progress = Progress::start();
    let profile = arguments.profile.into();
    let out = arguments.out;
    let BuildArguments {
        libtorch,
        work,
        inputs,
        ..
    } = arguments;
    match rebuild(profile, &out, libtorch, &work, &inputs, &progress)? {
        Outcome::Unchanged => progress.stage(&format!(
            "{} is up to date: it was made from the same inputs",
            out.display()
        )),
        Outcome::Built(manifest) => {
            let root = &manifest.artifacts.root;
            let megabytes = root.bytes / 1_000_000;
            progress.stage(&format!(
                "{}: {} entries in a root of {megabytes} MB",
                out.display(),
                manifest.files.len()
            ));
            println!("{:<12} {}", "root hash", manifest.root_verity.root_hash);
            for (name, artifact) in manifest.artifacts.named() {
                println!("{name:<12} {}", artifact.sha256);
            }
            println!("{:<12} {}", "source", source(&manifest));
        }
    }
    Ok(())
}

/// Builds an image of a profile into a folder.
pub(crate) fn rebuild(
    profile: ImageProfile,
    out: &Path,
    libtorch: Option<PathBuf>,
    work: &WorkArguments,
    inputs: &InputArguments,
    progress: &Progress,
) -> anyhow::Result<Outcome> {
    let (cache, source) = (inputs.cache()?, inputs.source()?);
    let libtorch = libtorch.unwrap_or_else(|| cache.join(LIBTORCH));
    let request = Request {
        profile,
        out: out.to_owned(),
        inputs: inputs.sources(&Lock::load(&source)?)?,
        places: Places {
            source,
            cache,
            libtorch: std::path::absolute(libtorch).context("--libtorch")?,
        },
        helper: env::current_exe().context("cannot find this program itself")?,
        jobs: work.jobs(),
        fresh: work.fresh,
    };
    Ok(image::build(&request, progress)?)
}
