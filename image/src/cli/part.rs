//! `cocoon-image part`.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::ValueEnum;
use cocoon_image::{
    builder::BuilderRoot,
    image,
    input::hash_file,
    lock::Lock,
    progress::Progress,
    recipe::{self, Linkage, Program, Recipe},
    workshop::{Platform, Workshop},
};
use cocoon_measurements::ImageProfile;

use super::{InputArguments, WorkArguments, print_line};

#[derive(Debug, clap::Args)]
pub(crate) struct PartArguments {
    /// Which part.
    part: Part,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    work: WorkArguments,
    #[command(flatten)]
    inputs: InputArguments,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Part {
    /// The agent, as release images have it: without the simulated platform.
    Agent,
    /// The kernel, as release images have it: nothing that prints.
    Kernel,
    /// The kernel of images for GPUs, which loads modules of the root.
    KernelGpu,
    /// The engine, linked to libtorch.
    Engine,
    /// UEFI firmware for Intel TDX.
    FirmwareTdx,
    /// UEFI firmware for AMD SEV-SNP.
    FirmwareSnp,
    /// UEFI firmware for machines without either, which measures into a TPM.
    FirmwarePlain,
}

pub(crate) fn part(arguments: &PartArguments) -> anyhow::Result<()> {
    let progress = Progress::start();
    let source = arguments.inputs.source()?;
    let lock = Lock::load(&source)?;
    let sources = arguments.inputs.sources(&lock)?;
    let _cache = image::lock_cache(&sources.cache, &progress)?;
    let helper = env::current_exe().context("cannot find this program itself")?;
    let wanted = recipe::builder(&source)?;
    let builder = BuilderRoot::prepare(&lock, &wanted, &sources, &helper, &progress)?;
    progress.stage("builder root: ready");
    let workshop = Workshop {
        source: &source,
        lock: &lock,
        sources: &sources,
        builder: &builder,
        jobs: arguments.work.jobs(),
        fresh: arguments.work.fresh,
        progress: &progress,
    };
    workshop.sweep()?;
    let out = &arguments.out;
    match arguments.part {
        Part::Agent => deliver(&workshop.program(&agent(), None)?.path, out)?,
        Part::Kernel => deliver(&kernel(&workshop, ImageProfile::Cpu)?, out)?,
        Part::KernelGpu => deliver(&kernel(&workshop, ImageProfile::Gpu)?, out)?,
        Part::Engine => {
            let libtorch = workshop.libtorch()?.path;
            deliver(&workshop.program(&engine(), Some(&libtorch))?.path, out)?;
        }
        Part::FirmwareTdx => deliver(&workshop.firmware(Platform::Tdx)?.path, out)?,
        Part::FirmwareSnp => deliver(&workshop.firmware(Platform::Snp)?.path, out)?,
        Part::FirmwarePlain => deliver(&workshop.firmware(Platform::Plain)?.path, out)?,
    }
    let (bytes, sha256) = hash_file(&arguments.out).context("cannot read what was written")?;
    progress.stage(&format!("{}: {bytes} bytes", arguments.out.display()));
    print_line(format_args!("builder root {}", builder.digest))?;
    print_line(format_args!("sha256       {sha256}"))
}

fn kernel(workshop: &Workshop, profile: ImageProfile) -> anyhow::Result<PathBuf> {
    let recipe = Recipe::load(workshop.source, profile)?;
    Ok(workshop.kernel(&recipe.kernel)?.path)
}

fn agent() -> Program {
    Program {
        path: "/init".into(),
        package: "cocoon-agent".into(),
        features: vec![],
        linkage: Linkage::Static,
    }
}

fn engine() -> Program {
    Program {
        path: "/usr/bin/cocoon-engine".into(),
        package: "cocoon-engine".into(),
        features: vec![],
        linkage: Linkage::Dynamic,
    }
}

/// Under its name only when it is complete.
fn deliver(made: &Path, out: &Path) -> anyhow::Result<()> {
    let out = std::path::absolute(out).context("--out")?;
    let failed = || format!("cannot write {}", out.display());
    let folder = out.parent().with_context(failed)?;
    let new = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
    fs::copy(made, new.path()).with_context(failed)?;
    new.persist(&out).with_context(failed)?;
    Ok(())
}
