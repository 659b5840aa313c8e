//! `cocoon-image lock`.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Subcommand;
use cocoon_image::{
    builder::BuilderRoot,
    image,
    input::{self, InputError},
    lock::{self, Lock},
    progress::Progress,
    recipe,
    suite::{self, KEYRING},
    toolchain::Toolchain,
};

use super::InputArguments;

#[derive(Debug, Subcommand)]
pub(crate) enum LockCommand {
    /// Say which inputs are on this machine, and check the content of those that are. Exit code 3: some are
    /// missing.
    Check(InputArguments),
    /// Fetch what is missing into the cache; afterwards a build needs no network.
    Fetch {
        /// Only this input, and print where it lies.
        #[arg(long, value_name = "NAME")]
        only: Option<String>,
        #[command(flatten)]
        inputs: InputArguments,
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
        inputs: InputArguments,
    },
}

pub(crate) fn lock(command: LockCommand) -> anyhow::Result<()> {
    match command {
        LockCommand::Check(inputs) => check(&inputs),
        LockCommand::Fetch { only: None, inputs } => fetch(&inputs),
        LockCommand::Fetch {
            only: Some(name),
            inputs,
        } => fetch_one(&name, &inputs),
        LockCommand::Unpack(inputs) => unpack(&inputs),
        LockCommand::Update {
            mirror,
            keyring,
            inputs,
        } => update(mirror, &keyring, &inputs),
        LockCommand::Bundle { folder, inputs } => bundle(&folder, &inputs),
    }
}

/// Reports all inputs before it fails for the first.
fn check(arguments: &InputArguments) -> anyhow::Result<()> {
    let lock = Lock::load(&arguments.source()?)?;
    let sources = arguments.sources(&lock)?;
    let mut first_error = None;
    for input in lock.inputs() {
        let state = match sources.at_hand(input) {
            Ok(Some(path)) => path.display().to_string(),
            Ok(None) => {
                let missing = sources.missing(input, "");
                first_error.get_or_insert(missing);
                "missing".to_owned()
            }
            Err(error) => {
                first_error = Some(error);
                "WRONG CONTENT".to_owned()
            }
        };
        println!("{} {}: {state}", input.name, input.version);
    }
    let rust = Toolchain::find(&lock.rust)?;
    println!("rust {}: {}", lock.rust.version, rust.sysroot.display());
    first_error.map_or(Ok(()), |error: InputError| Err(error.into()))
}

fn fetch(arguments: &InputArguments) -> anyhow::Result<()> {
    let lock = Lock::load(&arguments.source()?)?;
    let sources = arguments.sources(&lock)?;
    let (mut files, mut bytes) = (0, 0);
    for input in lock.inputs() {
        sources.find(input)?;
        files += 1;
        bytes += input.bytes;
    }
    println!("{files} inputs with {} MB are at hand", bytes / 1_000_000);
    Ok(())
}

fn fetch_one(name: &str, arguments: &InputArguments) -> anyhow::Result<()> {
    let lock = Lock::load(&arguments.source()?)?;
    let input = lock.inputs().find(|input| input.name == name);
    let input = input.with_context(|| format!("image.lock names no input {name}"))?;
    println!("{}", arguments.sources(&lock)?.find(input)?.display());
    Ok(())
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
    println!("{}", root.folder().display());
    Ok(())
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
    println!(
        "{} packages of {} {} written to {}",
        builder.packages.len(),
        builder.suite,
        builder.release,
        lock::path(&source).display()
    );
    Ok(())
}

fn bundle(folder: &Path, arguments: &InputArguments) -> anyhow::Result<()> {
    let lock = Lock::load(&arguments.source()?)?;
    let inputs: Vec<_> = lock.inputs().collect();
    input::write_bundle(&arguments.sources(&lock)?, &inputs, folder)?;
    println!("{} inputs in {}", inputs.len(), folder.display());
    Ok(())
}
