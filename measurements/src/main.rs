//! `cocoon-measure`: the auditor's command.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use cocoon_evidence::{Digest48, Rtmr};
use cocoon_measurements::{
    Artifact, BuildPolicyError, LAUNCH_DOCUMENT_BYTES_MAX, LaunchInputs, LaunchSpec, Manifest, ManifestError,
    MeasureError, PolicyInputs, Prediction, build_policy, measure,
};
use serde::Serialize;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the policy or the output could not be written
  2  the command line is wrong
  3  an input is missing, unreadable or malformed
  4  an artifact is not the one that the manifest names
  5  the LaunchSpec asks for something that this version cannot predict";

/// Computes what a guest must measure to, and writes the policy that accepts exactly that guest.
///
/// A confidential virtual machine is trusted because the processor measures what was loaded into it: MRTD holds
/// the firmware, RTMR0 its configuration and the virtual hardware, RTMR1 the kernel, RTMR2 the kernel command
/// line (which carries the root file system's hash), RTMR3 what the agent inside recorded.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Predict all registers of a launch and write the policy for clients.
    #[command(after_help = EXIT_CODES)]
    Predict(Predict),
}

#[derive(clap::Args)]
struct Predict {
    /// manifest.json of the image; firmware, kernel and root file system lie beside it and are checked.
    #[arg(long, value_name = "FILE")]
    manifest: PathBuf,
    /// LaunchSpec: TOML with platform, machine, vcpus and memory_mib.
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,
    /// The launch document, as `cocoon-launch document` writes it.
    #[arg(long, value_name = "FILE")]
    launch_document: PathBuf,
    /// The platform's root certificate, PEM; for a simulated platform the one in the launcher's state folder.
    #[arg(long, value_name = "PEM")]
    root: PathBuf,
    /// Where to write the policy; an existing file is replaced.
    #[arg(long, value_name = "FILE")]
    policy_out: PathBuf,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
    /// Number of the policy; must grow when a policy replaces another.
    #[arg(long, default_value_t = 1)]
    number: u64,
    /// Days until the policy expires.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=366))]
    expires_days: u32,
    /// The least TCB evaluation data number that the platform's endorsements must have.
    #[arg(long, default_value_t = 1)]
    tcb_evaluation_number_min: u32,
}

/// The documented exit codes; clap ends with 2 by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Output = 1,
    Input = 3,
    Mismatch = 4,
    Unpredictable = 5,
}

fn main() -> ExitCode {
    let Command::Predict(arguments) = Arguments::parse().command;
    match predict(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(exit_of(&error) as u8)
        }
    }
}

fn predict(arguments: &Predict) -> Result<()> {
    let manifest = Manifest::load(&arguments.manifest)?;
    let spec = LaunchSpec::load(&arguments.spec)?;
    let document = read_bounded(&arguments.launch_document, LAUNCH_DOCUMENT_BYTES_MAX)
        .context("cannot use the launch document")?;
    let root = read_bounded(&arguments.root, ROOT_BYTES_MAX).context("cannot use the root certificate")?;
    let root_pem = String::from_utf8(root)
        .with_context(|| format!("{} is not PEM: not text", arguments.root.display()))?;

    let path = |artifact: &Artifact| Manifest::artifact_path(&arguments.manifest, artifact);
    let artifacts = &manifest.artifacts;
    let firmware = artifacts.firmware.read("firmware", &path(&artifacts.firmware))?;
    let kernel = artifacts.kernel.read("kernel", &path(&artifacts.kernel))?;
    artifacts.root.verify("root", &path(&artifacts.root))?;

    let prediction = measure(LaunchInputs {
        firmware: &firmware,
        kernel: &kernel,
        command_line: &manifest.command_line,
        spec: &spec,
    })?;
    let policy = build_policy(PolicyInputs {
        prediction: &prediction,
        platform: spec.platform,
        launch_document: &document,
        root_pem: &root_pem,
        number: arguments.number,
        expires_s: now_s()? + u64::from(arguments.expires_days) * 24 * 60 * 60,
        tcb_evaluation_number_min: arguments.tcb_evaluation_number_min,
    })
    .context("cannot make a policy")?;
    replace_file(&arguments.policy_out, policy.to_toml().as_bytes()).context(OutputFailed)?;
    print(&prediction, &document, &spec, arguments.json).context(OutputFailed)
}

