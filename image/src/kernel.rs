//! Builds the guest's kernel from Debian's source package, or takes it from the cache.
//!
//! The cache key covers everything that decides the result: source, patches, configuration fragments, compiler
//! and linker version (or the builder root's digest), and this module's own recipe. A kernel is built in its
//! source tree, where all paths that the compiler sees are relative; in the builder root that tree is always
//! `/build`. Of a kernel that loads modules, what is needed to compile some is kept beside it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use cocoon_evidence::Digest32;
use tempfile::TempDir;

mod configuration;
mod ingredients;

pub use ingredients::{Ingredients, IngredientsError, RecipeFile, is_patch};

use crate::{
    builder::BuilderRoot,
    command::{self, CommandError},
    input::{InputError, Sources},
    publish::{WORK_PREFIX, remove_killed, replace},
    sandbox::BUILD,
};

/// What the lock calls the kernel's source.
pub const KERNEL_SOURCE: &str = "linux-source";
/// Beside the kernel, if it loads modules: the folder to compile them against.
pub const MODULES_TREE: &str = "modules-tree";
/// What it holds of the source tree after the build: a few thousand headers, makefiles, and the programs they call.
const FOR_MODULES: [&str; 8] = [
    ".config",
    "Makefile",
    "Module.symvers",
    "arch/x86/Makefile",
    "arch/x86/include",
    "include",
    "scripts",
    "tools/objtool/objtool",
];
/// Changes when this module builds differently from the same inputs.
const METHOD: &str = "tinyconfig-in-tree-2";
/// What this machine unpacks the source with.
const UNPACKING: [&str; 3] = ["dpkg-deb", "tar", "xz"];
/// What this machine builds a dev kernel with.
const BUILDING: [&str; 9] = [
    "bc", "bison", "flex", "gcc", "ld", "lz4", "make", "patch", "strip",
];
/// What Kbuild would otherwise ask the machine for.
const FIXED: [(&str, &str); 4] = [
    ("KBUILD_BUILD_HOST", "cocoon"),
    ("KBUILD_BUILD_TIMESTAMP", "2026-01-01"),
    ("KBUILD_BUILD_USER", "cocoon"),
    ("KBUILD_BUILD_VERSION", "1"),
];

/// What a kernel is built from.
#[derive(Debug)]
pub struct KernelPlan {
    ingredients: Ingredients,
    compiler: Compiler,
    key: Digest32,
}

/// Whose gcc, make and linker build it.
#[derive(Debug)]
enum Compiler {
    /// This machine's; their versions.
    Machine(String),
    /// The builder root's.
    Locked(BuilderRoot),
}

impl Compiler {
    /// Stands for the compiler in the key.
    fn name(&self) -> String {
        match self {
            Self::Machine(versions) => versions.clone(),
            Self::Locked(root) => format!("builder root {}", root.digest),
        }
    }

