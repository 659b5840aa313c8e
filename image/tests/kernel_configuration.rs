//! The kernel's configuration from Linux's own source, as a build makes it: the same under other conditions, and
//! with nothing in a release kernel that tells the host anything.
//!
//! Where the source is not at hand (`cocoon-image lock fetch` gets it) the tests skip with a message.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use cocoon_image::{
    input::Sources,
    kernel::{Ingredients, KernelPlan},
    lock::Lock,
};

/// Fragments, a cache and a file for the result: what the first test is to do when another starts it as a child.
const FRAGMENTS: &str = "COCOON_TEST_FRAGMENTS";
const CACHE: &str = "COCOON_TEST_CACHE";
const RESULT: &str = "COCOON_TEST_RESULT";

/// As on a machine of somebody who has never built a kernel.
const PLAIN: &str = r#"umask 022; exec "$0" "$@""#;
/// Another umask, time zone and language, and variables that Kconfig and make read. (Linux is not built under a path
/// with spaces.)
const OTHER: &str = r#"umask 077; export TZ=Asia/Kathmandu LC_ALL=C.UTF-8 MAKEFLAGS=-k KCONFIG_ALLCONFIG=1 ARCH=arm
KCONFIG_CONFIG=elsewhere KCFLAGS=-O1 CROSS_COMPILE=no-such-; exec "$0" "$@""#;

#[test]
fn two_configurations_under_other_conditions_are_the_same() {
    if let Some(result) = env::var_os(RESULT) {
        return configure_here(result.into());
    }
    let Some(first) = configure(PLAIN, "first", "kernel.config") else {
        return;
    };
    let second = configure(OTHER, "elsewhere", "kernel.config").expect("the source is at hand");
    assert_eq!(first, second);

    let on = |option: &str| first.lines().any(|line| line == format!("CONFIG_{option}=y"));
    for option in ["INTEL_TDX_GUEST", "SEV_GUEST", "DM_VERITY", "VIRTIO_VSOCKETS"] {
        assert!(on(option), "{option}");
    }
    for option in ["PRINTK", "TTY", "MODULES", "SERIAL_8250", "ACPI_PRMT", "INET"] {
        assert!(!on(option), "{option}");
    }
}

/// What a GPU's driver needs is there; what takes the place of lockdown, too.
#[test]
fn a_kernel_for_gpus_loads_modules_of_one_file_system_only() {
    let Some(config) = configure(PLAIN, "gpu", "kernel.config kernel-gpu.config") else {
        return;
    };
    for line in [
        "CONFIG_MODULES=y",
        "CONFIG_SECURITY_LOADPIN_ENFORCE=y",
        "CONFIG_LSM=\"loadpin,landlock\"",
        "CONFIG_STRICT_MODULE_RWX=y",
        "# CONFIG_MODULE_FORCE_LOAD is not set",
        "# CONFIG_PROC_KCORE is not set",
        "# CONFIG_PRINTK is not set",
        // Without one of these NVIDIA's module is compiled without confidential computing, and nothing says so.
        "CONFIG_CRYPTO_AEAD=y",
        "CONFIG_CRYPTO_AKCIPHER=y",
        "CONFIG_CRYPTO_SKCIPHER=y",
        "CONFIG_CRYPTO_HASH=y",
        "CONFIG_CRYPTO_HMAC=y",
        "CONFIG_CRYPTO_ECDH=y",
        "CONFIG_CRYPTO_ECDSA=y",
        "CONFIG_CRYPTO_RSA=y",
        "CONFIG_X509_CERTIFICATE_PARSER=y",
    ] {
        assert!(config.lines().any(|found| found == line), "{line}");
    }
}

/// The configuration from these fragments, made by a process of its own under `conditions`, a shell's words.
fn configure(conditions: &str, folder: &str, fragments: &str) -> Option<String> {
    let lock = Lock::load(&tree()).expect("the lock of this tree");
    let package = Ingredients::load(&tree(), &lock, &[])
        .expect("the recipe of this tree")
        .package;
    let at_hand = sources(&cache())
        .at_hand(&package)
        .expect("an intact source, or none");
    let Some(package) = at_hand else {
        eprintln!(
            "SKIP: {} is not at hand; cocoon-image lock fetch gets it",
            package.file
        );
        return None;
    };
    let work = tempfile::Builder::new()
        .prefix(folder)
        .tempdir()
        .expect("a temporary folder");
    let result = work.path().join("config");
    let status = Command::new("sh")
        .args(["-c", conditions])
        .arg(env::current_exe().expect("the path of this test"))
        .args([
            "--exact",
            "two_configurations_under_other_conditions_are_the_same",
        ])
        .env(FRAGMENTS, fragments)
        .env(CACHE, work.path())
        .env(RESULT, &result)
        .env(
            "COCOON_INPUTS",
            package.parent().expect("a file lies in a folder"),
        )
        .status()
        .expect("starting this test again");
    assert!(
        status.success(),
        "{}",
        fs::read_to_string(work.path().join("kernel/build.log")).unwrap_or_default()
    );
    Some(fs::read_to_string(result).expect("the configuration"))
}

/// The child's part of [`configure`].
fn configure_here(result: PathBuf) {
    let fragments = env::var(FRAGMENTS).expect("set by the test that starts this one");
    let fragments: Vec<_> = fragments.split(' ').map(str::to_owned).collect();
    let cache = PathBuf::from(env::var_os(CACHE).expect("set by the test that starts this one"));
    let lock = Lock::load(&tree()).expect("image.lock");
    let ingredients = Ingredients::load(&tree(), &lock, &fragments).expect("patches and fragments");
    let config = KernelPlan::new(ingredients)
        .expect("a plan")
        .configuration(&sources(&cache), &cache)
        .expect("a configuration");
    fs::write(result, config).expect("writing the configuration");
}

fn tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("image lies in the tree")
        .to_owned()
}

fn sources(cache: &Path) -> Sources {
    Sources::new(env::var_os("COCOON_INPUTS").map(PathBuf::from), cache, "")
}

/// Where scripts/test keeps what it has fetched.
fn cache() -> PathBuf {
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache/cocoon");
    env::var_os("COCOON_CACHE").map_or_else(home, PathBuf::from)
}
