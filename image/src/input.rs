//! Finds locked inputs. In this order: a folder that the user names, the cache, the pools of the system's
//! configured Debian mirrors and Debian's archive of old versions (for a wheel: pip's configured index), a bundle
//! of the user's own. Where a file comes from does not matter, its hash does.

use std::{
    cell::OnceCell,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
};

use cocoon_evidence::Digest32;
use sha2::{Digest as _, Sha256};

use crate::{
    command::{self, CommandError},
    lock::{Kind, LockedInput, Wheel},
    publish::WorkFolder,
};

/// Debian's own archive of everything that was ever in a suite.
pub const DEBIAN_ARCHIVE: &str = "https://snapshot.debian.org";
/// What a folder made by [`write_bundle`] holds beside the inputs, for `sha256sum --check`.
pub const BUNDLE_SUMS: &str = "SHA256SUMS";

/// Where inputs may come from.
#[derive(Debug)]
pub struct Sources {
    /// A folder that is searched first and never written.
    pub given: Option<PathBuf>,
    /// What is fetched is kept in its folder `inputs`.
    pub cache: PathBuf,
    /// Address of a snapshot archive of Debian.
    pub archive: String,
    /// The time of the snapshot.
    pub snapshot: String,
    /// Address of a folder made by [`write_bundle`].
    pub bundle: Option<String>,
    /// apt is asked once.
    mirrors: OnceCell<Vec<String>>,
}

/// Why an input is not at hand.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// A file with the right name has other content.
    #[error(
        "{} is not the locked input: it has {found_bytes} bytes with SHA-256 {found}, image.lock says \
         {expected_bytes} bytes with {expected}; remove it or replace it with the right file",
        path.display()
    )]
    WrongContent {
        /// Where it lies.
        path: PathBuf,
        /// Its length.
        found_bytes: u64,
        /// Its hash.
        found: Digest32,
        /// The locked length.
        expected_bytes: u64,
        /// The locked hash.
        expected: Digest32,
    },
    /// A file cannot be read, copied or moved.
    #[error("cannot use {}", path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is nowhere.
    #[error(
        "{file} (SHA-256 {sha256}) is not at hand, and nothing that was asked has {wanted}; put the file into {} or \
         name its folder in COCOON_INPUTS{reasons}",
        folder.display()
    )]
    Missing {
        /// The file's name.
        file: String,
        /// The locked hash.
        sha256: Digest32,
        /// What its publishers were asked for.
        wanted: Box<str>,
        /// Where it may be put.
        folder: Box<Path>,
        /// What each address answered, ready for printing.
        reasons: Box<str>,
    },
}

impl Sources {
    /// The usual places.
    pub fn new(given: Option<PathBuf>, cache: &Path, snapshot: &str) -> Self {
        Self {
            given,
            cache: cache.to_owned(),
            archive: DEBIAN_ARCHIVE.to_owned(),
            snapshot: snapshot.to_owned(),
            bundle: None,
            mirrors: OnceCell::new(),
        }
    }

    /// A file with the locked content on this machine, if there is one.
    ///
    /// # Errors
    /// [`InputError::WrongContent`]: something else has its name.
    pub fn at_hand(&self, input: &LockedInput) -> Result<Option<PathBuf>, InputError> {
        let found = self.named(&input.file)?;
        if let Some(path) = &found {
            check(input, path)?;
        }
        Ok(found)
    }

