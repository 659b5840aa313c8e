//! `predict` for SEV-SNP: one launch digest in the place of registers, and HOST_DATA in that of the first event.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use cocoon_evidence::{Digest32, Digest48};
use cocoon_measurements::{
    Artifact, INITRD_BYTES_MAX, LaunchPlatform, LaunchSpec, Manifest,
    snp::{SnpDigest, SnpFirmwareInput, SnpKernel, SnpLaunchInputs, SnpStep, SnpVmm, snp_launch_digest},
};
use serde::Serialize;

use super::{Predict, SCHEMA};
use crate::command::{
    Exit,
    input::read_bounded,
    output::{print_json, print_text},
};

#[derive(Serialize)]
struct Output {
    schema: &'static str,
    platform: &'static str,
    measurement: Digest48,
    host_data: Option<Digest32>,
    steps: Vec<SnpStep>,
}

/// Reads and checks all files of the image, and prints what they measure to.
pub(super) fn run(
    arguments: &Predict,
    manifest: &Manifest,
    spec: &LaunchSpec,
    document: Option<&[u8]>,
) -> Result<Exit> {
    if arguments.tables.is_some() {
        bail!("--tables is for TDX: SEV-SNP measures no ACPI tables");
    }
    if arguments.policy_out.is_some() {
        bail!("--policy-out is for TDX and simulated platforms; write the values printed here into [snp]");
    }
    let SnpDigest { digest, steps } = launch_digest(arguments, manifest, spec)?;
    let output = Output {
        schema: SCHEMA,
        platform: "snp",
        measurement: digest,
        host_data: document.map(Digest32::of),
        steps,
    };
    if arguments.json {
        print_json(&output)?;
    } else {
        print_text(&text(&output, arguments.explain)?)?;
    }
    Ok(Exit::Done)
}

fn launch_digest(arguments: &Predict, manifest: &Manifest, spec: &LaunchSpec) -> Result<SnpDigest> {
    let path = |artifact: &Artifact| Manifest::artifact_path(&arguments.manifest, artifact);
    let artifacts = &manifest.artifacts;
    let (name, firmware) = artifacts.firmware_for(LaunchPlatform::Snp);
    let firmware = firmware.read(name, &path(firmware))?;
    let kernel = artifacts.kernel.read("kernel", &path(&artifacts.kernel))?;
    artifacts.root.verify("root", &path(&artifacts.root))?;
    let initrd = match &arguments.initrd {
        Some(path) => read_bounded(path, INITRD_BYTES_MAX).context("cannot use the initrd")?,
        None => Vec::new(),
    };
    let vcpu_type = spec.snp.vcpu_type.as_deref();
    let vcpu_type = vcpu_type.context("platform = \"snp\" needs vcpu_type in [snp], such as \"EPYC-v4\"")?;
    let digest = snp_launch_digest(&SnpLaunchInputs {
        firmware: SnpFirmwareInput::Whole(&firmware),
        kernel: Some(SnpKernel {
            kernel: &kernel,
            initrd: &initrd,
            command_line: &manifest.command_line,
        }),
        vcpus: spec.vcpus.get(),
        vcpu_type,
        guest_features: spec.snp.guest_features.0,
        vmm: SnpVmm::Qemu,
    });
    digest.context("cannot predict the launch digest")
}

fn text(output: &Output, explain: bool) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    if explain {
        writeln!(
            out,
            "MEASUREMENT: every page that the guest starts with, as the secure processor took it"
        )?;
    }
    writeln!(out, "MEASUREMENT  {}", output.measurement)?;
    let width = output.steps.iter().map(|step| step.name.len()).max().unwrap_or(0);
    for step in &output.steps {
        let SnpStep {
            name,
            page_type,
            gpa,
            pages,
            value,
        } = step;
        writeln!(out, "  {name:width$}  {page_type:7}  {pages:>5} at {gpa:>14}")?;
        if explain {
            writeln!(out, "  {:width$}  -> {value}", "")?;
        }
    }
    if let Some(digest) = output.host_data {
        writeln!(out, "\nHOST_DATA (launch document)\n  {digest}")?;
    }
    Ok(out)
}