    /// A program that runs in a tree, with everything fixed that would otherwise get into the kernel.
    fn command(&self, program: &str, tree: &Path) -> Command {
        let mut command = match self {
            Self::Machine(_) => machine_command(program, tree),
            Self::Locked(root) => root
                .sandbox([(tree, BUILD, true)])
                .command(&format!("/usr/bin/{program}"), &FIXED),
        };
        command.arg("--silent");
        command
    }
}

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A tool is missing or failed.
    #[error("the kernel was not built")]
    Command(#[from] CommandError),
    /// The lock or the recipe lacks something.
    #[error("it is not known what the kernel is made of")]
    Ingredients(#[from] IngredientsError),
    /// The source is not at hand.
    #[error("the kernel's source is not at hand")]
    Input(#[from] InputError),
    /// The cache cannot be used.
    #[error("cannot use {} for building the kernel (it takes 2 GB for some minutes)", path.display())]
    Cache {
        /// Which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Kconfig dropped or changed a line, because a dependency is missing or another option selects it.
    #[error("the kernel's configuration does not have what the fragments ask for: {}", wrong.join(", "))]
    Configuration {
        /// Each as `wanted (found)`.
        wrong: Vec<String>,
    },
    /// A fragment, or an option that selects it, turns on what no guest may have.
    #[error("the kernel's configuration has what it must not have: {}", found.join(", "))]
    Forbidden {
        /// The options.
        found: Vec<String>,
    },
}

impl KernelPlan {
    /// Collects what decides the bytes of a kernel that this machine's compiler builds.
    ///
    /// # Errors
    /// The compiler is missing.
    pub fn new(ingredients: Ingredients) -> Result<Self, KernelError> {
        let versions = format!("{}; {}", command::version("gcc")?, command::version("ld")?);
        Ok(Self::with(ingredients, Compiler::Machine(versions)))
    }

    /// The same for a kernel that is built in the builder root.
    pub fn locked(ingredients: Ingredients, root: BuilderRoot) -> Self {
        Self::with(ingredients, Compiler::Locked(root))
    }

    fn with(ingredients: Ingredients, compiler: Compiler) -> Self {
        let (package, name) = (ingredients.package.sha256.to_string(), compiler.name());
        let mut parts = vec![METHOD, &package, &name];
        for patch in &ingredients.patches {
            parts.extend(["patch", &patch.text]);
        }
        parts.extend(
            ingredients
                .fragments
                .iter()
                .map(|fragment| fragment.text.as_str()),
        );
        let lengths: Vec<_> = parts
            .iter()
            .map(|part| (part.len() as u64).to_le_bytes())
            .collect();
        let parts = lengths.iter().zip(&parts);
        let key = Digest32::of_parts(parts.flat_map(|(length, part)| [length.as_slice(), part.as_bytes()]));
        Self {
            ingredients,
            compiler,
            key,
        }
    }

    /// The inputs for the manifest.
    pub fn inputs(&self) -> BTreeMap<String, Digest32> {
        let compiler = self.compiler.name();
        let mut inputs = BTreeMap::from([
            (
                self.ingredients.package.file.clone(),
                self.ingredients.package.sha256,
            ),
            ("kernel method".to_owned(), Digest32::of(METHOD.as_bytes())),
            (format!("compiler: {compiler}"), Digest32::of(compiler.as_bytes())),
        ]);
        for file in self.ingredients.texts() {
            inputs.insert(file.name.clone(), Digest32::of(file.text.as_bytes()));
        }
        inputs
    }

    /// The kernel, if the cache has it.
    pub fn cached(&self, cache: &Path) -> Option<PathBuf> {
        let image = self.folder(cache).join("bzImage");
        image.is_file().then_some(image)
    }

    /// Builds the kernel into the cache. The caller holds the cache's lock.
    ///
    /// # Errors
    /// See [`KernelError`]. The cache then has no kernel under this key, but a log.
    pub fn build(&self, sources: &Sources, cache: &Path, jobs: usize) -> Result<PathBuf, KernelError> {
        let (work, tree, log) = self.prepare(sources, cache)?;
        let mut make = self.compiler.command("make", &tree);
        make.args([&format!("-j{jobs}"), "bzImage"]);
        let modules = loads_modules(&tree)?;
        if modules {
            // There are none in this source's configuration, but this lists the kernel's symbols.
            make.arg("modules");
        }
        command::run(&mut make, Some(&log))?;

        let done = work.path().join("done");
        fs::create_dir(&done).map_err(failed(&done))?;
        for (from, to) in [("arch/x86/boot/bzImage", "bzImage"), (".config", "config")] {
            fs::copy(tree.join(from), done.join(to)).map_err(failed(&done))?;
            // Later builds trust what has this name: a power cut must not leave it half written.
            let written = fs::File::open(done.join(to)).and_then(|file| file.sync_all());
            written.map_err(failed(&done))?;
        }
        if modules {
            keep_for_modules(&tree, &done.join(MODULES_TREE))?;
            nix::unistd::sync();
        }
        let folder = self.folder(cache);
        replace(&done, &folder).map_err(failed(&folder))?;
        Ok(folder.join("bzImage"))
    }

    /// The configuration alone, which takes a minute instead of ten. The caller holds the cache's lock.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn configuration(&self, sources: &Sources, cache: &Path) -> Result<String, KernelError> {
        let (_work, tree, _) = self.prepare(sources, cache)?;
        let path = tree.join(".config");
        fs::read_to_string(&path).map_err(failed(&path))
    }

    /// Unpacks, patches and configures: the folder to work in, the source tree in it, and the log.
    fn prepare(&self, sources: &Sources, cache: &Path) -> Result<(TempDir, PathBuf, PathBuf), KernelError> {
        command::require(&UNPACKING)?;
        if let Compiler::Machine(_) = self.compiler {
            command::require(&BUILDING)?;
        }
        let source = sources.find(&self.ingredients.package)?;
        let kernels = cache.join("kernel");
        fs::create_dir_all(&kernels).map_err(failed(&kernels))?;
        remove_killed(&kernels).map_err(failed(&kernels))?;
        let work = tempfile::Builder::new()
            .prefix(WORK_PREFIX)
            .tempdir_in(&kernels)
            .map_err(failed(&kernels))?;
        let log = kernels.join("build.log");
        fs::write(&log, "").map_err(failed(&log))?;
        let tree = unpack(&source, work.path(), &log)?;
        self.patch(&tree, &log)?;
        self.configure(&tree, &log)?;
        Ok((work, tree, log))
    }

    /// A patch that does not fit exactly is for another source: what it protects would not be protected.
    fn patch(&self, tree: &Path, log: &Path) -> Result<(), KernelError> {
        const FILE: &str = "cocoon.patch";
        let path = tree.join(FILE);
        for patch in &self.ingredients.patches {
            fs::write(&path, &patch.text).map_err(failed(&path))?;
            let mut command = self.compiler.command("patch", tree);
            command.args(["--batch", "--forward", "--strip=1", "--fuzz=0"]);
            command::run(command.arg(format!("--input={FILE}")), Some(log))?;
            fs::remove_file(&path).map_err(failed(&path))?;
        }
        Ok(())
    }

    fn configure(&self, tree: &Path, log: &Path) -> Result<(), KernelError> {
        let path = tree.join(".config");
        let make = |target: &str| {
            let mut make = self.compiler.command("make", tree);
            command::run(make.arg(target), Some(log))
        };
        make("tinyconfig")?;
        let mut config = fs::read_to_string(&path).map_err(failed(&path))?;
        for fragment in &self.ingredients.fragments {
            config += "\n";
            config += &fragment.text;
        }
        fs::write(&path, config).map_err(failed(&path))?;
        make("olddefconfig")?;
        let config = fs::read_to_string(&path).map_err(failed(&path))?;
        let release = matches!(self.compiler, Compiler::Locked(_));
        configuration::check(&self.ingredients.fragments, &config, release)
    }

    fn folder(&self, cache: &Path) -> PathBuf {
        cache.join("kernel").join(self.key.to_string())
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> KernelError {
    let path = path.to_owned();
    move |source| KernelError::Cache {
        path: path.clone(),
        source,
    }
}

fn loads_modules(tree: &Path) -> Result<bool, KernelError> {
    let path = tree.join(".config");
    let config = fs::read_to_string(&path).map_err(failed(&path))?;
    Ok(config.lines().any(|line| line == "CONFIG_MODULES=y"))
}

/// Moves what modules are compiled against out of a tree that goes away.
fn keep_for_modules(tree: &Path, to: &Path) -> Result<(), KernelError> {
    for name in FOR_MODULES {
        let kept = to.join(name);
        let folder = kept.parent().expect("it was joined to one");
        fs::create_dir_all(folder).map_err(failed(folder))?;
        fs::rename(tree.join(name), &kept).map_err(failed(&kept))?;
    }
    Ok(())
}

fn unpack(package: &Path, work: &Path, log: &Path) -> Result<PathBuf, KernelError> {
    let failed = |source| KernelError::Cache {
        path: work.to_owned(),
        source,
    };
    let contents = work.join("package");
    command::run(
        Command::new("dpkg-deb").arg("-x").args([package, &contents]),
        Some(log),
    )?;
    let archives = contents.join("usr/src");
    let archive = find_one(&archives, |name| name.ends_with(".tar.xz")).map_err(failed)?;
    let tree = work.join("tree");
    fs::create_dir(&tree).map_err(failed)?;
    command::run(
        Command::new("tar")
            .args(["--extract", "--strip-components=1", "--file"])
            .arg(archive)
            .arg("--directory")
            .arg(&tree),
        Some(log),
    )?;
    fs::remove_dir_all(contents).map_err(failed)?;
    Ok(tree)
}

fn find_one(folder: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<PathBuf> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if wanted(&entry.file_name().to_string_lossy()) {
            return Ok(entry.path());
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        "the package holds no source archive",
    ))
}

/// A program of this machine, cut off from variables that would change what it makes.
fn machine_command(program: &str, tree: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(tree)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .envs(FIXED);
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::{LockedInput, tests::locked};

    fn ingredients(package: LockedInput, patches: &[&str], fragments: &[&str]) -> Ingredients {
        let files = |texts: &[&str]| {
            let file = |text: &&str| RecipeFile {
                name: "test".into(),
                text: (*text).into(),
            };
            texts.iter().map(file).collect()
        };
        Ingredients {
            package,
            patches: files(patches),
            fragments: files(fragments),
        }
    }

    #[test]
    fn the_key_covers_source_patches_and_fragments() {
        let key = |source: LockedInput, patches: &[&str], fragments: &[&str]| {
            KernelPlan::new(ingredients(source, patches, fragments))
                .unwrap()
                .key
        };
        let base = key(locked(b"source"), &[], &["CONFIG_A=y\n"]);
        assert_eq!(base, key(locked(b"source"), &[], &["CONFIG_A=y\n"]));
        assert_ne!(base, key(locked(b"source"), &[], &["CONFIG_A=n\n"]));
        assert_ne!(base, key(locked(b"source"), &["a patch"], &["CONFIG_A=y\n"]));
        assert_ne!(
            base,
            key(locked(b"source"), &["CONFIG_A=y\n"], &[]),
            "a patch is no fragment"
        );
        assert_ne!(
            base,
            key(locked(b"source"), &[], &["CONFIG_A=y", "\n"]),
            "bytes cannot move between fragments"
        );
        let other = LockedInput {
            sha256: Digest32::of(b"other"),
            ..locked(b"source")
        };
        assert_ne!(base, key(other, &[], &["CONFIG_A=y\n"]));
    }

    #[test]
    fn a_patch_for_another_source_stops_the_build() {
        let tree = tempfile::tempdir().unwrap();
        let log = tree.path().join("log");
        fs::write(tree.path().join("file"), "one\ntwo\nthree\n").unwrap();
        let patch = |from: &str| {
            let text =
                format!("Why.\n\n--- a/file\n+++ b/file\n@@ -1,3 +1,3 @@\n one\n-{from}\n+2\n three\n");
            let plan = KernelPlan::new(ingredients(locked(b"source"), &[&text], &[])).unwrap();
            plan.patch(tree.path(), &log)
        };
        assert!(patch("zwei").is_err());
        patch("two").unwrap();
        assert_eq!(
            fs::read_to_string(tree.path().join("file")).unwrap(),
            "one\n2\nthree\n"
        );
        assert!(patch("two").is_err(), "applied already");
    }

    #[test]
    fn what_modules_are_compiled_against_outlives_the_source_tree() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, kept) = (
            dir.path().join("tree"),
            dir.path().join("done").join(MODULES_TREE),
        );
        for name in FOR_MODULES {
            let path = tree.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        for (config, expected) in [
            ("# CONFIG_MODULES is not set\n", false),
            ("CONFIG_MODULES=y\n", true),
        ] {
            fs::write(tree.join(".config"), config).unwrap();
            assert_eq!(loads_modules(&tree).unwrap(), expected);
        }
        keep_for_modules(&tree, &kept).unwrap();
        fs::remove_dir_all(&tree).unwrap();
        assert_eq!(fs::read_to_string(kept.join("scripts")).unwrap(), "scripts");
        assert!(FOR_MODULES.iter().all(|name| kept.join(name).is_file()));
        assert!(keep_for_modules(&tree, &kept).is_err(), "nothing is left of it");
    }

    #[test]
    fn a_wrong_source_leaves_no_kernel() {
        let (given, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(given.path().join(&locked(b"source").file), "other bytes").unwrap();
        let plan = KernelPlan::new(ingredients(locked(b"source"), &[], &[])).unwrap();
        let sources = Sources::new(Some(given.path().to_owned()), cache.path(), "");
        let error = plan.build(&sources, cache.path(), 1).unwrap_err();
        assert!(
            matches!(
                error,
                KernelError::Input(_) | KernelError::Command(CommandError::MissingTool { .. })
            ),
            "{error}"
        );
        assert_eq!(plan.cached(cache.path()), None);
    }
}
