//! What a dishonest builder may try to show an auditor.

use std::{
    fs::{self, File},
    io::Write as _,
};

use super::*;
use crate::{
    compare::tests::{FILES, flip, image},
    verity::VerityWriter,
};

/// Changes the manifest in the way that a builder would who wants to hide something.
fn relist(folder: &Path, change: impl FnOnce(&mut Manifest)) {
    let path = folder.join(MANIFEST);
    let mut manifest = Manifest::load(&path).unwrap();
    change(&mut manifest);
    fs::write(&path, serde_json::to_string(&manifest).unwrap()).unwrap();
}

#[test]
fn every_entry_is_read_out_of_the_root() {
    let dir = image(&FILES);
    let found = inspect(dir.path()).unwrap();
    assert!(found.is_as_listed());
    let files: Vec<_> = found
        .files
        .iter()
        .filter(|file| file.mode.0 == 0o100_755)
        .collect();
    let paths: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
    let mut expected = FILES;
    expected.sort_unstable();
    assert_eq!(paths, expected.map(|(path, _)| path));
    for (file, (_, content)) in files.into_iter().zip(expected) {
        assert_eq!(
            (file.bytes, file.sha256),
            (content.len() as u64, Digest32::of(content))
        );
        assert_eq!(file.source.as_deref(), Some("test"));
    }
}

#[test]
fn a_file_that_the_manifest_does_not_list_is_shown() {
    let dir = image(&FILES);
    relist(dir.path(), |manifest| {
        manifest.files.retain(|entry| entry.path != "/init");
    });
    let found = inspect(dir.path()).unwrap();
    let init = found.files.iter().find(|file| file.path == "/init").unwrap();
    assert_eq!((init.source.as_deref(), init.bytes), (None, 9000));
    assert!(!found.is_as_listed());
}

#[test]
fn a_file_that_is_listed_with_other_content_or_rights_or_only_listed_is_not_as_listed() {
    let hide: [fn(&mut FileEntry); 4] = [
        |entry| entry.sha256 = Digest32::of(b"harmless"),
        |entry| entry.bytes -= 1,
        |entry| entry.mode = FileMode(0o100_644),
        |entry| entry.path = "/absent".into(),
    ];
    for hide in hide {
        let dir = image(&FILES);
        relist(dir.path(), |manifest| {
            let init = manifest.files.iter_mut().find(|entry| entry.path == "/init");
            hide(init.unwrap());
        });
        let found = inspect(dir.path()).unwrap();
        assert!(!found.is_as_listed(), "{found:?}");
    }
}

/// It looks as if a file had been left out of the image on the way.
#[test]
fn a_file_that_only_the_manifest_has_is_said() {
    let dir = image(&FILES);
    relist(dir.path(), |manifest| {
        let mut entry = manifest.files.last().unwrap().clone();
        entry.path = "/zz".into();
        manifest.files.push(entry);
    });
    let found = inspect(dir.path()).unwrap();
    assert_eq!(found.absent, ["/zz"]);
    assert!(!found.is_as_listed());
}

#[test]
fn a_package_is_told_only_of_a_file_that_is_the_listed_one() {
    let told = |change: fn(&mut FileEntry)| {
        let dir = image(&FILES);
        relist(dir.path(), |manifest| {
            let init = manifest.files.iter_mut().find(|entry| entry.path == "/init");
            let init = init.unwrap();
            init.package = Some(DebianPackage {
                name: "one".into(),
                version: "1.0".into(),
            });
            change(init);
        });
        let found = inspect(dir.path()).unwrap();
        let init = found.files.into_iter().find(|file| file.path == "/init").unwrap();
        init.package.map(|package| package.version)
    };
    assert_eq!(told(|_| ()).as_deref(), Some("1.0"));
    assert_eq!(told(|entry| entry.sha256 = Digest32::of(b"harmless")), None);
}

#[test]
fn another_kernel_than_the_manifest_names_is_said() {
    let dir = image(&FILES);
    flip(&dir, "kernel", 4321);
    let found = inspect(dir.path()).unwrap();
    let problem = |file: &str| {
        found
            .artifacts
            .iter()
            .find(|one| one.file == file)
            .unwrap()
            .problem
            .clone()
    };
    assert!(
        problem("kernel")
            .unwrap()
            .contains("is not the kernel of the manifest")
    );
    assert_eq!(problem("root.img"), None);
    assert!(!found.is_as_listed());
}

#[test]
fn a_root_that_does_not_match_its_hash_is_not_shown() {
    let dir = image(&FILES);
    let last = fs::metadata(dir.path().join("root.img")).unwrap().len() - 1;
    for offset in [1024, 5000, last / 2, last] {
        flip(&dir, "root.img", offset);
        let error = inspect(dir.path()).unwrap_err();
        assert!(
            matches!(
                error,
                InspectError::Volume(_) | InspectError::Form(FormError::Volume(_))
            ),
            "{offset}: {error}"
        );
        assert!(error.is_forgery());
        flip(&dir, "root.img", offset);
    }
    inspect(dir.path()).unwrap();
}

/// The builder computes the root hash, so it is right for whatever lies behind a file's end.
#[test]
fn bytes_hidden_behind_the_end_of_a_file_are_refused() {
    let dir = image(&FILES);
    let root = dir.path().join("root.img");
    let verity = Manifest::load(&dir.path().join(MANIFEST)).unwrap().root_verity;
    let mut data = fs::read(&root).unwrap();
    data.truncate(verity.data_blocks as usize * BLOCK_BYTES);
    *data.last_mut().unwrap() = 1;
    let file = File::options()
        .read(true)
        .write(true)
        .truncate(true)
        .open(&root)
        .unwrap();
    let mut writer = VerityWriter::new(file, verity.data_blocks, verity.salt);
    writer.write_all(&data).unwrap();
    let sealed = writer.finish().unwrap();
    relist(dir.path(), |manifest| {
        let (old, new) = (verity.root_hash.to_string(), sealed.root_hash.to_string());
        manifest.command_line = manifest.command_line.replace(&old, &new);
        manifest.root_verity = sealed;
        manifest.artifacts.root = Artifact::of_file(&root).unwrap();
    });
    let error = inspect(dir.path()).unwrap_err();
    assert!(
        matches!(&error, InspectError::Hidden { path } if path == "/usr/bin/engine"),
        "{error}"
    );
    assert!(error.is_forgery());
}
