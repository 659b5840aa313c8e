//! Decides which packages the builder root consists of, by asking apt about one signed Debian suite.
//!
//! apt runs on a state of its own: the system's sources, preferences and installed packages play no part. It
//! verifies the suite's InRelease through gpgv against Debian's own keyring, and every index against the
//! InRelease; nothing here turns that off. What comes out is written to `image.lock` and reviewed like source.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc2822};

use crate::{
    command::{self, CommandError},
    lock::{Builder, Kind, LockedInput},
};

/// Debian's keys, from the package debian-archive-keyring.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// `builder.toml`: what the builder root is to offer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Debian suite.
    pub suite: String,
    /// Package names; what they depend on comes with them.
    pub packages: Vec<String>,
    /// Symbolic links that maintainer scripts would make: path to target.
    pub links: std::collections::BTreeMap<String, String>,
}

/// Why a suite was not resolved.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// apt failed, or refused what it was given.
    #[error("apt could not resolve the suite {suite} of {mirror}")]
    Apt {
        /// The suite.
        suite: String,
        /// Where it was read.
        mirror: String,
        /// Why.
        source: CommandError,
    },
    /// apt's private state cannot be written.
    #[error("cannot use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An answer without what has to be in it.
    #[error("{what} is missing or malformed in what apt says about {about}")]
    Answer {
        /// The field.
        what: &'static str,
        /// The package or file.
        about: String,
    },
}

/// Resolves the wanted packages and all they depend on.
///
/// # Errors
/// See [`SuiteError`].
pub fn resolve(wanted: &Wanted, mirror: &str, keyring: &Path) -> Result<Builder, SuiteError> {
    let state = tempfile::tempdir().map_err(|source| file_error(Path::new("a temporary folder"), source))?;
    let apt = Apt::new(state.path(), wanted, mirror, keyring)?;
    apt.run("apt-get", &["update", "--error-on=any"])?;
    let mut install = vec!["install", "--simulate", "--no-install-recommends", "--"];
    install.extend(wanted.packages.iter().map(String::as_str));
    let plan = apt.run("apt-get", &install)?;
    let mut packages = Vec::new();
    for (name, version) in plan.lines().filter_map(planned) {
        let exact = format!("{name}={version}");
        let stanza = apt.run("apt-cache", &["show", "--", &exact])?;
        packages.push(package(&stanza, &exact)?);
    }
    packages.sort_by(|one, other| one.name.cmp(&other.name));
    let (release, snapshot) = release(&apt.in_release()?)?;
    Ok(Builder {
        suite: wanted.suite.clone(),
        release,
        snapshot,
        packages,
    })
}

/// apt on a state of its own.
struct Apt<'a> {
    state: &'a Path,
    suite: &'a str,
    mirror: &'a str,
}

impl<'a> Apt<'a> {
    fn new(state: &'a Path, wanted: &'a Wanted, mirror: &'a str, keyring: &Path) -> Result<Self, SuiteError> {
        let apt = Self {
            state,
            suite: &wanted.suite,
            mirror,
        };
        for folder in ["lists/partial", "cache/archives/partial"] {
            let path = state.join(folder);
            fs::create_dir_all(&path).map_err(|source| file_error(&path, source))?;
        }
        let source = format!(
            "deb [arch=amd64 signed-by={}] {mirror} {} main\n",
            keyring.display(),
            wanted.suite
        );
        // APT::Sandbox::User: the state's folder belongs to whoever runs this.
        let config = format!(
            "#clear Dir::Etc;\nDir::Etc::sourcelist \"{0}/sources.list\";\nDir::Etc::sourceparts \"-\";\n\
             Dir::Etc::preferences \"-\";\nDir::Etc::preferencesparts \"-\";\nDir::Etc::trusted \"-\";\n\
             Dir::Etc::trustedparts \"-\";\nDir::State \"{0}\";\nDir::State::status \"{0}/status\";\n\
             Dir::Cache \"{0}/cache\";\nAPT::Sandbox::User \"\";\nAPT::Architecture \"amd64\";\n\
             #clear APT::Architectures;\nAPT::Architectures {{ \"amd64\"; }};\n#clear APT::Default-Release;\n\
             Acquire::Languages \"none\";\nAcquire::AllowInsecureRepositories \"false\";\n\
             #clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n",
            state.display()
        );
        for (name, text) in [
            ("sources.list", source.as_str()),
            ("apt.conf", &config),
            ("status", ""),
        ] {
            let path = state.join(name);
            fs::write(&path, text).map_err(|source| file_error(&path, source))?;
        }
        Ok(apt)
    }

    fn run(&self, tool: &str, arguments: &[&str]) -> Result<String, SuiteError> {
        let mut command = Command::new(tool);
        command
            .args(arguments)
            .env("APT_CONFIG", self.state.join("apt.conf"));
        command.env("LC_ALL", "C");
        command::run(&mut command, None).map_err(|source| SuiteError::Apt {
            suite: self.suite.to_owned(),
            mirror: self.mirror.to_owned(),
            source,
        })
    }

    /// The signed file, which apt keeps only after it verified it.
    fn in_release(&self) -> Result<String, SuiteError> {
        let lists = self.state.join("lists");
        let entries = fs::read_dir(&lists).map_err(|source| file_error(&lists, source))?;
        let found = entries
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().ends_with("_InRelease"));
        let Some(entry) = found else {
            return Err(answer("InRelease", self.suite));
        };
        fs::read_to_string(entry.path()).map_err(|source| file_error(&entry.path(), source))
    }
}

