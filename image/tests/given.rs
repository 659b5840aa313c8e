//! Inputs that have to be brought: what the lock may say of them, how they are found, and what `cocoon-image lock` says,
//! with which exit code, where one is missing or another file.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use cocoon_evidence::Digest32;
use cocoon_image::{
    given::{GivenError, GivenInput},
    input::Sources,
    lock::{self, Lock, LockError},
};
use cocoon_measurements::ImageProfile;

fn source() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Who needs the driver; there is no network to ask, and nothing is compiled without it.
const NEED_IT: [&[&str]; 2] = [
    &["lock", "fetch", "--profile", "gpu"],
    &["build", "--profile", "gpu", "--out", "never-made"],
];

fn run(arguments: &[&str], cache: &Path, inputs: &Path) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_cocoon-image"));
    program.args(arguments).current_dir(cache);
    program.arg("--source").arg(source());
    program.arg("--cache").arg(cache).arg("--inputs").arg(inputs);
    let output = program.output().unwrap();
    assert_eq!(fs::read_dir(cache).unwrap().count(), 0, "something was begun");
    output
}

#[test]
fn a_driver_that_was_not_brought_is_named_before_anything_is_fetched_or_compiled() {
    for arguments in NEED_IT {
        let (cache, inputs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let lock = Lock::load(source()).unwrap();
        let driver = &lock.given(ImageProfile::Gpu)[0];
        let output = run(arguments, cache.path(), inputs.path());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{said}");
        let folder = cache.path().join("inputs").display().to_string();
        let sha256 = driver.sha256.to_string();
        for needed in [
            &driver.name,
            &driver.version,
            &driver.file,
            &driver.publisher,
            &driver.licence,
            &sha256,
            &folder,
        ] {
            assert!(said.contains(needed), "{needed} is not in: {said}");
        }
    }
}

#[test]
fn a_driver_of_other_content_is_refused_before_anything_is_fetched_or_compiled() {
    for arguments in NEED_IT {
        let (cache, inputs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let lock = Lock::load(source()).unwrap();
        let driver = &lock.given(ImageProfile::Gpu)[0];
        fs::write(inputs.path().join(&driver.file), "a driver with a back door").unwrap();
        let output = run(arguments, cache.path(), inputs.path());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let found = Digest32::of(b"a driver with a back door");
        for hash in [found, driver.sha256] {
            assert!(said.contains(&hash.to_string()), "{said}");
        }
    }
}

fn driver(content: &[u8]) -> GivenInput {
    GivenInput {
        name: "driver".into(),
        version: "1.2".into(),
        file: "driver-1.2.run".into(),
        sha256: Digest32::of(content),
        publisher: "the publisher's site".into(),
        licence: "the publisher's own".into(),
    }
}

#[test]
fn a_named_folder_is_searched_before_the_cache() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let input = driver(b"driver");
    let sources = Sources::new(Some(folder.path().to_owned()), cache.path(), "");
    let missing = input.find(&sources);
    assert!(matches!(missing, Err(GivenError::NotGiven { .. })), "{missing:?}");

    let kept = cache.path().join("inputs");
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join(&input.file), "driver").unwrap();
    assert_eq!(input.find(&sources).unwrap(), kept.join(&input.file));

    let named = folder.path().join(&input.file);
    fs::write(&named, "another driver").unwrap();
    let wrong = input.find(&sources);
    assert!(matches!(wrong, Err(GivenError::WrongContent { .. })), "{wrong:?}");
    assert!(named.exists(), "what is somebody's is not removed");
    fs::write(&named, "driver").unwrap();
    assert_eq!(input.find(&sources).unwrap(), named);
}

/// The lock of this tree, with the driver under another name or file name.
fn lock_with(name: &str, file: &str) -> Result<Lock, LockError> {
    let text = fs::read_to_string(lock::path(source())).unwrap();
    let of_this_tree = &Lock::load(source()).unwrap().gpu.given[0];
    let text = text
        .replace(
            &format!("name = {:?}", of_this_tree.name),
            &format!("name = {name:?}"),
        )
        .replace(
            &format!("file = {:?}", of_this_tree.file),
            &format!("file = {file:?}"),
        );
    let tree = tempfile::tempdir().unwrap();
    let path = lock::path(tree.path());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    Lock::load(tree.path())
}

#[test]
fn a_given_input_cannot_leave_its_folder_or_take_anothers_place() {
    let lock = lock_with("driver", "driver.run").unwrap();
    assert_eq!(lock.given(ImageProfile::Gpu)[0].file, "driver.run");
    let others = &lock.sources[0].file;
    for (name, file) in [
        ("driver", others.as_str()),
        ("driver", "../up"),
        ("../up", "driver.run"),
    ] {
        let error = lock_with(name, file).unwrap_err();
        assert!(matches!(error, LockError::Value { .. }), "{name} {file}: {error}");
    }
}

#[test]
fn only_the_image_for_gpus_asks_for_its_own_inputs() {
    let lock = Lock::load(source()).unwrap();
    let asks = |profile| (lock.inputs(profile).count(), lock.given(profile).len());
    let others = lock.sources.len() + lock.builder.packages.len();
    assert_eq!(asks(ImageProfile::Dev), (others, 0));
    assert_eq!(asks(ImageProfile::Cpu), (others, 0));
    assert_eq!(asks(ImageProfile::Gpu), (others + lock.gpu.sources.len(), 1));
}
