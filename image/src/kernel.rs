//! Builds the guest's kernel from Debian's source package, or takes it from the cache.
//!
//! The cache key covers everything that decides the result: source, configuration fragments, compiler and
//! linker version, and this module's own recipe. A kernel is built in its source tree, where all paths that
//! the compiler sees are relative, so the folder's name does not get into the binary. The configuration is
//! checked after Kconfig has had its say, because it drops silently what it cannot have.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use cocoon_evidence::Digest32;

use crate::{
    command::{self, CommandError},
    input::{InputError, Sources},
    lock::LockedInput,
    publish::{WORK_PREFIX, remove_killed},
};

/// Changes when this module builds differently from the same inputs.
const METHOD: &str = "tinyconfig-in-tree-1";
const TOOLS: [&str; 11] = [
    "bc", "bison", "dpkg-deb", "flex", "gcc", "ld", "make", "strip", "tar", "xz", "zstd",
];
/// What no kernel has, whatever a fragment says: ways into the kernel's memory, out of the measured kernel, to
/// a network, and interfaces that nothing in the guest uses and that are known for their holes.
const FORBIDDEN: [&str; 9] = [
    "BPF_SYSCALL",
    "DEBUG_FS",
    "DEVMEM",
    "HIBERNATION",
    "INET",
    "IO_URING",
    "KEXEC",
    "KEXEC_FILE",
    "USER_NS",
];

/// One configuration fragment.
#[derive(Debug, Clone)]
pub struct Fragment {
    /// Its file name.
    pub name: String,
    /// Its lines.
    pub text: String,
}

