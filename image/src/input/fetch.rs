//! How an input is fetched: by apt and pip, which know the mirrors, indexes and proxies that this system is configured
//! for. Neither knows how long the file should be, so the kernel stops them at the locked length: a server that sends
//! more, or without end, fills no disk.
//!
//! Trusts nobody with the content: that is checked by whoever takes the file.

use std::{path::Path, process::Command};

use crate::{
    command::{self, CommandError},
    lock::{LockedInput, Wheel},
};

const APT_HELPER: &str = "/usr/lib/apt/apt-helper";
const PYTHON: &str = "python3";
/// pip writes notes of its own beside the wheel, which a small wheel's length would not hold.
const PIP_BYTES_MIN: u64 = 1024 * 1024;

/// Base addresses of the configured mirrors, each ending in a slash.
pub(super) fn mirrors() -> Result<Vec<String>, CommandError> {
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
pub(super) fn from_address(address: &str, input: &LockedInput, to: &Path) -> Result<(), CommandError> {
    let mut apt = bounded(APT_HELPER, input.bytes)?;
    apt.args(["download-file", address]);
    apt.arg(to).arg(format!("SHA256:{}", input.sha256));
    command::run(&mut apt, None).map(|_| ())
}

/// pip knows the index and proxies that the system is configured for.
pub(super) fn wheel(input: &LockedInput, folder: &Path) -> Result<(), CommandError> {
    let wheel = Wheel::parse(&input.file).expect("the lock was checked");
    let mut pip = bounded(PYTHON, input.bytes.max(PIP_BYTES_MIN))?;
    pip.args(["-m", "pip", "--disable-pip-version-check", "download", "--quiet"]);
    pip.args(["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--dest"]);
    pip.arg(folder).args(choice(&wheel));
    command::run(&mut pip, None).map(|_| ())
}

/// A program that, with all that it starts, writes no file longer than this (setrlimit(2), RLIMIT_FSIZE), and leaves no
/// core when it tries to.
fn bounded(tool: &str, bytes_max: u64) -> Result<Command, CommandError> {
    // Started by another program, it would not be missed under its own name.
    command::require(&[tool])?;
    let mut command = Command::new("prlimit");
    command.arg(format!("--fsize={bytes_max}")).arg("--core=0");
    command.arg(tool);
    Ok(command)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_would_write_more_is_stopped_at_the_limit_and_one_that_would_not_is_not() {
        let dir = tempfile::tempdir().unwrap();
        for (writes, left) in [(5_000, 5_000), (8_192, 8_192), (8_193, 8_192), (1_000_000, 8_192)] {
            let path = dir.path().join(writes.to_string());
            // A program beneath the one that is started, as apt's are.
            let script = format!("(head -c {writes} /dev/zero) > {}", path.display());
            let ended = command::run(bounded("sh", 8_192).unwrap().args(["-c", &script]), None);
            assert_eq!(path.metadata().unwrap().len(), left);
            assert_eq!(ended.is_ok(), writes == left, "{writes}");
        }
    }

    #[test]
    fn what_is_missing_is_named_and_not_what_would_have_started_it() {
        let error = bounded("cocoon-no-such-tool", 1).unwrap_err();
        assert!(matches!(error, CommandError::MissingTool { tool, .. } if tool == "cocoon-no-such-tool"));
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
}
