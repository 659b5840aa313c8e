//! The bill of materials of an image: which foreign code is in it, as a CycloneDX document.
//!
//! It follows from the image's manifest and the source tree that the image was built from, whose lock files the
//! manifest names by hash. Crates, packages and sources are in it under the hashes of what was fetched, so that
//! one can look for a version with a known flaw, or for a file. The same image gives the same document.

mod crates;
pub mod cyclonedx;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use cocoon_evidence::Digest32;
use cocoon_measurements::{DebianPackage, ImageProfile, Manifest, ManifestError, Origin};

use self::{
    crates::{Closure, CrateId, closure},
    cyclonedx::{Bom, Component, Dependency, Kind, Scope},
};
use crate::{
    command::CommandError,
    crates::{CratesError, checksums},
    input::hash_file,
    kernel::{KERNEL_SOURCE, is_patch},
    lock::{self, Lock, LockError, LockedInput, Wheel},
    recipe::{self, Recipe, RecipeError},
};

const IMAGE: &str = "image";
const RUST: &str = "rust-std";
/// Inputs of the lock that become firmware.
const FIRMWARE_SOURCES: [&str; 2] = ["edk2", "edk2-debian"];
const TORCH: &str = "torch";
/// The manifest's name for what is out of torch's wheel.
const LIBTORCH: &str = "libtorch";

