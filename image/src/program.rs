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
    builder::BuilderRoot,
    command::{self, CommandError},
    recipe::{Linkage, Program},
    sandbox::{BUILD, Bind},
};

/// The guest.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "guest";
/// Addresses that are filled in at start take a bit each instead of 24 bytes: 0.6 MB less. Needs glibc 2.36.
const SHORT_RELOCATIONS: &str = "-Clink-arg=-Wl,-z,pack-relative-relocs";
/// aws-lc then leaves out AES-GCM for AVX-512, 0.7 MB that is four times as fast as the 5 GB/s of what remains: no guest
/// has so many tokens.
const C_FLAGS: &str = "-DMY_ASSEMBLER_IS_TOO_OLD_FOR_512AVX";
/// Where the builder root sees libtorch.
const LIBTORCH: &str = "/libtorch";

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

/// What [`compile_locked`] is given.
#[derive(Debug, Clone, Copy)]
pub struct LockedPlaces<'a> {
    /// Root of the source tree.
    pub source: &'a Path,
    /// What [`crate::crates::vendor`] made.
    pub crates: &'a Path,
    /// What [`crate::workshop::Workshop::libtorch`] made, for a program that needs it.
    pub libtorch: Option<&'a Path>,
    /// An empty folder.
    pub build: &'a Path,
    /// How many compilers run at a time.
    pub jobs: usize,
}

/// Compiles a program with this machine's compilers and returns its path.
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

/// Compiles a program in the builder root and returns its path in `build`, an empty folder. All paths that the
/// compilers see are the root's own, so nothing has to be remapped.
///
/// # Errors
/// A step failed; `log` has its output.
pub fn compile_locked(
    program: &Program,
    builder: &BuilderRoot,
    from: LockedPlaces,
    log: &Path,
) -> Result<PathBuf, CommandError> {
    let mut sandbox = builder.sandbox([
        (from.source, "/source", false),
        (from.crates, "/vendor", false),
        (from.build, BUILD, true),
    ]);
    sandbox.binds.extend(from.libtorch.map(|folder| Bind {
        from: folder.to_owned(),
        to: LIBTORCH.into(),
        writable: false,
    }));
    let flags = rust_flags(program.linkage, &[])
        .into_string()
        .expect("plain text");
    let mut variables = vec![("CARGO_ENCODED_RUSTFLAGS", flags.as_str()), ("CFLAGS", C_FLAGS)];
    variables.extend(from.libtorch.map(|_| ("LIBTORCH", LIBTORCH)));
    let mut cargo = sandbox.command("/rust/bin/cargo", &variables);
    cargo.args([
        "build",
        "--manifest-path",
        "/source/Cargo.toml",
        "--locked",
        "--offline",
    ]);
    cargo.args(["--config", "source.crates-io.replace-with=\"vendored\""]);
    cargo.args(["--config", "source.vendored.directory=\"/vendor\""]);
    cargo.args([
        "--profile",
        PROFILE,
        "--target",
        TARGET,
        "--target-dir",
        "/build/target",
    ]);
    cargo.args(["--package", &program.package, "--bin", &program.package]);
    cargo.arg(format!("--jobs={}", from.jobs));
    if !program.features.is_empty() {
        cargo.args(["--features", &program.features.join(",")]);
    }
    command::run(&mut cargo, Some(log))?;
    let built = from.build.join("target").join(TARGET).join(PROFILE);
    Ok(built.join(&program.package))
}

/// Folders of this machine that compilers would write into the binary, and what stands for them there.
fn remaps(places: &Places, target: &Path) -> Result<Vec<(PathBuf, &'static str)>, CommandError> {
    let sysroot = command::run(
        Command::new("rustc")
            .args(["--print", "sysroot"])
            .current_dir(&places.source),
        None,
    )?;
    // The last match wins: the target folder and libtorch may lie inside another of these.
    Ok(vec![
        (places.source.clone(), "/cocoon"),
        (cargo_home(), "/cargo"),
        (PathBuf::from(sysroot.trim()), "/rust"),
        (places.libtorch.clone(), "/libtorch"),
        (target.to_owned(), "/target"),
    ])
}

/// Where cargo keeps what it downloads.
pub fn cargo_home() -> PathBuf {
    let home = std::env::home_dir().unwrap_or_default();
    std::env::var_os("CARGO_HOME").map_or(home.join(".cargo"), PathBuf::from)
}

fn rust_flags(linkage: Linkage, remaps: &[(PathBuf, &str)]) -> OsString {
    let mut flags = vec![OsString::from(SHORT_RELOCATIONS)];
    if linkage == Linkage::Static {
        flags.push(OsString::from("-Ctarget-feature=+crt-static"));
    }
    for (from, to) in remaps {
        flags.push(remap("--remap-path-prefix=", from, to));
    }
    flags.join(&OsString::from("\u{1f}"))
}

fn c_flags(remaps: &[(PathBuf, &str)]) -> OsString {
    let mut flags = vec![OsString::from(C_FLAGS)];
    let remaps = remaps.iter();
    flags.extend(remaps.map(|(from, to)| remap("-ffile-prefix-map=", from, to)));
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
        let always = SHORT_RELOCATIONS;
        assert_eq!(text(Linkage::Dynamic), format!("{always}\u{1f}{paths}"));
        assert_eq!(
            text(Linkage::Static),
            format!("{always}\u{1f}-Ctarget-feature=+crt-static\u{1f}{paths}")
        );
        assert_eq!(
            c_flags(&remaps).into_string().unwrap(),
            format!("{C_FLAGS} -ffile-prefix-map=/home/x=/cocoon -ffile-prefix-map=/y=/cargo")
        );
    }
}