    /// The first file of this name in the folders of this machine, whatever its content.
    pub(crate) fn named(&self, file: &str) -> Result<Option<PathBuf>, InputError> {
        let folders = self.given.iter().cloned().chain([self.folder()]);
        for path in folders.map(|folder| folder.join(file)) {
            if path.try_exists().map_err(|source| unusable(&path, source))? {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// The path of a file with the locked content, downloaded if need be.
    ///
    /// # Errors
    /// See [`InputError`]. Nothing incomplete is then under the input's name.
    pub fn find(&self, input: &LockedInput) -> Result<PathBuf, InputError> {
        match self.at_hand(input)? {
            Some(path) => Ok(path),
            None => self.download(input),
        }
    }

    /// Downloads into a folder of its own, so that an interrupted download leaves nothing under the final name.
    ///
    /// A pool holds a file as long as any suite needs it, so this works on a system whose own suite does not
    /// have the package.
    fn download(&self, input: &LockedInput) -> Result<PathBuf, InputError> {
        let folder = self.folder();
        fs::create_dir_all(&folder).map_err(|source| unusable(&folder, source))?;
        let work = WorkFolder::new(&folder, ".download-").map_err(|source| unusable(&folder, source))?;
        let fetched = work.path().join(&input.file);
        let mut reasons = String::new();
        let mut answered = |answer: Result<(), CommandError>| {
            answer.map_err(|error| reasons += &format!("\n{error}")).is_ok()
        };
        let mut addresses = self.addresses(input).into_iter();
        let found = (input.kind == Kind::Wheel && answered(fetch_wheel(input, work.path())))
            || addresses.any(|address| answered(fetch(&address, input, &fetched)));
        if !found {
            return Err(self.missing(input, &reasons));
        }
        if !fetched.is_file() {
            return Err(self.missing(input, "\npip fetched another file"));
        }
        check(input, &fetched)?;
        let path = folder.join(&input.file);
        let kept = File::open(&fetched).and_then(|file| file.sync_all());
        kept.and_then(|()| fs::rename(&fetched, &path))
            .map_err(|source| unusable(&path, source))?;
        Ok(path)
    }

    /// The error that says where an input may be put.
    pub fn missing(&self, input: &LockedInput, reasons: &str) -> InputError {
        InputError::Missing {
            file: input.file.clone(),
            sha256: input.sha256,
            wanted: match input.kind {
                Kind::Debian => format!("{}/{}", input.pool, input.file).into(),
                Kind::Wheel => format!("the wheel {} {}", input.name, input.version).into(),
            },
            folder: self.folder().into(),
            reasons: reasons.into(),
        }
    }

    fn addresses(&self, input: &LockedInput) -> Vec<String> {
        let LockedInput { pool, file, .. } = input;
        let bundle = self.bundle.iter().map(|bundle| format!("{bundle}/{file}"));
        if input.kind == Kind::Wheel {
            return bundle.collect();
        }
        // Without apt there are no mirrors; the other addresses may still do.
        let mirrors = self.mirrors.get_or_init(|| mirrors().unwrap_or_default());
        let mut addresses: Vec<_> = mirrors
            .iter()
            .map(|mirror| format!("{mirror}{pool}/{file}"))
            .collect();
        // The archive finds a file by the time at which a suite had it, or by its hash.
        let archived = match &input.archive_sha1 {
            Some(sha1) => format!("{}/file/{sha1}", self.archive),
            None => format!("{}/archive/debian/{}/{pool}/{file}", self.archive, self.snapshot),
        };
        addresses.push(archived);
        addresses.extend(bundle);
        addresses
    }

    /// Where what was fetched is kept, and what is given may be put.
    pub(crate) fn folder(&self) -> PathBuf {
        self.cache.join("inputs")
    }
}

/// Copies inputs into a folder that can be given to `--inputs`, or served and given to `--bundle`.
///
/// # Errors
/// See [`InputError`]. Every file in the folder is then whole.
pub fn write_bundle(sources: &Sources, inputs: &[&LockedInput], folder: &Path) -> Result<(), InputError> {
    fs::create_dir_all(folder).map_err(|source| unusable(folder, source))?;
    for input in inputs {
        let found = sources.find(input)?;
        let copied = tempfile::NamedTempFile::new_in(folder).map_err(|source| unusable(folder, source))?;
        fs::copy(&found, copied.path()).map_err(|source| unusable(copied.path(), source))?;
        check(input, copied.path())?;
        publish(copied, &folder.join(&input.file))?;
    }
    let sums: String = inputs
        .iter()
        .map(|input| format!("{}  {}\n", input.sha256, input.file))
        .collect();
    let list = tempfile::NamedTempFile::new_in(folder).map_err(|source| unusable(folder, source))?;
    fs::write(list.path(), sums).map_err(|source| unusable(list.path(), source))?;
    publish(list, &folder.join(BUNDLE_SUMS))
}

fn publish(file: tempfile::NamedTempFile, path: &Path) -> Result<(), InputError> {
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(file.path(), readable).map_err(|source| unusable(path, source))?;
    file.persist(path).map_err(|error| unusable(path, error.error))?;
    Ok(())
}

/// Base addresses of the configured mirrors, each ending in a slash.
fn mirrors() -> Result<Vec<String>, CommandError> {
    repositories("$(REPO_URI)")
}

/// Base addresses of the configured mirrors that carry Debian itself.
///
/// # Errors
/// apt is missing or failed.
pub fn debian_mirrors() -> Result<Vec<String>, CommandError> {
    let lines = repositories("$(LABEL) $(REPO_URI)")?;
    let debian = lines.iter().filter_map(|line| line.strip_prefix("Debian "));
    Ok(debian.map(str::to_owned).collect())
}

fn repositories(format: &str) -> Result<Vec<String>, CommandError> {
    let mut apt = Command::new("apt-get");
    let listed = command::run(apt.args(["indextargets", "--format", format]), None)?;
    let mut lines: Vec<String> = listed.lines().map(str::to_owned).collect();
    lines.sort();
    lines.dedup();
    Ok(lines)
}

/// apt's own downloader: it knows the system's proxies and checks the hash.
fn fetch(address: &str, input: &LockedInput, to: &Path) -> Result<(), CommandError> {
    let mut apt = Command::new("/usr/lib/apt/apt-helper");
    apt.args(["download-file", address]);
    apt.arg(to).arg(format!("SHA256:{}", input.sha256));
    command::run(&mut apt, None).map(|_| ())
}

/// pip knows the index and proxies that the system is configured for.
fn fetch_wheel(input: &LockedInput, folder: &Path) -> Result<(), CommandError> {
    let wheel = Wheel::parse(&input.file).expect("the lock was checked");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "--disable-pip-version-check", "download", "--quiet"]);
    pip.args(["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--dest"]);
    pip.arg(folder).args(choice(&wheel));
    command::run(&mut pip, None).map(|_| ())
}

/// pip's options for exactly this wheel: otherwise it takes the one for its own Python.
fn choice(wheel: &Wheel) -> Vec<String> {
    let (implementation, version) = wheel.python.split_at(2);
    let mut options = vec![
        format!("--implementation={implementation}"),
        format!("--python-version={version}"),
        format!("--abi={}", wheel.abi),
    ];
    let platforms = wheel.platforms.split('.');
    options.extend(platforms.map(|platform| format!("--platform={platform}")));
    options.push(format!("{}=={}", wheel.name, wheel.version));
    options
}

fn check(input: &LockedInput, path: &Path) -> Result<(), InputError> {
    let (bytes, sha256) = hash_file(path).map_err(|source| unusable(path, source))?;
    if (bytes, sha256) == (input.bytes, input.sha256) {
        return Ok(());
    }
    Err(InputError::WrongContent {
        path: path.to_owned(),
        found_bytes: bytes,
        found: sha256,
        expected_bytes: input.bytes,
        expected: input.sha256,
    })
}

/// Length and SHA-256 of a file, in constant memory.
///
/// # Errors
/// It cannot be read.
pub fn hash_file(path: &Path) -> io::Result<(u64, Digest32)> {
    let mut hash = Sha256::new();
    let bytes = io::copy(&mut File::open(path)?, &mut hash)?;
    Ok((bytes, Digest32(hash.finalize().into())))
}

pub(crate) fn unusable(path: &Path, source: io::Error) -> InputError {
    InputError::Unusable {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        net::TcpListener,
        sync::mpsc,
        thread,
    };

    use super::*;
    use crate::lock::tests::locked;

    /// No mirrors and an archive that is a folder on this machine: the tests touch no network.
    fn offline(cache: &Path, archive: &Path) -> Sources {
        let mirrors = OnceCell::new();
        mirrors.set(vec![]).unwrap();
        Sources {
            archive: format!("file://{}", archive.display()),
            mirrors,
            ..Sources::new(None, cache, "20260101T000000Z")
        }
    }

    /// What lies among the inputs, beside the lock of those who download.
    fn left(cache: &Path) -> Vec<String> {
        let entries = fs::read_dir(cache.join("inputs")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != ".download-lock").collect()
    }

    /// An archive on this machine's loopback that gives every request the same answer. Returns its address and the
    /// first lines of the requests.
    fn served(answer: &str) -> (String, mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (asked, requests) = mpsc::channel();
        let answer = answer.to_owned();
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let first = lines.next().unwrap().unwrap();
                let _ = lines
                    .take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty()))
                    .count();
                let _ = asked.send(first);
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        (address, requests)
    }

    /// A file in the archive under the input's path.
    fn archived(archive: &Path, input: &LockedInput, content: &[u8]) {
        let folder = archive.join("archive/debian/20260101T000000Z").join(&input.pool);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(&input.file), content).unwrap();
    }

    #[test]
    fn the_given_folder_comes_before_the_cache() {
        let (given, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let input = locked(b"content");
        fs::create_dir(cache.path().join("inputs")).unwrap();
        let cached = cache.path().join("inputs").join(&input.file);
        fs::write(&cached, b"content").unwrap();
        let mut sources = offline(cache.path(), cache.path());
        sources.given = Some(given.path().to_owned());
        assert_eq!(sources.find(&input).unwrap(), cached);
        let own = given.path().join(&input.file);
        fs::write(&own, b"content").unwrap();
        assert_eq!(sources.find(&input).unwrap(), own);
    }

    #[test]
    fn another_content_or_a_truncated_one_is_refused() {
        let (given, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let input = locked(b"content");
        let mut sources = offline(cache.path(), cache.path());
        sources.given = Some(given.path().to_owned());
        for content in [b"CONTENT".as_slice(), b"conten", b""] {
            fs::write(given.path().join(&input.file), content).unwrap();
            let error = sources.find(&input).unwrap_err();
            assert!(matches!(error, InputError::WrongContent { .. }), "{error}");
        }
    }

    #[test]
    fn a_missing_input_is_named_with_its_hash_and_its_place() {
        let cache = tempfile::tempdir().unwrap();
        let input = locked(b"content");
        let error = offline(cache.path(), cache.path()).find(&input).unwrap_err();
        let text = error.to_string();
        for part in [&input.file, &input.sha256.to_string(), "COCOON_INPUTS"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(left(cache.path()), [""; 0]);
    }

    #[test]
    fn a_download_that_lies_or_stops_early_leaves_nothing_and_a_true_one_is_kept() {
        let (archive, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let input = locked(b"content");
        let sources = offline(cache.path(), archive.path());
        for content in [b"CONTENT".as_slice(), b"conten", b"content and more"] {
            archived(archive.path(), &input, content);
            let error = sources.find(&input).unwrap_err();
            assert!(matches!(error, InputError::Missing { .. }), "{error}");
            assert_eq!(left(cache.path()), [""; 0], "{error}");
        }
        archived(archive.path(), &input, b"content");
        let found = sources.find(&input).unwrap();
        assert_eq!(fs::read(&found).unwrap(), b"content");
        assert!(found.starts_with(cache.path()));
    }

    #[test]
    fn an_archive_that_stops_early_or_has_another_file_over_http_leaves_nothing() {
        let input = locked(b"content");
        let http = |length: usize, body: &str| {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
        };
        let absent = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned();
        for answer in [http(7, "CONTENT"), http(7, "con"), absent] {
            let cache = tempfile::tempdir().unwrap();
            let mut sources = offline(cache.path(), cache.path());
            let (archive, _requests) = served(&answer);
            sources.archive = archive;
            let error = sources.find(&input).unwrap_err();
            assert!(matches!(error, InputError::Missing { .. }), "{error}");
            assert_eq!(left(cache.path()), [""; 0], "{error}");
        }
        let cache = tempfile::tempdir().unwrap();
        let mut sources = offline(cache.path(), cache.path());
        let (archive, requests) = served(&http(7, "content"));
        sources.archive = archive;
        assert_eq!(fs::read(sources.find(&input).unwrap()).unwrap(), b"content");
        let LockedInput { pool, file, .. } = &input;
        let expected = format!("GET /archive/debian/20260101T000000Z/{pool}/{file} HTTP/1.1");
        assert_eq!(requests.recv().unwrap(), expected);
    }

    #[test]
    fn the_archive_is_asked_by_its_own_hash_but_believed_only_by_the_locked_one() {
        let (archive, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sha1 = "0123456789012345678901234567890123456789";
        let mut input = locked(b"content");
        input.archive_sha1 = Some(sha1.into());
        fs::create_dir(archive.path().join("file")).unwrap();
        let sources = offline(cache.path(), archive.path());
        fs::write(archive.path().join("file").join(sha1), b"CONTENT").unwrap();
        assert!(matches!(sources.find(&input), Err(InputError::Missing { .. })));
        fs::write(archive.path().join("file").join(sha1), b"content").unwrap();
        assert!(sources.find(&input).is_ok());
    }

    #[test]
    fn a_wheel_is_chosen_by_its_name_not_by_the_python_that_is_installed() {
        let choice = |file: &str| choice(&Wheel::parse(file).unwrap()).join(" ");
        assert_eq!(
            choice("torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl"),
            "--implementation=cp --python-version=311 --abi=cp311 --platform=manylinux_2_28_x86_64 \
             torch==2.11.0"
        );
        assert_eq!(
            choice("leaf_cu13-13.0.1-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl"),
            "--implementation=py --python-version=3 --abi=none --platform=manylinux2014_x86_64 \
             --platform=manylinux_2_17_x86_64 leaf_cu13==13.0.1"
        );
    }

    #[test]
    fn no_mirror_is_asked_for_a_wheel_and_a_wrong_one_in_the_folder_is_refused() {
        let (given, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let input = LockedInput {
            kind: Kind::Wheel,
            pool: String::new(),
            file: "leaf-1-py3-none-any.whl".into(),
            ..locked(b"content")
        };
        let mut sources = offline(cache.path(), cache.path());
        assert!(sources.addresses(&input).is_empty());
        let text = sources.missing(&input, "").to_string();
        assert!(text.contains("has the wheel test 1; put the file into"), "{text}");
        sources.given = Some(given.path().to_owned());
        fs::write(given.path().join(&input.file), b"CONTENT").unwrap();
        assert!(matches!(
            sources.find(&input),
            Err(InputError::WrongContent { .. })
        ));
        fs::write(given.path().join(&input.file), b"content").unwrap();
        assert_eq!(sources.find(&input).unwrap(), given.path().join(&input.file));
    }

    #[test]
    fn a_bundle_serves_as_a_folder_and_as_an_address() {
        let (archive, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let bundle = tempfile::tempdir().unwrap();
        let input = locked(b"content");
        archived(archive.path(), &input, b"content");
        let sources = offline(cache.path(), archive.path());
        write_bundle(&sources, &[&input], bundle.path()).unwrap();
        let sums = fs::read_to_string(bundle.path().join(BUNDLE_SUMS)).unwrap();
        assert_eq!(sums, format!("{}  {}\n", input.sha256, input.file));
        assert_eq!(fs::read_dir(bundle.path()).unwrap().count(), 2);

        let fresh = tempfile::tempdir().unwrap();
        let mut from_folder = offline(fresh.path(), fresh.path());
        from_folder.given = Some(bundle.path().to_owned());
        assert_eq!(
            from_folder.at_hand(&input).unwrap(),
            Some(bundle.path().join(&input.file))
        );
        let mut from_address = offline(fresh.path(), fresh.path());
        from_address.bundle = Some(format!("file://{}", bundle.path().display()));
        assert!(from_address.find(&input).unwrap().starts_with(fresh.path()));
    }
}
