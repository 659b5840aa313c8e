//! `predict`: a manifest and a LaunchSpec in, registers and a policy out.

mod snp;

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use cocoon_evidence::Digest48;
use cocoon_measurements::{
    Artifact, EventLayout, FwCfgFiles, INITRD_BYTES_MAX, Initrd, LAUNCH_DOCUMENT_BYTES_MAX, LaunchInputs,
    LaunchPlatform, LaunchSpec, Manifest, PolicyInputs, PredictedRegister, PredictedTd, Prediction, TdSource,
    acpi::{MachineShape, SmbiosInputs, TABLES_FILE_BYTES_MAX, TablesFile, measured_smbios},
    build_policy, measure,
};
use cocoon_verify::INTEL_SGX_ROOT_CA_PEM;
use serde::Serialize;

use super::{
    Exit,
    input::{now_s, read_bounded},
    output::{print_json, print_text, replace_file},
};

/// Predict MRTD and RTMR0 to RTMR2 of a launch, event by event, and write the policy for clients.
///
/// A register has several named values where the LaunchSpec does not pin what decides; the policy accepts each
/// of them.
#[derive(clap::Args)]
pub(crate) struct Predict {
    /// manifest.json of the image; firmware, kernel and root file system lie beside it and are checked.
    #[arg(long, value_name = "FILE")]
    manifest: PathBuf,
    /// LaunchSpec: TOML with platform, machine, vcpus and memory_mib; docs/PREDICTION.md has the other keys.
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,
    /// An initrd that QEMU gets with -initrd; Cocoon's own images have none.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// What QEMU hands the firmware of this machine, as `cocoon-measure acpi` writes it or a release publishes it;
    /// needed for platform = "tdx".
    #[arg(long, value_name = "FILE")]
    tables: Option<PathBuf>,
    /// The launch document, as `cocoon-launch document` writes it.
    #[arg(long, value_name = "FILE")]
    launch_document: Option<PathBuf>,
    /// The platform's root certificate, PEM. For a simulated platform the one in the launcher's state folder; for
    /// platform = "tdx" Intel's is built in, and this is refused.
    #[arg(long, value_name = "PEM")]
    root: Option<PathBuf>,
    /// Where to write the policy; an existing file is replaced. Needs --launch-document.
    #[arg(long, value_name = "FILE", requires = "launch_document")]
    policy_out: Option<PathBuf>,
    /// Print JSON of the schema cocoon.predict/1 instead of tables.
    #[arg(long)]
    json: bool,
    /// Add to the tables what each register and event means.
    #[arg(long)]
    explain: bool,
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

const SCHEMA: &str = "cocoon.predict/1";

pub(crate) fn run(arguments: &Predict) -> Result<Exit> {
    let manifest = Manifest::load(&arguments.manifest)?;
    let spec = LaunchSpec::load(&arguments.spec)?;
    let document = arguments
        .launch_document
        .as_deref()
        .map(read_document)
        .transpose()?;
    let td = spec.td()?;
    if spec.platform == LaunchPlatform::Snp {
        return snp::run(arguments, &manifest, &spec, document.as_deref());
    }
    let prediction = predict(arguments, &manifest, &spec)?;
    if let (Some(path), Some(document)) = (&arguments.policy_out, &document) {
        let policy = build_policy(PolicyInputs {
            prediction: &prediction,
            spec: &spec,
            launch_document: document,
            root_pem: &root_pem(arguments.root.as_deref(), spec.platform)?,
            number: arguments.number,
            expires_s: now_s()? + u64::from(arguments.expires_days) * 24 * 60 * 60,
            tcb_evaluation_number_min: arguments.tcb_evaluation_number_min,
        })
        .context("cannot make a policy")?;
        replace_file(path, policy.to_toml().as_bytes())?;
    }
    let output = Output {
        schema: SCHEMA,
        simulated: spec.platform == LaunchPlatform::Simulated,
        launch_document_sha384: document.as_deref().map(Digest48::of),
        prediction: &prediction,
        td,
    };
    if arguments.json {
        print_json(&output)?;
    } else {
        print_text(&text(&output, arguments.explain)?)?;
    }
    Ok(Exit::Done)
}

fn read_document(path: &Path) -> Result<Vec<u8>> {
    read_bounded(path, LAUNCH_DOCUMENT_BYTES_MAX).context("cannot use the launch document")
}

/// Reads and checks all files of the image, and measures them.
fn predict(arguments: &Predict, manifest: &Manifest, spec: &LaunchSpec) -> Result<Prediction> {
    let path = |artifact: &Artifact| Manifest::artifact_path(&arguments.manifest, artifact);
    let artifacts = &manifest.artifacts;
    let firmware = artifacts.firmware.read("firmware", &path(&artifacts.firmware))?;
    let kernel = artifacts.kernel.read("kernel", &path(&artifacts.kernel))?;
    artifacts.root.verify("root", &path(&artifacts.root))?;
    let initrd = arguments.initrd.as_deref().map(read_initrd).transpose()?;
    let tables = arguments
        .tables
        .as_deref()
        .map(|path| read_tables(path, spec))
        .transpose()?;
    let smbios = tables.as_ref().map(|tables| smbios(tables, spec)).transpose()?;
    Ok(measure(LaunchInputs {
        firmware: &firmware,
        kernel: &kernel,
        initrd,
        command_line: &manifest.command_line,
        spec,
        tables: tables.as_ref(),
        smbios: smbios.flatten(),
    })?)
}

fn read_initrd(path: &Path) -> Result<Initrd> {
    let bytes = read_bounded(path, INITRD_BYTES_MAX).context("cannot use the initrd")?;
    Ok(Initrd::of(&bytes))
}

/// The tables of this machine, from a file that may hold those of many.
fn read_tables(path: &Path, spec: &LaunchSpec) -> Result<FwCfgFiles> {
    let json = read_bounded(path, TABLES_FILE_BYTES_MAX).context("cannot use the tables")?;
    let attempt = || format!("cannot use {}", path.display());
    let file = TablesFile::parse(&json).with_context(attempt)?;
    let shape = MachineShape::of(spec)?;
    let machine = file.find(&shape, spec.qemu.version).with_context(attempt)?;
    Ok(machine.files.clone())
}

/// SHA-384 of what layout b measures of the tables; `None` for the other layouts.
pub(crate) fn smbios(tables: &FwCfgFiles, spec: &LaunchSpec) -> Result<Option<Digest48>> {
    let structures = tables.get(FwCfgFiles::SMBIOS_TABLES);
    let Some(structures) = structures.filter(|_| spec.firmware.layout == EventLayout::B) else {
        return Ok(None);
    };
    let measured = measured_smbios(SmbiosInputs {
        tables: structures,
        bios: spec.smbios.bios.as_ref(),
        processor: spec.smbios.processor,
    })
    .context("cannot predict the event of SMBIOS (layout = \"b\"); see [smbios] in the LaunchSpec")?;
    Ok(Some(Digest48::of(&measured)))
}

fn root_pem(path: Option<&Path>, platform: LaunchPlatform) -> Result<String> {
    match (platform, path) {
        (LaunchPlatform::Tdx, None) => Ok(INTEL_SGX_ROOT_CA_PEM.to_owned()),
        (LaunchPlatform::Tdx, Some(_)) => {
            bail!(
                "--root is for simulated platforms: quotes of a TDX machine end at Intel's root, which is built in"
            )
        }
        (_, Some(path)) => {
            let root = read_bounded(path, ROOT_BYTES_MAX).context("cannot use the root certificate")?;
            String::from_utf8(root).with_context(|| format!("{} is not PEM: not text", path.display()))
        }
        (_, None) => bail!("a policy for this platform needs --root, the platform's root certificate"),
    }
}

#[derive(Serialize)]
struct Output<'a> {
    schema: &'static str,
    simulated: bool,
    launch_document_sha384: Option<Digest48>,
    #[serde(flatten)]
    prediction: &'a Prediction,
    td: Option<PredictedTd>,
}

