//! `cocoon-image`: builds the guest image and packs models.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use cocoon_image::{interrupt, model, sandbox};

use crate::cli::{
    BuildArguments, EnterArguments, InspectArguments, LockCommand, PartArguments, SbomArguments,
    SignArguments, VerifyArguments, VerifySignatureArguments,
};

mod cli;

/// Builds the guest image that runs inside the confidential virtual machine, and packs models for it.
///
/// Exit codes: 0 done; 1 the build failed; 2 wrong usage; 3 something has to be installed or fetched first
/// (the message says what); 10 of `verify`, `inspect`, `sign` and `verify-signature`: the files are not what was built
/// again, what was signed or what the manifest says; 11 of `sign` and `verify-signature`: no good signature by the key; 128 and the signal's
/// number: told to end, with nothing left behind.
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
    /// Say what is in an image: every file of its root with length and SHA-256, read out of the root block by block
    /// against its root hash, and where the manifest says that it came from. Exit code 10: the manifest lists
    /// something else, or the root is not one that this program makes.
    Inspect(InspectArguments),
    /// Work with image.lock, which names every fetched input by its exact content.
    #[command(subcommand)]
    Lock(LockCommand),
    /// Work with model volumes.
    #[command(subcommand)]
    Model(ModelCommand),
    /// Build one part of a release image in the builder root: the same bytes for everybody.
    Part(PartArguments),
    /// Build an image again from this source tree and compare every file with the one in DIR. Says where they
    /// differ first; exit code 10: they do.
    Verify(VerifyArguments),
    /// Print the bill of materials of the image in DIR: every crate, Debian package and source in it, as CycloneDX 1.6
    /// in JSON. Needs the source tree that the image was built from.
    Sbom(SbomArguments),
    /// Sign the provenance of the image in DIR: an in-toto statement in a DSSE envelope, DIR/provenance.dsse.json.
    /// Signatures of other keys for the same image stay.
    ///
    /// Exit codes: 0 signed; 2 the key cannot be used, or others can read it; 3 something is missing; 10 the files are
    /// not those of the manifest, or the envelope there is for another image; 11 the envelope there is damaged.
    Sign(SignArguments),
    /// Check that a key vouches for the image in DIR: the signature first, then length and SHA-256 of every file.
    ///
    /// Exit codes: 0 all match; 2 the key cannot be used; 3 something is missing; 10 a file is not the signed one;
    /// 11 no good signature by the key.
    VerifySignature(VerifySignatureArguments),
    #[command(name = sandbox::SUBCOMMAND, hide = true)]
    Enter(EnterArguments),
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
    let command = Arguments::parse().command;
    // What runs in the builder root ends with the program that started it.
    if !matches!(command, Command::Enter(_))
        && let Err(error) = interrupt::watch()
    {
        eprintln!("error: cannot be told to end: {error}");
        return ExitCode::FAILURE;
    }
    let result = match command {
        Command::Build(arguments) => cli::build(arguments),
        Command::Part(arguments) => cli::part(&arguments),
        Command::Enter(arguments) => return cli::enter(&arguments),
        Command::Lock(command) => cli::lock(command),
        Command::Inspect(arguments) => match cli::inspect(&arguments) {
            Ok(false) => return ExitCode::from(cli::DIFFERS),
            same => same.map(|_| ()),
        },
        Command::Verify(arguments) => match cli::verify(arguments) {
            Ok(false) => return ExitCode::from(cli::DIFFERS),
            same => same.map(|_| ()),
        },
        Command::Sbom(arguments) => cli::sbom(&arguments),
        Command::Sign(arguments) => cli::sign(&arguments),
        Command::VerifySignature(arguments) => match cli::verify_signature(&arguments) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Model(ModelCommand::Pack { folder, out, name }) => pack(&folder, &out, name),
    };
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    if let Some(code) = interrupt::ended() {
        eprintln!("stopped by a signal; what was begun is removed");
        return ExitCode::from(code);
    }
    eprintln!("error: {error:#}");
    if let Some(code) = cli::signature_code(&error) {
        return ExitCode::from(code);
    }
    if cli::is_missing_input(&error) {
        return ExitCode::from(3);
    }
    ExitCode::FAILURE
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
    for (name, bytes) in &packed.files {
        eprintln!("{bytes:>12}  {name}");
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
    cli::print_line(format_args!("root hash {}", packed.volume.verity.root_hash))
}
