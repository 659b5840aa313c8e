//! How an input is fetched: by apt and pip, which know the mirrors, indexes and proxies that this system is configured
//! for. Trusts nobody with the content: that is checked by whoever takes the file.

use std::{path::Path, process::Command};

use crate::{
    command::{self, CommandError},
    lock::{LockedInput, Wheel},
};

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
    let mut apt = Command::new("/usr/lib/apt/apt-helper");
    apt.args(["download-file", address]);
    apt.arg(to).arg(format!("SHA256:{}", input.sha256));
    command::run(&mut apt, None).map(|_| ())
}

/// pip knows the index and proxies that the system is configured for.
pub(super) fn wheel(input: &LockedInput, folder: &Path) -> Result<(), CommandError> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
