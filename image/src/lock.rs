//! `image.lock`: every input that is fetched, by exact content.
//!
//! The file's first part is kept by hand. From [`MARKER`] on it is written by `cocoon-image lock update`, which
//! is the only thing that decides by looking at the network; everything else only compares.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use cocoon_evidence::Digest32;
use cocoon_measurements::ImageProfile;
use serde::{Deserialize, Serialize};

use crate::given::GivenInput;

/// Where the written part begins.
pub const MARKER: &str = "# --- From here on written by `cocoon-image lock update`; do not edit. ---\n";

/// No input is longer; a bound on what is downloaded for a wrong line.
const INPUT_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
const NAME_BYTES_MAX: usize = 200;

/// The whole lock.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// The compiler of the guest's programs.
    pub rust: RustToolchain,
    /// Files that something is built from.
    #[serde(rename = "source")]
    pub sources: Vec<LockedInput>,
    /// What only the image for GPUs is built from.
    #[serde(default)]
    pub gpu: GpuInputs,
    /// The system that everything is built in.
    pub builder: Builder,
}

/// What only the image for GPUs is built from: nobody else fetches 1.8 GB, or has to ask NVIDIA for anything.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuInputs {
    /// Fetched like [`Lock::sources`].
    #[serde(rename = "source")]
    pub sources: Vec<LockedInput>,
    /// Brought by whoever builds.
    pub given: Vec<GivenInput>,
}

/// A Rust toolchain as rustup installs it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RustToolchain {
    /// Also in `rust-toolchain.toml`.
    pub version: String,
    /// Of its programs and libraries: see [`crate::toolchain::tree_digest`].
    pub tree_sha256: Digest32,
}

/// The packages of the builder root.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Builder {
    /// Debian suite.
    pub suite: String,
    /// Point release, for people.
    pub release: String,
    /// A time at which the snapshot archive holds all of them.
    pub snapshot: String,
    /// In the order of their names.
    pub packages: Vec<LockedInput>,
}

/// Who publishes an input, and so how it is fetched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Debian: a file of a mirror's pool.
    #[default]
    Debian,
    /// A Python package index, which pip knows: a wheel.
    Wheel,
}

impl Kind {
    fn is_debian(&self) -> bool {
        *self == Self::Debian
    }
}

/// One file of exactly known content.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LockedInput {
    /// What the builder calls it.
    pub name: String,
    /// Who publishes it.
    #[serde(default, skip_serializing_if = "Kind::is_debian")]
    pub kind: Kind,
    /// For people.
    pub version: String,
    /// Debian architecture, `source` for source archives.
    pub arch: String,
    /// Length.
    pub bytes: u64,
    /// Of the whole file.
    pub sha256: Digest32,
    /// Its folder on a Debian mirror; empty for what is not from there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pool: String,
    /// File name.
    pub file: String,
    /// The snapshot archive's name for the content, where the time of [`Builder::snapshot`] does not find it.
    /// Only a name: what decides is `sha256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_sha1: Option<String>,
}

/// What a wheel's file name says (PyPA, binary distribution format).
#[derive(Debug, PartialEq, Eq)]
pub struct Wheel<'a> {
    /// Of the package.
    pub name: &'a str,
    /// Of the package.
    pub version: &'a str,
    /// For example `cp311`.
    pub python: &'a str,
    /// For example `cp311` or `none`.
    pub abi: &'a str,
    /// For example `manylinux_2_28_x86_64`; several are joined by dots.
    pub platforms: &'a str,
}

impl<'a> Wheel<'a> {
    /// Takes a file name apart; none if it is no wheel's.
    pub fn parse(file: &'a str) -> Option<Self> {
        let parts: Vec<_> = file.strip_suffix(".whl")?.split('-').collect();
        let [name, version, python, abi, platforms] = parts[..] else {
            return None;
        };
        let whole = !parts.contains(&"") && python.len() > 2 && python.is_ascii();
        whole.then_some(Self {
            name,
            version,
            python,
            abi,
            platforms,
        })
    }
}

/// Why a lock cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// It cannot be read or written.
    #[error("cannot use {}; is --source the root of Cocoon's source tree?", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not TOML of this form.
    #[error("{} is malformed", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Box<toml::de::Error>,
    },
    /// A value that must not be used.
    #[error("image.lock, input {input:?}: {problem}")]
    Value {
        /// Its name.
        input: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// An input that the builder needs is not in it.
    #[error("image.lock has no source named {name:?}")]
    NotLocked {
        /// The name.
        name: &'static str,
    },
    /// The marker is gone.
    #[error("{} has no line {:?}, so nothing in it can be replaced", path.display(), MARKER.trim_end())]
    NoMarker {
        /// Which.
        path: PathBuf,
    },
}