/// Name and version out of `Inst NAME (VERSION ORIGIN [ARCH])`.
fn planned(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
    Some((name, rest.split_once(' ')?.0))
}

fn package(stanza: &str, about: &str) -> Result<LockedInput, SuiteError> {
    let field = |what: &'static str| field(stanza, what).ok_or_else(|| answer(what, about));
    let (pool, file) = field("Filename")?
        .rsplit_once('/')
        .ok_or_else(|| answer("Filename", about))?;
    Ok(LockedInput {
        name: field("Package")?.to_owned(),
        kind: Kind::Debian,
        version: field("Version")?.to_owned(),
        arch: field("Architecture")?.to_owned(),
        bytes: field("Size")?.parse().map_err(|_| answer("Size", about))?,
        sha256: field("SHA256")?.parse().map_err(|_| answer("SHA256", about))?,
        pool: pool.to_owned(),
        file: file.to_owned(),
        archive_sha1: None,
    })
}

/// Point release, and a time at which the snapshot archive has it: a day after it was signed.
fn release(text: &str) -> Result<(String, String), SuiteError> {
    let get = |what: &'static str| field(text, what).ok_or_else(|| answer(what, "InRelease"));
    let date = get("Date")?.replace(" UTC", " +0000");
    let date = OffsetDateTime::parse(&date, &Rfc2822).map_err(|_| answer("Date", "InRelease"))?;
    let (year, month, day) = (date + Duration::days(1)).to_calendar_date();
    let snapshot = format!("{year:04}{:02}{day:02}T000000Z", u8::from(month));
    Ok((get("Version")?.to_owned(), snapshot))
}

/// A field of a stanza in Debian's control format.
fn field<'a>(stanza: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = stanza.lines();
    lines.find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

fn answer(what: &'static str, about: &str) -> SuiteError {
    SuiteError::Answer {
        what,
        about: about.to_owned(),
    }
}

fn file_error(path: &Path, source: io::Error) -> SuiteError {
    SuiteError::File {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANZA: &str = "Package: gcc\nSource: gcc-defaults (1.220)\nVersion: 4:14.2.0-1\nArchitecture: amd64\n\
                          Description: compiler\n Filename: of/a/continuation\nFilename: pool/main/g/gcc/gcc_14_amd64.deb\n\
                          Size: 5136\nSHA256: eee65c41a441c57c05f754ced1b9d093956966a1c7da9938c3ec00d3dc2f905d\n";

    #[test]
    fn a_plan_and_its_packages_are_read() {
        assert_eq!(
            planned("Inst gcc (4:14.2.0-1 Debian:13.7/stable [amd64])"),
            Some(("gcc", "4:14.2.0-1"))
        );
        assert_eq!(planned("Conf gcc (4:14.2.0-1 Debian:13.7/stable [amd64])"), None);
        let read = package(STANZA, "gcc").unwrap();
        assert_eq!(
            (read.pool.as_str(), read.file.as_str()),
            ("pool/main/g/gcc", "gcc_14_amd64.deb")
        );
        assert_eq!(
            (read.name.as_str(), read.version.as_str(), read.bytes),
            ("gcc", "4:14.2.0-1", 5136)
        );
        for what in [
            "Version: ",
            "Size: 5136",
            "SHA256: eee",
            "Filename: pool/main/g/gcc/",
        ] {
            let error = package(&STANZA.replace(what, "X: "), "gcc").unwrap_err();
            assert!(matches!(error, SuiteError::Answer { .. }), "{what}: {error}");
        }
    }

    #[test]
    fn the_snapshot_is_of_the_day_after_the_signature() {
        let text = |date: &str| format!("Version: 13.7\nDate: {date}\n");
        let of = |date| release(&text(date)).map(|(_, snapshot)| snapshot);
        assert_eq!(of("Sat, 12 Sep 2026 07:55:41 UTC").unwrap(), "20260913T000000Z");
        assert_eq!(of("Thu, 31 Dec 2026 23:00:00 UTC").unwrap(), "20270101T000000Z");
        assert!(of("yesterday").is_err());
    }

    /// A repository on this machine, in the form that a mirror has.
    fn repository(signed: bool) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let suite = dir.path().join("dists/suite");
        fs::create_dir_all(suite.join("main/binary-amd64")).unwrap();
        let release = "Origin: Debian\nSuite: suite\nCodename: suite\nArchitectures: amd64\nComponents: main\n\
                       Date: Sat, 12 Sep 2026 07:55:41 UTC\nSHA256:\n";
        let name = if signed { "InRelease" } else { "Release" };
        let text = if signed {
            let signature = "-----BEGIN PGP SIGNATURE-----\n\nAAAA\n-----END PGP SIGNATURE-----\n";
            format!("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{release}{signature}")
        } else {
            release.to_owned()
        };
        fs::write(suite.join(name), text).unwrap();
        dir
    }

    #[test]
    fn a_suite_that_is_not_signed_or_not_by_debian_is_refused() {
        let wanted = Wanted {
            suite: "suite".into(),
            packages: vec![],
            links: std::collections::BTreeMap::new(),
        };
        for signed in [false, true] {
            let repository = repository(signed);
            let mirror = format!("file://{}/", repository.path().display());
            let error = resolve(&wanted, &mirror, Path::new(KEYRING)).unwrap_err();
            let SuiteError::Apt { source, .. } = error else {
                panic!("{error}");
            };
            let text = source.to_string();
            assert!(
                text.contains("is not signed") || text.contains("GPG error"),
                "{text}"
            );
        }
    }
}
