//! `predict`: a manifest and a LaunchSpec in, registers and a policy out.

use std::{fmt::Write as _, path::PathBuf};

use anyhow::{Context as _, Result};
use cocoon_evidence::{Digest48, Rtmr};
use cocoon_measurements::{
    Artifact, LAUNCH_DOCUMENT_BYTES_MAX, LaunchInputs, LaunchPlatform, LaunchSpec, Manifest, PolicyInputs,
    Prediction, build_policy, measure,
};
use serde::Serialize;

use super::{
    Exit,
    input::{now_s, read_bounded},
    output::{print_json, print_text, replace_file},
};

#[derive(clap::Args)]
pub(crate) struct Predict {
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

/// A certificate has about 1 KiB.
const ROOT_BYTES_MAX: usize = 64 * 1024;

pub(crate) fn run(arguments: &Predict) -> Result<Exit> {
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
    replace_file(&arguments.policy_out, policy.to_toml().as_bytes())?;
    print(&prediction, &document, &spec, arguments.json)?;
    Ok(Exit::Done)
}

#[derive(Serialize)]
struct Output<'a> {
    simulated: bool,
    launch_document_sha384: Digest48,
    prediction: &'a Prediction,
}

fn print(prediction: &Prediction, document: &[u8], spec: &LaunchSpec, json: bool) -> Result<()> {
    let output = Output {
        simulated: spec.platform == LaunchPlatform::Simulated,
        launch_document_sha384: Digest48::of(document),
        prediction,
    };
    if json {
        return print_json(&output);
    }
    let mut text = String::new();
    write_text(&mut text, &output)?;
    print_text(&text)
}

fn write_text(out: &mut String, output: &Output<'_>) -> std::fmt::Result {
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
