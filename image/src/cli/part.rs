//! `cocoon-image part`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    thread,
};

use anyhow::Context as _;
use clap::ValueEnum;
use cocoon_image::{
    builder::BuilderRoot,
    crates,
    firmware::{FirmwarePlan, Platform},
    image,
    input::{Sources, hash_file},
    lock::Lock,
    program::{self, LockedPlaces},
    progress::Progress,
    publish::{WORK_PREFIX, remove_killed},
    recipe::{self, Linkage, Program},
};

use super::InputArguments;

const AGENT: &str = "cocoon-agent";

#[derive(Debug, clap::Args)]
pub(crate) struct PartArguments {
    /// Which part.
    part: Part,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Build even if the cache has it.
    #[arg(long)]
    fresh: bool,
    /// How many compilers run at a time; the result does not depend on it [default: one for each core].
    #[arg(long)]
    jobs: Option<usize>,
    #[command(flatten)]
    inputs: InputArguments,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Part {
    /// The agent, as release images have it: without the simulated platform.
    Agent,
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
    let making = Making {
        arguments,
        source: &source,
        lock: &lock,
        sources: &sources,
        builder: &builder,
        progress: &progress,
    };
    match arguments.part {
        Part::Agent => making.agent()?,
        Part::FirmwareTdx => making.firmware(Platform::Tdx)?,
        Part::FirmwareSnp => making.firmware(Platform::Snp)?,
        Part::FirmwarePlain => making.firmware(Platform::Plain)?,
    }
    let (bytes, sha256) = hash_file(&arguments.out).context("cannot read what was written")?;
    progress.stage(&format!("{}: {bytes} bytes", arguments.out.display()));
    println!("builder root {}", builder.digest);
    println!("sha256       {sha256}");
    Ok(())
}

/// What every part is made with.
struct Making<'a> {
    arguments: &'a PartArguments,
    source: &'a Path,
    lock: &'a Lock,
    sources: &'a Sources,
    builder: &'a BuilderRoot,
    progress: &'a Progress,
}

impl Making<'_> {
    fn firmware(&self, platform: Platform) -> anyhow::Result<()> {
        let plan = FirmwarePlan::new(platform, self.lock, self.builder, self.source)?;
        let cached = plan.cached(&self.sources.cache);
        let made = match cached.filter(|_| !self.arguments.fresh) {
            Some(path) => path,
            None => {
                self.progress
                    .stage("firmware: compiling, about 4 minutes on two cores");
                plan.build(self.sources, self.builder, self.jobs())?
            }
        };
        self.deliver(&made)
    }

    /// Always compiled whole: cargo would trust what an earlier run left.
    fn agent(&self) -> anyhow::Result<()> {
        let cache = &self.sources.cache;
        let home = program::cargo_home();
        self.progress.stage("agent: checking and unpacking crates");
        let crates = crates::vendor(self.source, &home, cache)?;
        let agents = cache.join("agent");
        let unusable = || format!("cannot use {}", agents.display());
        fs::create_dir_all(&agents).with_context(unusable)?;
        remove_killed(&agents).with_context(unusable)?;
        let work = tempfile::Builder::new().prefix(WORK_PREFIX).tempdir_in(&agents);
        let build = work.with_context(unusable)?;
        let log = agents.join("build.log");
        fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
        let program = Program {
            path: "/init".into(),
            package: AGENT.into(),
            features: vec![],
            linkage: Linkage::Static,
        };
        let places = LockedPlaces {
            source: self.source,
            crates: &crates,
            build: build.path(),
            jobs: self.jobs(),
        };
        self.progress
            .stage("agent: compiling, about 4 minutes on two cores");
        let made = program::compile_locked(&program, self.builder, places, &log)
            .with_context(|| format!("the agent was not built; the whole log is {}", log.display()))?;
        self.deliver(&made)
    }

    /// Under its name only when it is complete.
    fn deliver(&self, made: &Path) -> anyhow::Result<()> {
        let out = std::path::absolute(&self.arguments.out).context("--out")?;
        let failed = || format!("cannot write {}", out.display());
        let folder = out.parent().with_context(failed)?;
        let new = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
        fs::copy(made, new.path()).with_context(failed)?;
        new.persist(&out).with_context(failed)?;
        Ok(())
    }

    fn jobs(&self) -> usize {
        let all = || thread::available_parallelism().map_or(1, usize::from);
        self.arguments.jobs.unwrap_or_else(all)
    }
}
