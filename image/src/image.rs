//! Puts an image together: kernel, programs, libraries, root file system, firmware, manifest.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use cocoon_evidence::Digest32;
use cocoon_measurements::{
    Artifact, Artifacts, FileEntry, FileMode, ImageProfile, Manifest, ManifestError, VerityTree,
};

use crate::{
    builder::BuilderError,
    command::CommandError,
    erofs::{PathError, WriteError},
    given::GivenError,
    input::Sources,
    interrupt,
    kernel::KernelError,
    library::LibraryError,
    lock::{Lock, LockError},
    origin::{self, OriginError},
    package::PackageError,
    parts::Parts,
    program::Places,
    progress::Progress,
    publish::{self, PublishError, Staging, make_readable},
    recipe::{Recipe, RecipeError},
    root::Root,
    workshop::PartError,
};

/// Changes when this program makes another image from the same inputs.
const METHOD: &str = "cocoon-image-1";
const SECTORS_PER_BLOCK: u64 = 8;
/// Waiting in the kernel would not end when this program is told to end.
const LOCK_POLL: Duration = Duration::from_millis(200);

/// What to build, from where, to where.
#[derive(Debug)]
pub struct Request {
    /// Which image.
    pub profile: ImageProfile,
    /// The folder that the image appears as.
    pub out: PathBuf,
    /// Source tree, cache and libtorch.
    pub places: Places,
    /// Where locked inputs come from.
    pub inputs: Sources,
    /// The program that enters the builder root: see [`crate::sandbox::Sandbox::helper`].
    pub helper: PathBuf,
    /// How many compilers run at a time for a part; no result depends on it.
    pub jobs: usize,
    /// Make again what the cache has.
    pub fresh: bool,
}

