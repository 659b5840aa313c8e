//! Inputs for machines without a network, or for when mirrors have dropped them.

use std::{fs, path::Path};

use super::{InputError, Sources, check, unusable};
use crate::lock::LockedInput;

/// What a folder made by [`write_bundle`] holds beside the inputs, for `sha256sum --check`.
pub const BUNDLE_SUMS: &str = "SHA256SUMS";

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

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{archived, offline},
        *,
    };
    use crate::lock::tests::locked;

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