/// What a kernel is built from.
#[derive(Debug)]
pub struct KernelPlan {
    source: LockedInput,
    fragments: Vec<Fragment>,
    compiler: String,
    key: Digest32,
}

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A tool is missing or failed.
    #[error("the kernel was not built")]
    Command(#[from] CommandError),
    /// The source is not at hand.
    #[error("the kernel's source is not at hand")]
    Input(#[source] Box<InputError>),
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
    /// A fragment turns on what no guest may have, or an option that selects it.
    #[error("the kernel's configuration has what no guest may have: {}", found.join(", "))]
    Forbidden {
        /// Each as `option=value`.
        found: Vec<String>,
    },
}

impl From<InputError> for KernelError {
    fn from(error: InputError) -> Self {
        Self::Input(Box::new(error))
    }
}

impl KernelPlan {
    /// Collects what decides the kernel's bytes.
    ///
    /// # Errors
    /// The compiler is missing.
    pub fn new(source: LockedInput, fragments: Vec<Fragment>) -> Result<Self, KernelError> {
        let compiler = format!("{}; {}", command::version("gcc")?, command::version("ld")?);
        let mut parts = vec![METHOD.to_owned(), source.sha256.to_string(), compiler.clone()];
        parts.extend(fragments.iter().map(|fragment| fragment.text.clone()));
        let lengths: Vec<_> = parts
            .iter()
            .map(|part| (part.len() as u64).to_le_bytes())
            .collect();
        let parts = lengths.iter().zip(&parts);
        let key = Digest32::of_parts(parts.flat_map(|(length, part)| [length.as_slice(), part.as_bytes()]));
        Ok(Self {
            source,
            fragments,
            compiler,
            key,
        })
    }

    /// The inputs for the manifest.
    pub fn inputs(&self) -> BTreeMap<String, Digest32> {
        let mut inputs = BTreeMap::from([
            (self.source.file.clone(), self.source.sha256),
            ("kernel method".to_owned(), Digest32::of(METHOD.as_bytes())),
            (
                format!("compiler: {}", self.compiler),
                Digest32::of(self.compiler.as_bytes()),
            ),
        ]);
        for fragment in &self.fragments {
            inputs.insert(fragment.name.clone(), Digest32::of(fragment.text.as_bytes()));
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
    pub fn build(&self, sources: &Sources, cache: &Path) -> Result<PathBuf, KernelError> {
        command::require(&TOOLS)?;
        let source = sources.find(&self.source)?;
        let kernels = cache.join("kernel");
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| KernelError::Cache { path, source }
        };
        fs::create_dir_all(&kernels).map_err(failed(&kernels))?;
        remove_killed(&kernels).map_err(failed(&kernels))?;
        let work = tempfile::Builder::new()
            .prefix(WORK_PREFIX)
            .tempdir_in(&kernels)
            .map_err(failed(&kernels))?;
        let log = kernels.join("build.log");
        fs::write(&log, "").map_err(failed(&log))?;

        let tree = unpack(&source, work.path(), &log)?;
        self.configure(&tree, &log)?;
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        command::run(make(&tree).args([&format!("-j{jobs}"), "bzImage"]), Some(&log))?;

        let done = work.path().join("done");
        fs::create_dir(&done).map_err(failed(&done))?;
        for (from, to) in [("arch/x86/boot/bzImage", "bzImage"), (".config", "config")] {
            fs::copy(tree.join(from), done.join(to)).map_err(failed(&done))?;
            // Later builds trust what has this name: a power cut must not leave it half written.
            let written = fs::File::open(done.join(to)).and_then(|file| file.sync_all());
            written.map_err(failed(&done))?;
        }
        let folder = self.folder(cache);
        fs::rename(&done, &folder).map_err(failed(&folder))?;
        Ok(folder.join("bzImage"))
    }

    fn configure(&self, tree: &Path, log: &Path) -> Result<(), KernelError> {
        let path = tree.join(".config");
        let failed = |source| KernelError::Cache {
            path: path.clone(),
            source,
        };
        command::run(make(tree).arg("tinyconfig"), Some(log))?;
        let mut config = fs::read_to_string(&path).map_err(failed)?;
        for fragment in &self.fragments {
            config += "\n";
            config += &fragment.text;
        }
        fs::write(&path, config).map_err(failed)?;
        command::run(make(tree).arg("olddefconfig"), Some(log))?;
        let config = fs::read_to_string(&path).map_err(failed)?;
        check_configuration(&self.fragments, &config)?;
        check_forbidden(&config)
    }

    fn folder(&self, cache: &Path) -> PathBuf {
        cache.join("kernel").join(self.key.to_string())
    }
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

/// `make` in a tree, with everything fixed that would otherwise get into the kernel.
fn make(tree: &Path) -> Command {
    let mut make = Command::new("make");
    make.arg("--silent")
        .current_dir(tree)
        .env("KBUILD_BUILD_TIMESTAMP", "2026-01-01")
        .env("KBUILD_BUILD_USER", "cocoon")
        .env("KBUILD_BUILD_HOST", "cocoon")
        .env("KBUILD_BUILD_VERSION", "1")
        .env("LC_ALL", "C")
        .env("TZ", "UTC");
    for variable in [
        "MAKEFLAGS",
        "MFLAGS",
        "KCFLAGS",
        "KBUILD_OUTPUT",
        "ARCH",
        "CROSS_COMPILE",
    ] {
        make.env_remove(variable);
    }
    make
}

/// Every line of the fragments has to hold; where two name the same option, the later one.
fn check_configuration(fragments: &[Fragment], config: &str) -> Result<(), KernelError> {
    let found: BTreeMap<_, _> = config.lines().filter_map(assignment).collect();
    let lines = fragments.iter().flat_map(|fragment| fragment.text.lines());
    let wanted: BTreeMap<_, _> = lines.filter_map(assignment).collect();
    let wrong: Vec<_> = wanted
        .into_iter()
        .map(|(option, value)| (option, value, found.get(option).copied().unwrap_or("n")))
        .filter(|(_, value, found)| value != found)
        .map(|(option, value, found)| format!("{option}={value} (found {found})"))
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(KernelError::Configuration { wrong })
}

fn check_forbidden(config: &str) -> Result<(), KernelError> {
    let on = config.lines().filter_map(assignment);
    let found: Vec<_> = on
        .filter(|(option, value)| *value != "n" && FORBIDDEN.contains(option))
        .map(|(option, value)| format!("{option}={value}"))
        .collect();
    if found.is_empty() {
        return Ok(());
    }
    Err(KernelError::Forbidden { found })
}

fn assignment(line: &str) -> Option<(&str, &str)> {
    line.trim().strip_prefix("CONFIG_")?.split_once('=')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::tests::locked;

    fn fragment(text: &str) -> Fragment {
        Fragment {
            name: "test".into(),
            text: text.into(),
        }
    }

    #[test]
    fn a_later_fragment_overrides_and_every_other_line_must_hold() {
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x,y\"\nCONFIG_D=-1\n";
        let check = |texts: &[&str]| {
            let fragments: Vec<_> = texts.iter().map(|text| fragment(text)).collect();
            check_configuration(&fragments, config).map_err(|error| error.to_string())
        };
        assert_eq!(check(&["CONFIG_A=n\nCONFIG_B=n", "CONFIG_A=y"]), Ok(()));
        assert_eq!(check(&["# CONFIG_A=n\nCONFIG_C=\"x,y\"\nCONFIG_D=-1"]), Ok(()));
        for text in ["CONFIG_A=n", "CONFIG_B=y", "CONFIG_C=\"x\"", "CONFIG_MISSPELT=y"] {
            let error = check(&[text]).unwrap_err();
            assert!(error.contains(text.trim_start_matches("CONFIG_")), "{error}");
        }
    }

    #[test]
    fn no_fragment_gives_a_guest_what_no_guest_may_have() {
        let check = |config: &str| check_forbidden(config).map_err(|error| error.to_string());
        let clean = "CONFIG_NET=y\n# CONFIG_INET is not set\nCONFIG_KEXEC=n\nCONFIG_INET_HELP=y\n";
        assert_eq!(check(clean), Ok(()));
        for line in ["INET=y", "KEXEC_FILE=m", "DEVMEM=y"] {
            let error = check(&format!("{clean}CONFIG_{line}\n")).unwrap_err();
            assert!(error.ends_with(&format!("may have: {line}")), "{error}");
        }
    }

    #[test]
    fn the_key_covers_source_and_fragments() {
        let key = |source: LockedInput, texts: &[&str]| {
            let fragments = texts.iter().map(|text| fragment(text)).collect();
            KernelPlan::new(source, fragments).unwrap().key
        };
        let base = key(locked(b"source"), &["CONFIG_A=y\n"]);
        assert_eq!(base, key(locked(b"source"), &["CONFIG_A=y\n"]));
        assert_ne!(base, key(locked(b"source"), &["CONFIG_A=n\n"]));
        assert_ne!(
            base,
            key(locked(b"source"), &["CONFIG_A=y", "\n"]),
            "bytes cannot move between fragments"
        );
        let other = LockedInput {
            sha256: Digest32::of(b"other"),
            ..locked(b"source")
        };
        assert_ne!(base, key(other, &["CONFIG_A=y\n"]));
    }

    #[test]
    fn a_wrong_source_leaves_no_kernel() {
        let (given, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(given.path().join(&locked(b"source").file), "other bytes").unwrap();
        let plan = KernelPlan::new(locked(b"source"), vec![]).unwrap();
        let sources = Sources::new(Some(given.path().to_owned()), cache.path(), "");
        let error = plan.build(&sources, cache.path()).unwrap_err();
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