impl Lock {
    /// Reads and checks the lock of a source tree.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn load(source: &Path) -> Result<Self, LockError> {
        let path = path(source);
        let lock = Self::parse(&read(&path)?).map_err(|source| LockError::Malformed {
            path,
            source: Box::new(source),
        })?;
        lock.check()?;
        Ok(lock)
    }

    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// The source with this name.
    ///
    /// # Errors
    /// [`LockError::NotLocked`].
    pub fn source(&self, name: &'static str) -> Result<&LockedInput, LockError> {
        let mut sources = self.sources.iter().chain(&self.gpu.sources);
        let found = sources.find(|input| input.name == name);
        found.ok_or(LockError::NotLocked { name })
    }

    /// Everything that is fetched as a file to build an image of this profile.
    pub fn inputs(&self, profile: ImageProfile) -> impl Iterator<Item = &LockedInput> {
        let gpu = (profile == ImageProfile::Gpu).then_some(&self.gpu.sources);
        let all = self.sources.iter().chain(&self.builder.packages);
        all.chain(gpu.into_iter().flatten())
    }

    /// What whoever builds an image of this profile has to bring.
    pub fn given(&self, profile: ImageProfile) -> &[GivenInput] {
        match profile {
            ImageProfile::Gpu => &self.gpu.given,
            ImageProfile::Dev | ImageProfile::Cpu => &[],
        }
    }

    /// What has to be brought under this name.
    ///
    /// # Errors
    /// [`LockError::NotLocked`].
    pub fn given_source(&self, name: &'static str) -> Result<&GivenInput, LockError> {
        let found = self.gpu.given.iter().find(|input| input.name == name);
        found.ok_or(LockError::NotLocked { name })
    }

    /// Names become paths and addresses, so they are checked before anything uses them.
    fn check(&self) -> Result<(), LockError> {
        let mut files = BTreeSet::new();
        for input in self.inputs(ImageProfile::Gpu) {
            let wrong = |problem| LockError::Value {
                input: input.name.clone(),
                problem,
            };
            if !is_file_name(&input.file) {
                return Err(wrong("`file` has to be a plain file name"));
            }
            match input.kind {
                Kind::Debian if !input.pool.split('/').all(is_file_name) => {
                    return Err(wrong("`pool` has to be a relative path of plain names"));
                }
                Kind::Wheel if Wheel::parse(&input.file).is_none() => {
                    return Err(wrong(
                        "`file` has to be a wheel's name: NAME-VERSION-PYTHON-ABI-PLATFORM.whl",
                    ));
                }
                Kind::Debian | Kind::Wheel => {}
            }
            if input.bytes == 0 || input.bytes > INPUT_BYTES_MAX {
                return Err(wrong("`bytes` is out of range"));
            }
            let is_sha1 =
                |name: &String| name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !input.archive_sha1.iter().all(is_sha1) {
                return Err(wrong("`archive_sha1` has to be 40 hexadecimal digits"));
            }
            if !files.insert(&input.file) {
                return Err(wrong("another input has the same `file`"));
            }
        }
        for input in &self.gpu.given {
            let plain = is_file_name(&input.name) && is_file_name(&input.file);
            if !plain || !files.insert(&input.file) {
                return Err(LockError::Value {
                    input: input.name.clone(),
                    problem: "`name` and `file` have to be plain file names, and `file` no other input's",
                });
            }
        }
        Ok(())
    }
}

/// Replaces the written part, in one step.
///
/// # Errors
/// See [`LockError`]. The lock is then as it was.
pub fn replace_builder(source: &Path, builder: &Builder) -> Result<(), LockError> {
    let path = path(source);
    let text = read(&path)?;
    let Some((kept, _)) = text.split_once(MARKER) else {
        return Err(LockError::NoMarker { path });
    };
    let text = format!("{kept}{MARKER}{}", render(builder));
    let failed = |source| LockError::File {
        path: path.clone(),
        source,
    };
    let folder = path.parent().expect("it was joined to one");
    let new = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    fs::write(new.path(), text).map_err(failed)?;
    fs::set_permissions(new.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).map_err(failed)?;
    new.persist(&path).map_err(|error| failed(error.error))?;
    Ok(())
}