/// A certificate has about 1 KiB.
const ROOT_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
#[error("cannot write the result")]
struct OutputFailed;

fn exit_of(error: &anyhow::Error) -> Exit {
    if error.is::<OutputFailed>() {
        return Exit::Output;
    }
    match (
        error.downcast_ref::<ManifestError>(),
        error.downcast_ref::<MeasureError>(),
        error.downcast_ref::<BuildPolicyError>(),
    ) {
        (Some(ManifestError::Mismatch { .. }), ..) => Exit::Mismatch,
        (_, Some(MeasureError::Unpredictable { .. }), _) => Exit::Unpredictable,
        (_, _, Some(BuildPolicyError::Platform)) => Exit::Unpredictable,
        _ => Exit::Input,
    }
}

fn read_bounded(path: &Path, bytes_max: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let attempt = || format!("cannot read {}", path.display());
    File::open(path)
        .with_context(attempt)?
        .take(bytes_max as u64 + 1)
        .read_to_end(&mut bytes)
        .with_context(attempt)?;
    if bytes.len() > bytes_max {
        bail!("{} is longer than {bytes_max} bytes", path.display());
    }
    Ok(bytes)
}

fn now_s() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(now.context("the clock is before 1970; set it")?.as_secs())
}

/// Writes beside the file, then renames: a reader sees the old policy or the new one.
fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let attempt = || format!("cannot write {}", path.display());
    let mut name = path.file_name().with_context(attempt)?.to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let beside = path.with_file_name(name);
    let written = File::create_new(&beside)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        // Nothing to add if this fails too: the first error says why.
        let _ = std::fs::remove_file(&beside);
    }
    written.with_context(attempt)
}

#[derive(Serialize)]
struct Output<'a> {
    simulated: bool,
    launch_document_sha384: Digest48,
    prediction: &'a Prediction,
}

fn print(prediction: &Prediction, document: &[u8], spec: &LaunchSpec, json: bool) -> Result<()> {
    let simulated = spec.platform == cocoon_measurements::LaunchPlatform::Simulated;
    let output = Output {
        simulated,
        launch_document_sha384: Digest48::of(document),
        prediction,
    };
    let mut stdout = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut stdout, &output)?;
        writeln!(stdout)?;
    } else {
        write_text(&mut stdout, &output)?;
    }
    Ok(stdout.flush()?)
}

fn write_text(out: &mut impl std::io::Write, output: &Output<'_>) -> std::io::Result<()> {
    let prediction = output.prediction;
    if output.simulated {
        writeln!(
            out,
            "SIMULATED platform: these values prove nothing about a machine\n"
        )?;
    }
    writeln!(out, "MRTD   {}", prediction.mrtd)?;
    writeln!(out, "         {}", prediction.firmware_layout)?;
    let registers = [
        ("RTMR0", Rtmr::Rtmr0, prediction.rtmr0),
        ("RTMR1", Rtmr::Rtmr1, prediction.rtmr1),
        ("RTMR2", Rtmr::Rtmr2, prediction.rtmr2),
    ];
    for (name, register, value) in registers {
        writeln!(out, "{name}  {value}")?;
        for event in prediction
            .events
            .iter()
            .filter(|event| event.register == register)
        {
            writeln!(out, "       + {}  {}", event.digest, event.name)?;
        }
    }
    writeln!(out, "Launch document (first event of RTMR3), SHA-384")?;
    writeln!(out, "       {}", output.launch_document_sha384)
}