/// How a build ended well.
#[derive(Debug)]
pub enum Outcome {
    /// A new image is there.
    Built(Box<Manifest>),
    /// The image that is there was made from the same inputs.
    Unchanged,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The recipe.
    #[error("the recipe cannot be used")]
    Recipe(#[from] RecipeError),
    /// The lock.
    #[error("the image's lock cannot be used")]
    Lock(#[from] LockError),
    /// What whoever builds has to bring.
    #[error("the image cannot be built here")]
    Given(#[from] GivenError),
    /// The kernel.
    #[error("there is no kernel")]
    Kernel(#[from] KernelError),
    /// The builder root.
    #[error("there is no builder root")]
    Builder(#[from] BuilderError),
    /// A part made in the builder root.
    #[error("a part was not made")]
    Part(#[from] PartError),
    /// A program of the guest.
    #[error("{package} was not built")]
    Program {
        /// The crate.
        package: String,
        /// Why.
        source: CommandError,
    },
    /// libtorch is not where it should be.
    #[error("no libtorch at {}; make it with scripts/libtorch, or name its folder in LIBTORCH", path.display())]
    NoLibtorch {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The firmware is not there.
    #[error("no firmware at {}; on Debian: apt-get install ovmf", path.display())]
    NoFirmware {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A shared library.
    #[error("the root's libraries cannot be put together")]
    Library(#[from] LibraryError),
    /// The package of a shared library.
    #[error("nobody knows which package a library of the root is from")]
    Package(#[from] PackageError),
    /// The version of strip.
    #[error("strip cannot be asked for its version")]
    Strip(#[source] CommandError),
    /// Two things want the same place, or a bad path is in the recipe.
    #[error("the recipe's root is contradictory")]
    Path(#[from] PathError),
    /// The root file system.
    #[error("the root file system was not written")]
    Root(#[from] WriteError),
    /// A file of this machine.
    #[error("cannot use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The result contradicts itself: a bug or a bad command line in the recipe.
    #[error("the manifest would be refused by its readers")]
    Manifest(#[from] ManifestError),
    /// Where the image comes from, or what it measures to.
    #[error("the manifest cannot be completed")]
    Origin(#[from] OriginError),
    /// The result cannot be put under its name.
    #[error("the image cannot be put into its place")]
    Publish(#[from] PublishError),
}

impl BuildError {
    /// Something is not installed or not at hand: nothing is wrong with the sources.
    pub fn is_missing_input(&self) -> bool {
        matches!(
            self,
            Self::NoLibtorch { .. } | Self::NoFirmware { .. } | Self::Library(LibraryError::Missing { .. })
        )
    }
}

/// Builds the image, or finds that the one in place is what would be built.
///
/// # Errors
/// See [`BuildError`]. What was under `request.out` before is then still there.
pub fn build(request: &Request, progress: &Progress) -> Result<Outcome, BuildError> {
    let Places { source, cache, .. } = &request.places;
    let recipe = Recipe::load(source, request.profile)?;
    let lock = Lock::load(source)?;
    // Before half an hour of compiling that would be of no use without it.
    for input in lock.given(request.profile) {
        input.find(&request.inputs)?;
    }
    // One build at a time for each cache; released when the file is closed.
    let _lock = lock_cache(cache, progress)?;

    let parts = Parts::make(&recipe, &lock, request, progress)?;
    progress.stage("root: collecting what the programs need");
    let root = Root::collect(&recipe, &parts, cache)?;
    let mut inputs = parts.inputs.clone();
    inputs.extend(root.inputs.clone());
    let text = Digest32::of(recipe.command_line.as_bytes());
    inputs.insert("command line".into(), text);
    inputs.insert("image method".into(), Digest32::of(METHOD.as_bytes()));
    let input_digest = input_digest(&inputs);
    if let Some(manifest) = current(&request.out, request.profile, input_digest) {
        origin::refresh(source, &request.out, manifest, parts.builder_root)?;
        return Ok(Outcome::Unchanged);
    }

    progress.stage("root: writing the file system and its hash tree");
    let manifest = assemble(request, &recipe, &parts, &root, inputs, input_digest)?;
    Ok(Outcome::Built(Box::new(manifest)))
}

fn assemble(
    request: &Request,
    recipe: &Recipe,
    parts: &Parts,
    root: &Root,
    inputs: BTreeMap<String, Digest32>,
    input_digest: Digest32,
) -> Result<Manifest, BuildError> {
    let staging = Staging::beside(&request.out)?;
    let place = |name: &str| staging.path().join(name);
    let copy = |from: &Path, name: &str| {
        let to = place(name);
        fs::copy(from, &to).map_err(|source| file_error(&to, source))?;
        let artifact = Artifact::of_file(&to).map_err(|source| file_error(&to, source))?;
        // Both come from folders whose files may be read-only or executable.
        fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .map_err(|source| file_error(&to, source))?;
        Ok::<_, BuildError>(artifact)
    };
    let firmware = copy(&parts.firmware, "firmware.fd")?;
    let firmware_snp = parts.firmware_snp.as_ref();
    let firmware_snp = firmware_snp
        .map(|path| copy(path, "firmware-snp.fd"))
        .transpose()?;
    let kernel = copy(&parts.kernel, "kernel")?;
    let path = place("root.img");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .and_then(|file| make_readable(&file).map(|()| file))
        .map_err(|source| file_error(&path, source))?;
    let (sealed, entries) = root.tree.write(file, "root")?;
    let files = entries.into_iter().map(|entry| FileEntry {
        source: root.sources.get(&entry.path).cloned().unwrap_or("recipe".into()),
        package: root.packages.get(&entry.path).cloned(),
        path: entry.path,
        mode: FileMode(entry.mode),
        bytes: entry.bytes,
        sha256: entry.sha256,
    });
    let mut manifest = Manifest {
        version: 1,
        profile: request.profile,
        command_line: command_line(&recipe.command_line, &sealed.verity),
        artifacts: Artifacts {
            firmware,
            firmware_snp,
            kernel,
            root: Artifact {
                file: "root.img".into(),
                bytes: sealed.bytes,
                sha256: sealed.sha256,
            },
        },
        root_verity: sealed.verity,
        inputs,
        input_digest,
        origin: Some(origin::of_source(&request.places.source, parts.builder_root)?),
        expected: vec![],
        files: files.collect(),
    };
    manifest.expected = origin::expected(&request.places.source, staging.path(), &manifest)?;
    manifest.check()?;
    let path = place("manifest.json");
    publish::file(&path, origin::to_json(&manifest).as_bytes())
        .map_err(|source| file_error(&path, source))?;
    staging.publish()?;
    Ok(manifest)
}

/// The kernel sets up the device itself (kernel documentation, admin-guide/device-mapper/dm-init.rst). A block
/// that does not match its hash ends the guest: a root that lies is never run on.
fn command_line(base: &str, verity: &VerityTree) -> String {
    let sectors = verity.data_blocks * SECTORS_PER_BLOCK;
    let table = verity.table("/dev/vda");
    format!("{base} dm-mod.create=\"root,,0,ro,0 {sectors} verity {table} 1 panic_on_corruption\"")
}

/// SHA-256 over names and digests in order, each name preceded by its length.
fn input_digest(inputs: &BTreeMap<String, Digest32>) -> Digest32 {
    let lengths: Vec<_> = inputs
        .keys()
        .map(|name| (name.len() as u64).to_le_bytes())
        .collect();
    let parts = inputs
        .iter()
        .zip(&lengths)
        .flat_map(|((name, digest), length)| [length.as_slice(), name.as_bytes(), digest.as_bytes()]);
    Digest32::of_parts(parts)
}

/// The image in place, if it is from the same inputs. Lengths are compared, hashes are not: whoever boots the
/// image compares those.
fn current(out: &Path, profile: ImageProfile, input_digest: Digest32) -> Option<Manifest> {
    let path = out.join("manifest.json");
    let manifest = Manifest::load(&path).ok()?;
    let whole = |artifact: &Artifact| {
        let metadata = Manifest::artifact_path(&path, artifact).metadata();
        metadata.is_ok_and(|metadata| metadata.len() == artifact.bytes)
    };
    let same = manifest.input_digest == input_digest && manifest.profile == profile;
    let complete = manifest.artifacts.named().all(|(_, artifact)| whole(artifact));
    (same && complete).then_some(manifest)
}

/// Waits until this is the only build with a cache; released when the file is closed.
///
/// # Errors
/// The cache cannot be written, or this program is told to end.
pub fn lock_cache(cache: &Path, progress: &Progress) -> Result<File, BuildError> {
    let path = cache.join("image.lock");
    let failed = |source| file_error(&path, source);
    fs::create_dir_all(cache).map_err(failed)?;
    let file = File::create(&path).map_err(failed)?;
    let mut waiting = false;
    while let Err(error) = file.try_lock() {
        if let TryLockError::Error(source) = error {
            return Err(failed(source));
        }
        if !waiting {
            progress.stage("waiting for another image build with the same cache");
        }
        waiting = true;
        interrupt::check().map_err(failed)?;
        thread::sleep(LOCK_POLL);
    }
    Ok(file)
}

pub(crate) fn file_error(path: &Path, source: io::Error) -> BuildError {
    BuildError::File {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verity() -> VerityTree {
        VerityTree {
            data_blocks: 10,
            salt: Digest32::of(b"salt"),
            root_hash: Digest32::of(b"root"),
        }
    }

    #[test]
    fn the_command_line_pins_the_whole_root() {
        let VerityTree { salt, root_hash, .. } = verity();
        assert_eq!(
            command_line("quiet", &verity()),
            format!(
                "quiet dm-mod.create=\"root,,0,ro,0 80 verity 1 /dev/vda /dev/vda 4096 4096 10 10 sha256 \
                 {root_hash} {salt} 1 panic_on_corruption\""
            )
        );
    }

    #[test]
    fn the_input_digest_covers_names_and_digests() {
        let inputs = |name: &str, value: &[u8]| BTreeMap::from([(name.to_owned(), Digest32::of(value))]);
        let base = input_digest(&inputs("a", b"1"));
        assert_eq!(base, input_digest(&inputs("a", b"1")));
        assert_ne!(base, input_digest(&inputs("b", b"1")));
        assert_ne!(base, input_digest(&inputs("a", b"2")));
    }

    #[test]
    fn an_image_is_current_only_if_whole_and_from_the_same_inputs() {
        let dir = tempfile::tempdir().unwrap();
        let artifact = |name: &str| {
            let path = dir.path().join(name);
            fs::write(&path, name).unwrap();
            Artifact::of_file(&path).unwrap()
        };
        let digest = Digest32::of(b"inputs");
        let manifest = Manifest {
            version: 1,
            profile: ImageProfile::Dev,
            command_line: command_line("quiet", &verity()),
            artifacts: Artifacts {
                firmware: artifact("firmware.fd"),
                firmware_snp: None,
                kernel: artifact("kernel"),
                root: artifact("root.img"),
            },
            root_verity: verity(),
            inputs: BTreeMap::new(),
            input_digest: digest,
            origin: None,
            expected: vec![],
            files: vec![],
        };
        let current = |digest| super::current(dir.path(), ImageProfile::Dev, digest).is_some();
        assert!(!current(digest), "no manifest");
        fs::write(
            dir.path().join("manifest.json"),
            serde_json::to_string(&manifest).unwrap(),
        )
        .unwrap();
        assert!(current(digest));
        assert!(!current(Digest32::of(b"other inputs")));
        assert!(super::current(dir.path(), ImageProfile::Cpu, digest).is_none());
        fs::write(dir.path().join("root.img"), "root.im").unwrap();
        assert!(!current(digest), "truncated");
    }
}
