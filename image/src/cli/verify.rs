//! `cocoon-image verify`.

use std::path::PathBuf;

use anyhow::Context as _;
use cocoon_image::{compare, progress::Progress, publish::WorkFolder};
use cocoon_measurements::Manifest;

use super::{InputArguments, WorkArguments, build::rebuild, print_line};

#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArguments {
    /// The folder of the image to check.
    #[arg(value_name = "DIR")]
    image: PathBuf,
    /// Compare with the finished image in this folder instead of building one from the source tree.
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
    /// The folder that scripts/libtorch makes, for dev images [default: libtorch-2.11.0 in the cache].
    #[arg(long, value_name = "DIR", env = "LIBTORCH")]
    libtorch: Option<PathBuf>,
    #[command(flatten)]
    work: WorkArguments,
    #[command(flatten)]
    inputs: InputArguments,
}

/// Whether all files are the same.
pub(crate) fn verify(arguments: VerifyArguments) -> anyhow::Result<bool> {
    let progress = Progress::start();
    let VerifyArguments {
        image,
        against,
        libtorch,
        work,
        inputs,
    } = arguments;
    // Before a build of many minutes.
    let manifest = Manifest::load(&image.join("manifest.json")).context("there is nothing to verify")?;
    let compared = match against {
        Some(against) => compare::compare(&image, &against)?,
        None => {
            let cache = inputs.cache()?;
            std::fs::create_dir_all(&cache).with_context(|| format!("cannot use {}", cache.display()))?;
            let folder = WorkFolder::new(&cache, ".verify-");
            let folder = folder.with_context(|| format!("cannot use {}", cache.display()))?;
            let rebuilt = folder.path().join("image");
            rebuild(manifest.profile, &rebuilt, libtorch, &work, &inputs, &progress)?;
            progress.stage("comparing");
            compare::compare(&image, &rebuilt)?
        }
    };
    for line in &compared {
        print_line(line)?;
    }
    Ok(compared.iter().all(|file| file.difference.is_none()))
}
