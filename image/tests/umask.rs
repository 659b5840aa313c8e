//! In a program of its own: the umask is the whole process's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
};

use cocoon_image::{model, publish};
use nix::sys::stat::{Mode, umask};

/// Who runs an image need not be who built it.
#[test]
fn everybody_may_read_what_a_builder_with_a_narrow_umask_made() {
    umask(Mode::from_bits_truncate(0o077));
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    publish::file(&place("manifest.json"), b"{}").unwrap();
    publish::make_readable(&File::create(place("root.img")).unwrap()).unwrap();
    fs::create_dir(place("demo")).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::write(place("demo").join(name), "{}").unwrap();
    }
    model::pack(&place("demo"), "demo", &place("demo.img")).unwrap();
    for name in ["manifest.json", "root.img", "demo.img", "demo.json"] {
        let mode = place(name).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644, "{name}");
    }
}