/// Why there is no bill of materials.
#[derive(Debug, thiserror::Error)]
pub enum SbomError {
    /// The manifest.
    #[error("there is no usable image in {}", folder.display())]
    Manifest {
        /// Of the image.
        folder: PathBuf,
        /// Why.
        source: Box<ManifestError>,
    },
    /// The manifest does not say what the image was built from.
    #[error(
        "the manifest names no origin, so nobody knows which source it was built from; build the image again"
    )]
    NoOrigin,
    /// The source tree is another one.
    #[error(
        "the image was built with another {} than this source tree's (SHA-256 {expected}, here {found}); check out \
         {commit} and try again",
        path.display()
    )]
    OtherSource {
        /// Which file differs.
        path: PathBuf,
        /// The manifest's hash.
        expected: Digest32,
        /// The file's hash.
        found: Digest32,
        /// What has to be checked out.
        commit: Box<str>,
    },
    /// A file of the source tree.
    #[error("cannot read {}; is --source the root of Cocoon's source tree?", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `image.lock`.
    #[error("the image's inputs are not known")]
    Lock(#[from] LockError),
    /// The recipe.
    #[error("the image's programs are not known")]
    Recipe(#[from] RecipeError),
    /// `Cargo.lock`.
    #[error("the checksums of the crates are not known")]
    Checksums(#[from] CratesError),
    /// Cargo.
    #[error("cargo does not say which crates {package} is compiled from")]
    Crates {
        /// The program.
        package: String,
        /// Why.
        source: CommandError,
    },
}

/// The bill of materials of the image in `folder`, built from the tree in `source`.
///
/// # Errors
/// See [`SbomError`].
pub fn sbom(folder: &Path, source: &Path) -> Result<Bom, SbomError> {
    let manifest = Manifest::load(&folder.join("manifest.json")).map_err(|source| SbomError::Manifest {
        folder: folder.to_owned(),
        source: Box::new(source),
    })?;
    let origin = manifest.origin.as_ref().ok_or(SbomError::NoOrigin)?;
    check_source(origin, source)?;
    let lock = Lock::load(source)?;
    let mut parts = Parts::default();
    parts.add_sources(&manifest, origin, &lock);
    parts.add_programs(&manifest, source)?;
    parts.add_libraries(&manifest, &lock);
    if manifest.profile == ImageProfile::Gpu {
        parts.add_gpu_inputs(&manifest, &lock);
    }
    Ok(parts.finish(&manifest, origin))
}

fn check_source(origin: &Origin, source: &Path) -> Result<(), SbomError> {
    for (path, expected) in [
        (lock::path(source), origin.image_lock),
        (source.join("Cargo.lock"), origin.cargo_lock),
    ] {
        let hashed = hash_file(&path);
        let (_, found) = hashed.map_err(|source| SbomError::File {
            path: path.clone(),
            source,
        })?;
        if found != expected {
            let commit = origin.commit.as_ref();
            let commit = commit.map_or("the commit it was built from".into(), |commit| {
                format!("commit {}", commit.id).into()
            });
            return Err(SbomError::OtherSource {
                path,
                expected,
                found,
                commit,
            });
        }
    }
    Ok(())
}

/// What is collected, by reference.
#[derive(Debug, Default)]
struct Parts {
    components: BTreeMap<String, Component>,
    needs: BTreeMap<String, BTreeSet<String>>,
}

impl Parts {
    /// Returns the reference.
    fn add(&mut self, component: Component) -> String {
        let (reference, kind, scope) = (component.reference.clone(), component.kind, component.scope);
        let known = self.components.entry(reference.clone()).or_insert(component);
        // Used to make one thing and a part of another: it is in the image, as what it is there.
        if scope == Scope::Required {
            (known.kind, known.scope) = (kind, scope);
        }
        reference
    }

    fn need(&mut self, of: &str, what: &str) {
        self.needs
            .entry(of.to_owned())
            .or_default()
            .insert(what.to_owned());
    }

    /// The files that QEMU is given, and what they were compiled from as far as the lock decides it.
    fn add_sources(&mut self, manifest: &Manifest, origin: &Origin, lock: &Lock) {
        for (name, artifact) in manifest.artifacts.named() {
            let file = Component::new(Kind::File, format!("file:{}", artifact.file), &artifact.file);
            let file = self.add(file.hashed(artifact.sha256));
            self.need(IMAGE, &file);
            let sources = lock.sources.iter().filter(|input| match name {
                "kernel" => input.name == KERNEL_SOURCE,
                // An image that was built without the builder root has the building machine's firmware.
                "root" => false,
                _ => origin.builder_root.is_some() && FIRMWARE_SOURCES.contains(&input.name.as_str()),
            });
            for input in sources {
                let source = if name == "kernel" {
                    self.patched(locked(Kind::OperatingSystem, input), manifest)
                } else {
                    locked(Kind::Firmware, input)
                };
                let source = self.add(source);
                self.need(&file, &source);
            }
        }
        let tools = lock
            .builder
            .packages
            .iter()
            .filter(|_| origin.builder_root.is_some());
        for package in tools {
            self.add(Component {
                scope: Scope::Excluded,
                ..locked(Kind::Application, package)
            });
        }
        let rust = Component::new(Kind::Library, RUST.into(), RUST);
        let rust = Component {
            version: Some(lock.rust.version.clone()),
            ..rust
        };
        let rust = rust.with("cocoon:tree-sha256", lock.rust.tree_sha256.to_string());
        self.add(rust);
    }

    /// The kernel's source with what the manifest says that was changed in it; each patch is a component, too, with its
    /// hash.
    fn patched(&mut self, mut kernel: Component, manifest: &Manifest) -> Component {
        for (name, sha256) in manifest.inputs.iter().filter(|(name, _)| is_patch(name)) {
            let path = format!("{}/{name}", recipe::FOLDER);
            let patch = Component::new(Kind::File, format!("recipe:{name}"), &path);
            let patch = self.add(patch.hashed(*sha256));
            self.need(&kernel.reference, &patch);
            kernel.add_patch(path);
        }
        kernel
    }

    fn add_programs(&mut self, manifest: &Manifest, source: &Path) -> Result<(), SbomError> {
        let checksums = checksums(source)?;
        let root = root_file(manifest);
        for program in Recipe::load(source, manifest.profile)?.programs {
            let crates = closure(&program, source).map_err(|source| SbomError::Crates {
                package: program.package.clone(),
                source,
            })?;
            self.add_crates(&crates, &checksums);
            let Some(id) = crates.linked.keys().find(|(name, _)| *name == program.package) else {
                continue;
            };
            let reference = reference(id, &checksums);
            self.need(&root, &reference);
            self.need(&reference, RUST);
            if let Some(component) = self.components.get_mut(&reference) {
                component.kind = Kind::Application;
                component.add_file(&program.path);
            }
        }
        Ok(())
    }

    fn add_crates(&mut self, crates: &Closure, checksums: &BTreeMap<CrateId, Digest32>) {
        for (id, needs) in &crates.linked {
            let user = self.add(component(id, checksums));
            for needed in needs {
                self.need(&user, &reference(needed, checksums));
            }
        }
        for id in &crates.build_only {
            self.add(Component {
                scope: Scope::Excluded,
                ..component(id, checksums)
            });
        }
    }

    /// Files of the root that were not compiled from this workspace.
    fn add_libraries(&mut self, manifest: &Manifest, lock: &Lock) {
        let root = root_file(manifest);
        let programs: BTreeSet<String> = self.components.values().map(|one| one.name.clone()).collect();
        for entry in &manifest.files {
            if entry.source == "recipe" || programs.contains(&entry.source) {
                continue;
            }
            let torch = lock.sources.iter().find(|input| input.name == TORCH);
            let component = match (entry.source.as_str(), torch, &entry.package) {
                (LIBTORCH, Some(wheel), _) => locked(Kind::Library, wheel),
                (_, _, Some(package)) => self::package(package),
                (source, ..) => Component::new(Kind::Library, format!("source:{source}"), source),
            };
            let reference = self.add(component);
            self.need(&root, &reference);
            if let Some(component) = self.components.get_mut(&reference) {
                component.add_file(&entry.path);
            }
        }
    }

    /// What the root's driver and CUDA's libraries were taken out of. Which of the wheels a library was in, no manifest
    /// says.
    fn add_gpu_inputs(&mut self, manifest: &Manifest, lock: &Lock) {
        let given = lock.gpu.given.iter().map(|input| {
            let reference = format!("given:{}", input.name);
            let component = Component::new(Kind::Library, reference, &input.name);
            let component = Component {
                version: Some(input.version.clone()),
                ..component
            };
            component
                .hashed(input.sha256)
                .with("cocoon:file", input.file.as_str())
        });
        let wheels = lock.gpu.sources.iter().map(|wheel| locked(Kind::Library, wheel));
        for component in given.chain(wheels) {
            let reference = self.add(component);
            self.need(&root_file(manifest), &reference);
        }
    }

    fn finish(mut self, manifest: &Manifest, origin: &Origin) -> Bom {
        let profile = match manifest.profile {
            ImageProfile::Dev => "dev",
            ImageProfile::Cpu => "cpu",
            ImageProfile::Gpu => "gpu",
        };
        let image = Component::new(
            Kind::OperatingSystem,
            IMAGE.into(),
            &format!("cocoon-guest-{profile}"),
        );
        let image = Component {
            version: Some(manifest.root_verity.root_hash.to_string()),
            ..image
        };
        let builder = origin
            .builder_root
            .map_or("own compilers".into(), |root| root.to_string());
        let mut image = image.with("cocoon:builder-root", builder);
        if let Some(commit) = &origin.commit {
            let clean = if commit.clean { "" } else { ", changed since" };
            image = image.with("cocoon:commit", format!("{}{clean}", commit.id));
        }
        for reference in self.components.keys() {
            self.needs.entry(reference.clone()).or_default();
        }
        let dependencies = self.needs.into_iter().map(|(reference, depends_on)| Dependency {
            reference,
            depends_on: depends_on.into_iter().collect(),
        });
        Bom::new(
            image,
            self.components.into_values().collect(),
            dependencies.collect(),
        )
    }
}

fn root_file(manifest: &Manifest) -> String {
    format!("file:{}", manifest.artifacts.root.file)
}

/// Something that the lock names.
fn locked(kind: Kind, input: &LockedInput) -> Component {
    let component = match input.kind {
        lock::Kind::Wheel => {
            let wheel = Wheel::parse(&input.file).expect("the lock was checked");
            let name = wheel.name.replace('_', "-");
            Component::package(kind, "pypi", &name, &input.version, "")
        }
        lock::Kind::Debian => {
            let name = input.file.split('_').next().unwrap_or(&input.name);
            let qualifiers = format!("?arch={}&distro=debian", input.arch);
            Component::package(kind, "deb/debian", name, &input.version, &qualifiers)
        }
    };
    component
        .hashed(input.sha256)
        .with("cocoon:file", input.file.as_str())
}

/// A Debian package with files in the root. One of the builder root's has its hash from there; those of the machine that
/// made a dev image are not locked, and nobody knows which file they were installed from.
fn package(package: &DebianPackage) -> Component {
    let DebianPackage { name, version } = package;
    Component::package(
        Kind::Library,
        "deb/debian",
        name,
        version,
        "?arch=amd64&distro=debian",
    )
}

fn component(id: &CrateId, checksums: &BTreeMap<CrateId, Digest32>) -> Component {
    let (name, version) = id;
    match checksums.get(id) {
        Some(sha256) => Component::package(Kind::Library, "cargo", name, version, "").hashed(*sha256),
        None => Component {
            version: Some(version.clone()),
            ..Component::new(Kind::Library, reference(id, checksums), name)
        },
    }
}

/// The workspace's own crates have no checksum and are published nowhere.
fn reference(id: &CrateId, checksums: &BTreeMap<CrateId, Digest32>) -> String {
    let (name, version) = id;
    match checksums.get(id) {
        Some(_) => Component::package(Kind::Library, "cargo", name, version, "").reference,
        None => format!("workspace:{name}"),
    }
}

#[cfg(test)]
mod tests;
