//! `cocoon-image`: builds the guest image and packs models.

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use cocoon_image::{
    image::{self, BuildError, Outcome, Request},
    model,
    program::Places,
    progress::Progress,
    recipe,
};
use cocoon_measurements::ImageProfile;

const LIBTORCH: &str = "libtorch-2.11.0";

/// Builds the guest image that runs inside the confidential virtual machine, and packs models for it.
///
/// Exit codes: 0 done; 1 the build failed; 2 wrong usage; 3 something has to be installed or fetched first
/// (the message says what).
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build an image: firmware, kernel, root file system and manifest.json.
    Build(BuildArguments),
    /// Work with model volumes.
    #[command(subcommand)]
    Model(ModelCommand),
}

#[derive(Debug, clap::Args)]
struct BuildArguments {
    /// Which image. `dev` has a console and can run without TDX, simulated; never use it for other
    /// people's prompts.
    #[arg(long)]
    profile: Profile,
    /// The folder that the image appears as. An older image there is replaced when the new one is complete.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Where the kernel, compiled programs and fetched inputs are kept between builds
    /// [default: ~/.cache/cocoon].
    #[arg(long, value_name = "DIR", env = "COCOON_CACHE")]
    cache: Option<PathBuf>,
    /// A folder that is searched for locked inputs before the cache and Debian's mirror.
    #[arg(long, value_name = "DIR", env = "COCOON_INPUTS")]
    inputs: Option<PathBuf>,
    /// The folder that scripts/libtorch makes [default: libtorch-2.11.0 in the cache].
    #[arg(long, value_name = "DIR", env = "LIBTORCH")]
    libtorch: Option<PathBuf>,
    /// Root of Cocoon's source tree [default: the one that the current folder is in].
    #[arg(long, value_name = "DIR")]
    source: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Profile {
    Dev,
}

#[derive(Debug, Subcommand)]
enum ModelCommand {
    /// Pack a model in Hugging Face's folder format (config.json, tokenizer.json, *.safetensors) into a
    /// volume that the guest verifies block by block, and describe it in a JSON file beside it.
    Pack {
        /// The model's folder.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
        /// The volume to write; its description gets the extension json.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// The model's name for clients [default: the folder's name].
        #[arg(long)]
        name: Option<String>,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Build(arguments) => build(arguments),
        Command::Model(ModelCommand::Pack { folder, out, name }) => pack(&folder, &out, name),
    };
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    eprintln!("error: {error:#}");
    match error.downcast_ref::<BuildError>() {
        Some(error) if error.is_missing_input() => ExitCode::from(3),
        _ => ExitCode::FAILURE,
    }
}

fn build(arguments: BuildArguments) -> anyhow::Result<()> {
    let progress = Progress::start();
    let cache = match arguments.cache {
        Some(cache) => cache,
        None => env::home_dir()
            .context("there is no home folder for the cache; give --cache")?
            .join(".cache/cocoon"),
    };
    let cache = std::path::absolute(cache).context("--cache")?;
    let source = match arguments.source {
        Some(source) => source,
        None => find_source()?,
    };
    let libtorch = arguments.libtorch.unwrap_or_else(|| cache.join(LIBTORCH));
    let out = arguments.out;
    let request = Request {
        profile: match arguments.profile {
            Profile::Dev => ImageProfile::Dev,
        },
        out: out.clone(),
        places: Places {
            source: std::path::absolute(source).context("--source")?,
            cache,
            libtorch: std::path::absolute(libtorch).context("--libtorch")?,
        },
        inputs: arguments.inputs,
    };
    match image::build(&request, &progress)? {
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
            println!("root hash {}", manifest.root_verity.root_hash);
            println!("kernel    {}", manifest.artifacts.kernel.sha256);
            println!("firmware  {}", manifest.artifacts.firmware.sha256);
        }
    }
    Ok(())
}

fn pack(folder: &Path, out: &Path, name: Option<String>) -> anyhow::Result<()> {
    let name = match name {
        Some(name) => name,
        None => folder
            .canonicalize()
            .ok()
            .and_then(|folder| Some(folder.file_name()?.to_string_lossy().into_owned()))
            .with_context(|| format!("cannot read {}", folder.display()))?,
    };
    let packed = model::pack(folder, &name, out)
        .with_context(|| format!("cannot pack the model in {}", folder.display()))?;
    for entry in &packed.entries {
        eprintln!("{:>12}  {}", entry.bytes, entry.path);
    }
    if !packed.left_out.is_empty() {
        eprintln!("not packed: {}", packed.left_out.join(", "));
    }
    eprintln!(
        "{}: {} bytes, described in {}",
        out.display(),
        packed.bytes,
        packed.description.display()
    );
    println!("root hash {}", packed.volume.verity.root_hash);
    Ok(())
}

fn find_source() -> anyhow::Result<PathBuf> {
    let current = env::current_dir().context("there is no current folder")?;
    current
        .ancestors()
        .find(|folder| folder.join(recipe::FOLDER).is_dir())
        .map(Path::to_owned)
        .context("the current folder is in no source tree of Cocoon; give --source")
}
