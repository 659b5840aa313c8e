//! `acpi`: a QEMU and a LaunchSpec in, the tables that QEMU makes for that machine out.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use cocoon_evidence::Digest48;
use cocoon_measurements::{
    LaunchSpec,
    acpi::{Freshness, MachineShape, MachineTables, QemuBuild, ReadMethod, TableCache, TablesFile, generate},
};
use serde::Serialize;

use super::{
    Exit,
    output::{print_json, print_text, replace_file},
};

#[derive(clap::Args)]
pub(crate) struct Acpi {
    /// A stock QEMU of the version that boots the guest, `qemu-system-x86_64`. Needs neither KVM nor TDX.
    #[arg(long, value_name = "PATH")]
    qemu: PathBuf,
    /// LaunchSpec; several give one file with the tables of each machine.
    #[arg(long, value_name = "FILE", required = true)]
    spec: Vec<PathBuf>,
    /// Where to write the tables, for `predict --tables` and for others to use; an existing file is replaced.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Keep tables in this folder, and do not start QEMU for machines whose tables are there.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Give up on a QEMU that takes longer for one machine.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    limit_s: u64,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

const SCHEMA: &str = "cocoon.acpi/1";

#[derive(Serialize)]
struct Report<'a> {
    schema: &'static str,
    machines: Vec<Machine<'a>>,
}

#[derive(Serialize)]
struct Machine<'a> {
    spec: String,
    qemu: &'a QemuBuild,
    shape: &'a MachineShape,
    from_cache: bool,
    files: Vec<Item<'a>>,
}

#[derive(Serialize)]
struct Item<'a> {
    name: &'a str,
    bytes: usize,
    sha384: Digest48,
}

pub(crate) fn run(arguments: &Acpi) -> Result<Exit> {
    let mut file = TablesFile::default();
    let mut made = Vec::new();
    for path in &arguments.spec {
        let spec = LaunchSpec::load(path)?;
        let shape = MachineShape::of(&spec).with_context(|| path.display().to_string())?;
        let (tables, freshness) = tables(arguments, shape)?;
        file.machines.push(tables);
        made.push(freshness);
    }
    if let Some(out) = &arguments.out {
        replace_file(out, &file.to_json())?;
    }
    let specs = arguments.spec.iter().map(|path| path.display().to_string());
    let machines = specs.zip(&file.machines).zip(made);
    let report = Report {
        schema: SCHEMA,
        machines: machines
            .map(|((spec, tables), freshness)| report(spec, tables, freshness))
            .collect(),
    };
    if arguments.json {
        print_json(&report)?;
    } else {
        print_text(&text(&report))?;
    }
    Ok(Exit::Done)
}

fn tables(arguments: &Acpi, shape: MachineShape) -> Result<(MachineTables, Freshness)> {
    let limit = Duration::from_secs(arguments.limit_s);
    if let Some(folder) = &arguments.cache {
        return Ok(TableCache::new(folder).tables(&arguments.qemu, &shape, limit)?);
    }
    let tables = MachineTables {
        qemu: QemuBuild::of(&arguments.qemu)?,
        files: generate(&arguments.qemu, &shape, ReadMethod::Dma, limit)?,
        shape,
    };
    Ok((tables, Freshness::Made))
}

fn report(spec: String, tables: &MachineTables, freshness: Freshness) -> Machine<'_> {
    let item = |(name, bytes): (_, &[u8])| Item {
        name,
        bytes: bytes.len(),
        sha384: Digest48::of(bytes),
    };
    Machine {
        spec,
        qemu: &tables.qemu,
        shape: &tables.shape,
        from_cache: freshness == Freshness::Kept,
        files: tables.files.iter().map(item).collect(),
    }
}

fn text(report: &Report<'_>) -> String {
    let mut text = String::new();
    for machine in &report.machines {
        let shape = machine.shape;
        let kept = if machine.from_cache { " (kept)" } else { "" };
        let lines = format!(
            "{}: {} vCPUs, {} MiB, {} slots, PCI window at {} GiB, {} GiB long\n  {}{kept}\n",
            machine.spec,
            shape.vcpus,
            shape.memory_mib,
            shape.slots.len(),
            shape.window_gib,
            shape.hole64_gib,
            machine.qemu
        );
        text.push_str(&lines);
        for item in &machine.files {
            writeln!(text, "  {:<26} {:>7}  {}", item.name, item.bytes, item.sha384)
                .expect("writing to a string cannot fail");
        }
    }
    text
}
