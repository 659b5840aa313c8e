//! `cocoon-image lock`.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Subcommand;
use cocoon_image::{
    builder::BuilderRoot,
    image, input,
    lock::{self, Lock},
    progress::Progress,
    recipe,
    suite::{self, KEYRING},
    toolchain::Toolchain,
};
use cocoon_measurements::ImageProfile;

use super::{InputArguments, Profile, is_missing_input, print_line};

#[derive(Debug, Subcommand)]
pub(crate) enum LockCommand {
    /// Say which inputs are on this machine, and check the content of those that are. Exit code 3: some are
    /// missing.
    Check(Selection),
    /// Fetch what is missing into the cache; afterwards a build needs no network.
    Fetch {
        /// Only this input, and print where it lies.
        #[arg(long, value_name = "NAME")]
        only: Option<String>,
        #[command(flatten)]
        selection: Selection,
    },
    /// Unpack the builder root into the cache, if it is not there, and print its folder.
    Unpack(InputArguments),
    /// Decide anew which packages the builder root consists of, from the suite's signed index, and write them
    /// to image.lock.
    Update {
        /// The Debian mirror to ask [default: the first that the system is configured for].
        #[arg(long, value_name = "ADDRESS")]
        mirror: Option<String>,
        /// The keys that the suite has to be signed with.
        #[arg(long, value_name = "FILE", default_value = KEYRING)]
        keyring: PathBuf,
        #[command(flatten)]
        inputs: InputArguments,
    },
    /// Copy all inputs into a folder, for machines without a network (`--inputs`) or to be served (`--bundle`).
    Bundle {
        /// The folder.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
        #[command(flatten)]
        selection: Selection,
    },
}

/// Which inputs.
#[derive(Debug, clap::Args)]
pub(crate) struct Selection {
    /// Those of which image. `gpu`: also 1.8 GB of CUDA libraries, and NVIDIA's driver, which you have to bring.
    #[arg(long, default_value = "cpu")]
    profile: Profile,
    #[command(flatten)]
    inputs: InputArguments,
}

pub(crate) fn lock(command: LockCommand) -> anyhow::Result<()> {
    match command {
        LockCommand::Check(selection) => check(&selection),
        LockCommand::Fetch {
            only: None,
            selection,
        } => fetch(&selection),
        LockCommand::Fetch {
            only: Some(name),
            selection,
        } => fetch_one(&name, &selection.inputs),
        LockCommand::Unpack(inputs) => unpack(&inputs),
        LockCommand::Update {
            mirror,
            keyring,
            inputs,
        } => update(mirror, &keyring, &inputs),
        LockCommand::Bundle { folder, selection } => bundle(&folder, &selection),
    }
}

/// Reports all inputs before it fails for one: rather one that is wrong than one that is missing, rather one that has
/// to be brought than one that is only to be fetched.
fn check(selection: &Selection) -> anyhow::Result<()> {
    let Selection { profile, inputs } = selection;
    let profile = (*profile).into();
    let lock = Lock::load(&inputs.source()?)?;
    let sources = inputs.sources(&lock)?;
    let given = lock.given(profile).iter().map(|input| {
        let found = input.find(&sources).map_err(anyhow::Error::from);
        report(&input.name, &input.version, found)
    });
    let fetched = lock.inputs(profile).map(|input| {
        let found = sources.at_hand(input).map_err(anyhow::Error::from);
        let found = found.and_then(|path| Ok(path.ok_or_else(|| sources.missing(input, ""))?));
        report(&input.name, &input.version, found)
    });
    let mut errors: Vec<_> = given.chain(fetched).flatten().collect();
    let rust = Toolchain::find(&lock.rust)?;
    print_line(format_args!(
        "rust {}: {}",
        lock.rust.version,
        rust.sysroot.display()
    ))?;
    let wrong = errors.iter().position(|error| !is_missing_input(error));
    if errors.is_empty() {
        return Ok(());
    }
    Err(errors.swap_remove(wrong.unwrap_or_default()))
}

/// Prints where an input is, or what is wrong with it.
fn report(name: &str, version: &str, found: anyhow::Result<PathBuf>) -> Option<anyhow::Error> {
    let state = match &found {
        Ok(path) => path.display().to_string(),
        Err(error) if is_missing_input(error) => "missing".to_owned(),
        Err(_) => "WRONG CONTENT".to_owned(),
    };
    let printed = print_line(format_args!("{name} {version}: {state}"));
    found.err().or(printed.err())
}

fn fetch(selection: &Selection) -> anyhow::Result<()> {
    let Selection { profile, inputs } = selection;
    let profile = (*profile).into();
    let lock = Lock::load(&inputs.source()?)?;
    let sources = inputs.sources(&lock)?;
    // Before gigabytes that would be of no use without it.
    for input in lock.given(profile) {
        input.find(&sources)?;
    }
    let (mut files, mut bytes) = (0, 0);
    for input in lock.inputs(profile) {
        sources.find(input)?;
        files += 1;
        bytes += input.bytes;
    }
    print_line(format_args!(
        "{files} inputs with {} MB are at hand",
        bytes / 1_000_000
    ))
}

fn fetch_one(name: &str, arguments: &InputArguments) -> anyhow::Result<()> {
    let lock = Lock::load(&arguments.source()?)?;
    // Of all profiles: a name is asked for because it is wanted.
    let mut inputs = lock.inputs(ImageProfile::Gpu);
    let input = inputs.find(|input| input.name == name);
    let input = input.with_context(|| format!("image.lock names no input {name}"))?;
    print_line(arguments.sources(&lock)?.find(input)?.display())
}

fn unpack(arguments: &InputArguments) -> anyhow::Result<()> {
    let progress = Progress::start();
    let source = arguments.source()?;
    let lock = Lock::load(&source)?;
    let sources = arguments.sources(&lock)?;
    let _cache = image::lock_cache(&sources.cache, &progress)?;
    let helper = env::current_exe().context("cannot find this program itself")?;
    let wanted = recipe::builder(&source)?;
    let root = BuilderRoot::prepare(&lock, &wanted, &sources, &helper, &progress)?;
    print_line(root.folder().display())
}

fn update(mirror: Option<String>, keyring: &Path, arguments: &InputArguments) -> anyhow::Result<()> {
    let source = arguments.source()?;
    let wanted = recipe::builder(&source)?;
    let mirror = match mirror {
        Some(mirror) => mirror,
        None => input::debian_mirrors()?
            .into_iter()
            .next()
            .context("apt is configured for no Debian mirror; give --mirror")?,
    };
    let builder = suite::resolve(&wanted, &mirror, keyring)?;
    lock::replace_builder(&source, &builder)?;
    print_line(format_args!(
        "{} packages of {} {} written to {}",
        builder.packages.len(),
        builder.suite,
        builder.release,
        lock::path(&source).display()
    ))
}

/// What has to be brought is not passed on.
fn bundle(folder: &Path, selection: &Selection) -> anyhow::Result<()> {
    let Selection { profile, inputs } = selection;
    let lock = Lock::load(&inputs.source()?)?;
    let wanted: Vec<_> = lock.inputs((*profile).into()).collect();
    input::write_bundle(&inputs.sources(&lock)?, &wanted, folder)?;
    print_line(format_args!("{} inputs in {}", wanted.len(), folder.display()))
}
