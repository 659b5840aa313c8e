//! Compiles the guest's programs with cargo, so that their bytes depend on the source and the toolchain, not
//! on folders of this machine.
//!
//! Cargo decides itself what is fresh. Each program has a target folder of its own in the cache: different
//! flags in one folder would rebuild everything each time.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    command::{self, CommandError},
    recipe::{Linkage, Program},
};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "guest";

/// Where things are on this machine.
#[derive(Debug, Clone)]
pub struct Places {
    /// Root of the source tree.
    pub source: PathBuf,
    /// The cache.
    pub cache: PathBuf,
    /// The folder that scripts/libtorch makes.
    pub libtorch: PathBuf,
}

/// Compiles a program and returns its path.
///
/// # Errors
/// Cargo is missing or failed.
pub fn compile(program: &Program, places: &Places) -> Result<PathBuf, CommandError> {
    command::require(&["cargo", "gcc"])?;
    let target = places.cache.join("target").join(&program.package);
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(&places.source)
        .args(["build", "--locked", "--profile", PROFILE, "--target", TARGET])
        .args(["--package", &program.package, "--bin", &program.package])
        .arg("--target-dir")
        .arg(&target)
        .env("LIBTORCH", &places.libtorch)
        .env_remove("RUSTFLAGS");
    if !program.features.is_empty() {
        cargo.args(["--features", &program.features.join(",")]);
    }
    let remaps = remaps(places, &target)?;
    cargo.env("CARGO_ENCODED_RUSTFLAGS", rust_flags(program.linkage, &remaps));
    for variable in ["CFLAGS", "CXXFLAGS"] {
        cargo.env(variable, c_flags(&remaps));
    }
    command::run(&mut cargo, None)?;
    Ok(target.join(TARGET).join(PROFILE).join(&program.package))
}

/// Folders of this machine that compilers would write into the binary, and what stands for them there.
fn remaps(places: &Places, target: &Path) -> Result<Vec<(PathBuf, &'static str)>, CommandError> {
    let sysroot = command::run(
        Command::new("rustc")
            .args(["--print", "sysroot"])
            .current_dir(&places.source),
        None,
    )?;
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cargo_home = std::env::var_os("CARGO_HOME").map_or(home.join(".cargo"), PathBuf::from);
    // The last match wins: the target folder and libtorch may lie inside another of these.
    Ok(vec![
        (places.source.clone(), "/cocoon"),
        (cargo_home, "/cargo"),
        (PathBuf::from(sysroot.trim()), "/rust"),
        (places.libtorch.clone(), "/libtorch"),
        (target.to_owned(), "/target"),
    ])
}

fn rust_flags(linkage: Linkage, remaps: &[(PathBuf, &str)]) -> OsString {
    let mut flags = Vec::new();
    if linkage == Linkage::Static {
        flags.push(OsString::from("-Ctarget-feature=+crt-static"));
    }
    for (from, to) in remaps {
        flags.push(remap("--remap-path-prefix=", from, to));
    }
    flags.join(&OsString::from("\u{1f}"))
}

fn c_flags(remaps: &[(PathBuf, &str)]) -> OsString {
    let flags: Vec<_> = remaps
        .iter()
        .map(|(from, to)| remap("-ffile-prefix-map=", from, to))
        .collect();
    flags.join(&OsString::from(" "))
}

fn remap(flag: &str, from: &Path, to: &str) -> OsString {
    let mut text = OsString::from(flag);
    text.push(from);
    text.push("=");
    text.push(to);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_static_programs_carry_their_c_library_and_all_paths_are_remapped() {
        let remaps = [
            (PathBuf::from("/home/x"), "/cocoon"),
            (PathBuf::from("/y"), "/cargo"),
        ];
        let text = |linkage| rust_flags(linkage, &remaps).into_string().unwrap();
        let paths = "--remap-path-prefix=/home/x=/cocoon\u{1f}--remap-path-prefix=/y=/cargo";
        assert_eq!(text(Linkage::Dynamic), paths);
        assert_eq!(
            text(Linkage::Static),
            format!("-Ctarget-feature=+crt-static\u{1f}{paths}")
        );
        assert_eq!(
            c_flags(&remaps),
            "-ffile-prefix-map=/home/x=/cocoon -ffile-prefix-map=/y=/cargo"
        );
    }
}
