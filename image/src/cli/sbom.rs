//! `cocoon-image sbom`.

use std::path::PathBuf;

use anyhow::Context as _;
use cocoon_image::sbom;

use super::{find_source, print_line};

#[derive(Debug, clap::Args)]
pub(crate) struct SbomArguments {
    /// The folder of the image.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Root of the source tree that the image was built from [default: the one that the current folder is in].
    #[arg(long, value_name = "DIR")]
    source: Option<PathBuf>,
}

pub(crate) fn sbom(arguments: &SbomArguments) -> anyhow::Result<()> {
    let source = match &arguments.source {
        Some(source) => source.clone(),
        None => find_source()?,
    };
    let bom = sbom::sbom(&arguments.folder, &source)
        .with_context(|| format!("no bill of materials of {}", arguments.folder.display()))?;
    print_line(serde_json::to_string_pretty(&bom)?)
}
