//! `acpi`: a QEMU and a LaunchSpec in, the tables that QEMU makes for that machine out.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
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
    /// A stock QEMU of the version that boots the guest, `qemu-system-x86_64`. Needs neither KVM nor TDX. With
    /// several, the file has the tables that each of them makes.
    #[arg(long, value_name = "PATH", required = true)]
    qemu: Vec<PathBuf>,
    /// LaunchSpec, or a folder of them (`measurements/profiles` for a release); several give one file with the tables
    /// of each machine.
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
    for path in &specs(&arguments.spec)? {
        let spec = LaunchSpec::load(path)?;
        let shape = MachineShape::of(&spec).with_context(|| path.display().to_string())?;
        for qemu in &arguments.qemu {
            let (tables, freshness) = tables(arguments, qemu, shape.clone())?;
            file.machines.push(tables);
            made.push((path.display().to_string(), freshness));
        }
    }
    if let Some(out) = &arguments.out {
        replace_file(out, &file.to_json())?;
    }
    let machines = file.machines.iter().zip(made);
    let report = Report {
        schema: SCHEMA,
        machines: machines
            .map(|(tables, (spec, freshness))| report(spec, tables, freshness))
            .collect(),
    };
    if arguments.json {
        print_json(&report)?;
    } else {
        print_text(&text(&report))?;
    }
    Ok(Exit::Done)
}

/// The files, and in the place of each folder what is in it, by name: the same folder gives the same output.
fn specs(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut specs = Vec::new();
    for path in paths {
        if !path.is_dir() {
            specs.push(path.clone());
            continue;
        }
        let attempt = || format!("cannot list {}", path.display());
        let entries = path.read_dir().with_context(attempt)?;
        let mut found = entries
            .map(|entry| Ok(entry.with_context(attempt)?.path()))
            .collect::<Result<Vec<_>>>()?;
        found.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
        found.sort();
        ensure!(!found.is_empty(), "{} has no LaunchSpec (*.toml)", path.display());
        specs.extend(found);
    }
    Ok(specs)
}

fn tables(arguments: &Acpi, qemu: &Path, shape: MachineShape) -> Result<(MachineTables, Freshness)> {
    let limit = Duration::from_secs(arguments.limit_s);
    if let Some(folder) = &arguments.cache {
        return Ok(TableCache::new(folder).tables(qemu, &shape, limit)?);
    }
    let tables = MachineTables {
        qemu: QemuBuild::of(qemu)?,
        files: generate(qemu, &shape, ReadMethod::Dma, limit)?,
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