/// One line for each package, so that a change of one is a change of one line.
fn render(builder: &Builder) -> String {
    let Builder {
        suite,
        release,
        snapshot,
        packages,
    } = builder;
    let lines: String = packages
        .iter()
        .map(|package| {
            let table = toml::Value::try_from(package).expect("plain data");
            format!("  {table},\n")
        })
        .collect();
    format!(
        "\n[builder]\nsuite = {suite:?}\nrelease = {release:?}\nsnapshot = {snapshot:?}\npackages = [\n{lines}]\n"
    )
}

/// Where a source tree has its lock.
pub fn path(source: &Path) -> PathBuf {
    source.join(crate::recipe::FOLDER).join("image.lock")
}

fn read(path: &Path) -> Result<String, LockError> {
    fs::read_to_string(path).map_err(|source| LockError::File {
        path: path.to_owned(),
        source,
    })
}

fn is_file_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._~".contains(&byte);
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.starts_with('.') && name.bytes().all(plain)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn locked(content: &[u8]) -> LockedInput {
        LockedInput {
            name: "test".into(),
            kind: Kind::Debian,
            version: "1".into(),
            arch: "all".into(),
            file: "cocoon-test-input_1_all.deb".into(),
            bytes: content.len() as u64,
            sha256: Digest32::of(content),
            pool: "pool/main/c/cocoon-test-input".into(),
            archive_sha1: None,
        }
    }

    fn builder(packages: Vec<LockedInput>) -> Builder {
        Builder {
            suite: "suite".into(),
            release: "1.2".into(),
            snapshot: "20260101T000000Z".into(),
            packages,
        }
    }

    const HEAD: &str = "# kept\nsource = []\n[rust]\nversion = \"1\"\ntree_sha256 = \
                        \"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"\n";

    #[test]
    fn an_update_replaces_the_written_part_and_keeps_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let lock = path(dir.path());
        fs::create_dir_all(lock.parent().unwrap()).unwrap();
        fs::write(&lock, HEAD).unwrap();
        assert!(matches!(
            replace_builder(dir.path(), &builder(vec![])),
            Err(LockError::NoMarker { .. })
        ));
        fs::write(&lock, format!("{HEAD}{MARKER}rubbish")).unwrap();
        let new = builder(vec![locked(b"content")]);
        replace_builder(dir.path(), &new).unwrap();
        let loaded = Lock::load(dir.path()).unwrap();
        assert_eq!(loaded.builder.packages, new.packages);
        assert!(fs::read_to_string(&lock).unwrap().starts_with("# kept\n"));
        assert_eq!(fs::read_dir(lock.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn names_that_would_leave_the_cache_or_the_pool_are_refused() {
        let check = |change: &dyn Fn(&mut LockedInput)| {
            let mut input = locked(b"content");
            change(&mut input);
            let text = format!("{HEAD}{}", render(&builder(vec![input])));
            Lock::parse(&text).unwrap().check().is_ok()
        };
        assert!(check(&|_| {}));
        for file in ["", "..", ".hidden", "../up", "a/b", "a b", "a\\u0000", "a?b"] {
            assert!(!check(&|input| input.file = file.into()), "file {file:?}");
            assert!(
                !check(&|input| input.pool = format!("pool/{file}/x/..")),
                "pool {file:?}"
            );
        }
        for sha1 in ["", "../../up", &"0".repeat(39)] {
            assert!(
                !check(&|input| input.archive_sha1 = Some(sha1.into())),
                "{sha1:?}"
            );
        }
        for bytes in [0, INPUT_BYTES_MAX + 1] {
            assert!(!check(&|input| input.bytes = bytes), "{bytes}");
        }
    }

    #[test]
    fn a_wheel_needs_no_pool_and_a_name_that_pip_understands() {
        let check = |file: &str| {
            let mut input = locked(b"content");
            (input.kind, input.pool, input.file) = (Kind::Wheel, String::new(), file.into());
            let text = format!("{HEAD}{}", render(&builder(vec![input])));
            Lock::parse(&text).unwrap().check().is_ok()
        };
        assert!(check("leaf-1.0-cp311-cp311-manylinux_2_28_x86_64.whl"));
        for file in [
            "leaf-1.0.tar.gz",
            "leaf-1.0-cp311-manylinux.whl",
            "leaf--cp311-none-any.whl",
            "--.whl",
        ] {
            assert!(!check(file), "{file}");
        }
    }

    #[test]
    fn two_inputs_cannot_share_a_file() {
        let twice = builder(vec![locked(b"a"), locked(b"b")]);
        let lock = Lock::parse(&format!("{HEAD}{}", render(&twice))).unwrap();
        assert!(lock.check().unwrap_err().to_string().contains("the same `file`"));
    }
}