fn text(output: &Output<'_>, explain: bool) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    if output.simulated {
        writeln!(
            out,
            "SIMULATED platform: these values prove nothing about a machine\n"
        )?;
    }
    writeln!(out, "Measured: {}\n", output.prediction.firmware_layout)?;
    for (name, register) in output.prediction.registers.iter() {
        write_register(&mut out, name, register, explain)?;
    }
    if let Some(td) = output.td {
        write_td(&mut out, td)?;
    }
    if let Some(digest) = output.launch_document_sha384 {
        writeln!(out, "RTMR3, first event (launch document)\n  {digest}")?;
    }
    Ok(out)
}

fn write_td(out: &mut String, td: PredictedTd) -> std::fmt::Result {
    let from = match td.attributes_from {
        TdSource::LaunchSpec => "stated in [td]",
        TdSource::Default => "default: SEPT_VE_DISABLE alone",
        TdSource::Simulated => "the simulated TD's",
    };
    writeln!(out, "TD attributes  {}  {from}", td.attributes)?;
    match td.xfam {
        Some(xfam) => writeln!(out, "XFAM           {xfam}\n"),
        None => writeln!(
            out,
            "XFAM           not stated in [td]; a policy needs it, as it depends on the processor\n"
        ),
    }
}

fn write_register(
    out: &mut String,
    name: &str,
    register: &PredictedRegister,
    explain: bool,
) -> std::fmt::Result {
    let title = name.to_uppercase();
    if explain {
        writeln!(out, "{title}: {}", meaning(name))?;
    }
    for alternative in register.alternatives() {
        match alternative.name {
            "only" => writeln!(out, "{title}  {}", alternative.value)?,
            name => writeln!(out, "{title}  {}  {name}", alternative.value)?,
        }
        if explain {
            writeln!(out, "  if {}", alternative.when)?;
        }
        let width = |part: fn(&cocoon_measurements::PredictedEvent) -> usize| {
            alternative.events.iter().map(part).max().unwrap_or(0)
        };
        let (types, names) = (
            width(|event| event.type_name.len()),
            width(|event| event.name.len()),
        );
        for event in &alternative.events {
            let digest = event
                .digest
                .map_or("not measured".to_owned(), |digest| digest.to_string());
            writeln!(
                out,
                "  {:types$}  {:names$}  {digest}",
                event.type_name, event.name
            )?;
            if explain {
                writeln!(out, "  {:types$}  {:names$}  -> {}", "", "", event.value)?;
            }
        }
    }
    writeln!(out)
}

fn meaning(register: &str) -> &'static str {
    match register {
        "mrtd" => "the firmware, page by page, as the TDX module measured it before the guest ran",
        "rtmr0" => "the firmware's settings and the virtual hardware, measured by the firmware",
        "rtmr1" => "the kernel, measured by the firmware as it started it",
        _ => {
            "the command line (which holds the root file system's hash) and the initrd, measured by the kernel"
        }
    }
}
