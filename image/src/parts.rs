//! The parts that an image is put together from, made by whoever the recipe names: this machine's compilers for dev
//! images, the builder root for those that others have to get the same bytes of.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use cocoon_evidence::Digest32;
use cocoon_measurements::ImageProfile;

use crate::{
    builder::BuilderRoot,
    image::{BuildError, Request, file_error},
    input::hash_file,
    interrupt,
    kernel::{Ingredients, KernelError, KernelPlan},
    lock::Lock,
    package::Packages,
    program,
    progress::Progress,
    recipe::{self, BUILDER, CUDA, LIBTORCH, LibraryFolder, Linkage, NVIDIA, Recipe},
    workshop::{Compiled, Made, Platform, Workshop},
};

/// Everything that goes into an image, as files of this machine.
#[derive(Debug)]
pub struct Parts {
    /// UEFI firmware.
    pub firmware: PathBuf,
    /// The same for SEV-SNP, if that is another.
    pub firmware_snp: Option<PathBuf>,
    /// The kernel.
    pub kernel: PathBuf,
    /// In the recipe's order.
    pub programs: Vec<PathBuf>,
    /// In the recipe's order.
    pub files: Vec<PathBuf>,
    /// Where the libraries that the programs need are looked for.
    pub libraries: Vec<LibraryFolder>,
    /// Whose packages those of Debian are from.
    pub packages: Packages,
    /// What decided the bytes of firmware and kernel.
    pub inputs: BTreeMap<String, Digest32>,
    /// Of the root that everything was compiled in, if one was.
    pub builder_root: Option<Digest32>,
    _compiled: Vec<Compiled>,
}

impl Parts {
    /// Makes the parts of a recipe, or takes them from the cache. The caller holds the cache's lock.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn make(
        recipe: &Recipe,
        lock: &Lock,
        request: &Request,
        progress: &Progress,
    ) -> Result<Self, BuildError> {
        match &recipe.parts {
            recipe::Parts::Here { firmware } => here(recipe, lock, request, progress, firmware),
            recipe::Parts::InBuilderRoot => in_builder_root(recipe, lock, request, progress),
        }
    }
}

fn here(
    recipe: &Recipe,
    lock: &Lock,
    request: &Request,
    progress: &Progress,
    firmware: &Path,
) -> Result<Parts, BuildError> {
    let places = &request.places;
    if !places.libtorch.join("lib").is_dir() {
        return Err(BuildError::NoLibtorch {
            path: places.libtorch.clone(),
        });
    }
    let (_, firmware_sha256) = hash_file(firmware).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => BuildError::NoFirmware {
            path: firmware.to_owned(),
        },
        _ => file_error(firmware, source),
    })?;
    let ingredients = Ingredients::load(&places.source, lock, &recipe.kernel).map_err(KernelError::from)?;
    let plan = KernelPlan::new(ingredients)?;
    let kernel = match plan.cached(&places.cache) {
        Some(path) => path,
        None => {
            progress.stage("kernel: unpacking and compiling, about 6 minutes on two cores");
            plan.build(&request.inputs, &places.cache, request.jobs)?
        }
    };
    progress.stage("kernel: ready");
    let mut inputs = plan.inputs();
    inputs.insert("firmware".into(), firmware_sha256);
    let mut programs = Vec::new();
    for program in &recipe.programs {
        progress.stage(&format!("{}: compiling what has changed", program.package));
        let built = program::compile(program, places);
        programs.push(built.map_err(|source| BuildError::Program {
            package: program.package.clone(),
            source,
        })?);
    }
    Ok(Parts {
        firmware: firmware.to_owned(),
        firmware_snp: None,
        kernel,
        programs,
        files: files(recipe, &[(LIBTORCH, &places.libtorch)]),
        libraries: folders(recipe, &[(LIBTORCH, &places.libtorch)]),
        packages: Packages::Installed,
        inputs,
        builder_root: None,
        _compiled: vec![],
    })
}

fn in_builder_root(
    recipe: &Recipe,
    lock: &Lock,
    request: &Request,
    progress: &Progress,
) -> Result<Parts, BuildError> {
    let source = &request.places.source;
    let wanted = recipe::builder(source)?;
    let builder = BuilderRoot::prepare(lock, &wanted, &request.inputs, &request.helper, progress)?;
    progress.stage("builder root: ready");
    let workshop = Workshop {
        source,
        lock,
        sources: &request.inputs,
        builder: &builder,
        jobs: request.jobs,
        fresh: request.fresh,
        progress,
    };
    workshop.sweep()?;
    // Linking whole programs, and edk2's own steps, keep one processor busy: so two halves are made at once, which
    // take about as long as each other.
    let programs_and_snp = || {
        let libtorch = workshop.libtorch()?;
        let mut compiled = Vec::new();
        for program in &recipe.programs {
            // A program that brings its C library along cannot load others.
            let libtorch = (program.linkage == Linkage::Dynamic).then_some(libtorch.path.as_path());
            compiled.push(workshop.program(program, libtorch)?);
        }
        Ok::<_, BuildError>((libtorch, compiled, workshop.firmware(Platform::Snp)?))
    };
    let kernel_and_tdx = || {
        let kernel = workshop.kernel(&recipe.kernel)?;
        let driver = match request.profile {
            ImageProfile::Gpu => Some((workshop.driver(&kernel)?, workshop.cuda()?)),
            _ => None,
        };
        Ok((kernel, driver, workshop.firmware(Platform::Tdx)?))
    };
    let ((libtorch, compiled, snp), (kernel, driver, tdx)) =
        interrupt::at_once(programs_and_snp, kernel_and_tdx)?;
    let mut inputs = BTreeMap::from([("builder root".to_owned(), builder.digest)]);
    let mut keep = |made: Made| {
        inputs.extend(made.inputs);
        made.path
    };
    let (libtorch, kernel) = (keep(libtorch), keep(kernel));
    let (firmware, firmware_snp) = (keep(tdx), keep(snp));
    let mut places = vec![(LIBTORCH, libtorch), (BUILDER, builder.folder().to_owned())];
    if let Some((driver, cuda)) = driver {
        places.extend([(NVIDIA, keep(driver)), (CUDA, keep(cuda))]);
    }
    Ok(Parts {
        firmware,
        firmware_snp: Some(firmware_snp),
        kernel,
        programs: compiled.iter().map(|program| program.path.clone()).collect(),
        files: files(recipe, &places),
        libraries: folders(recipe, &places),
        packages: Packages::of_builder(lock, &request.inputs, builder.folder())?,
        inputs,
        builder_root: Some(builder.digest),
        _compiled: compiled,
    })
}

/// The recipe's library folders on this machine.
fn folders(recipe: &Recipe, places: &[(&str, impl AsRef<Path>)]) -> Vec<LibraryFolder> {
    let folders = recipe.libraries.iter().map(|library| LibraryFolder {
        name: library.name.clone(),
        folder: on_this_machine(&library.folder, places),
        strip: library.strip,
    });
    folders.collect()
}

fn files(recipe: &Recipe, places: &[(&str, impl AsRef<Path>)]) -> Vec<PathBuf> {
    let files = recipe.files.iter();
    files
        .map(|file| on_this_machine(&file.from, places).into())
        .collect()
}

/// A recipe's path with the folder that its first word stands for.
fn on_this_machine(path: &str, places: &[(&str, impl AsRef<Path>)]) -> String {
    places.iter().fold(path.to_owned(), |path, (word, folder)| {
        path.replace(word, &folder.as_ref().to_string_lossy())
    })
}
