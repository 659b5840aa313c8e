//! What a kernel is made of: Debian's source package, the recipe's patches to it and configuration fragments.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::KERNEL_SOURCE;
use crate::{
    lock::{Lock, LockError, LockedInput},
    recipe,
};

/// In the recipe's folder: what is changed in every kernel, in the order of names.
const PATCHES: &str = "patches";

/// How a patch's name ends.
const PATCH_SUFFIX: &str = ".patch";

/// A text of the recipe's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipeFile {
    /// Its path in that folder.
    pub name: String,
    /// Its content.
    pub text: String,
}

/// What a kernel is made of, beside the compiler.
#[derive(Debug, Clone)]
pub struct Ingredients {
    /// Debian's package with the source.
    pub package: LockedInput,
    /// In the order in which they are applied.
    pub patches: Vec<RecipeFile>,
    /// Configuration; a later one overrides an earlier one.
    pub fragments: Vec<RecipeFile>,
}

/// Why they are not all there.
#[derive(Debug, thiserror::Error)]
pub enum IngredientsError {
    /// The source is not in the lock.
    #[error("the kernel's source is not locked")]
    Lock(#[from] LockError),
    /// A text of the recipe cannot be read.
    #[error("cannot read {}; is --source the root of Cocoon's source tree?", path.display())]
    Recipe {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Ingredients {
    /// Those of a source tree, with these configuration fragments of its recipe's folder.
    ///
    /// # Errors
    /// See [`IngredientsError`].
    pub fn load(source: &Path, lock: &Lock, fragments: &[String]) -> Result<Self, IngredientsError> {
        let folder = source.join(recipe::FOLDER);
        let load = |names: &[String]| {
            names
                .iter()
                .map(|name| read(&folder, name))
                .collect::<Result<_, _>>()
        };
        Ok(Self {
            package: lock.source(KERNEL_SOURCE)?.clone(),
            patches: load(&patches(&folder)?)?,
            fragments: load(fragments)?,
        })
    }

    /// The texts, in an order that says which are patches.
    pub(super) fn texts(&self) -> impl Iterator<Item = &RecipeFile> {
        self.patches.iter().chain(&self.fragments)
    }
}

/// Whether an input of an image, by its name in the manifest, is a patch to the kernel.
pub fn is_patch(input: &str) -> bool {
    let of_patches = input
        .strip_prefix(PATCHES)
        .is_some_and(|rest| rest.starts_with('/'));
    of_patches && input.ends_with(PATCH_SUFFIX)
}

fn read(folder: &Path, name: &str) -> Result<RecipeFile, IngredientsError> {
    let path = folder.join(name);
    let text = fs::read_to_string(&path).map_err(|source| IngredientsError::Recipe { path, source })?;
    Ok(RecipeFile {
        name: name.to_owned(),
        text,
    })
}

fn patches(folder: &Path) -> Result<Vec<String>, IngredientsError> {
    let path = folder.join(PATCHES);
    let failed = |source| IngredientsError::Recipe {
        path: path.clone(),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(&path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        if name.ends_with(PATCH_SUFFIX) {
            names.push(format!("{PATCHES}/{name}"));
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_of_this_tree_keeps_the_hosts_tables_away_from_memory() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let ingredients = Ingredients::load(source, &Lock::load(source).unwrap(), &[]).unwrap();
        let names: Vec<_> = ingredients
            .patches
            .iter()
            .map(|patch| patch.name.as_str())
            .collect();
        for wanted in [
            "patches/0001-acpi-host-tables-cannot-touch-guest-memory.patch",
            "patches/0002-acpi-host-places-no-registers-in-guest-memory.patch",
        ] {
            assert!(names.contains(&wanted), "{wanted}");
        }
    }

    #[test]
    fn patches_are_taken_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let error = patches(folder.path()).unwrap_err();
        assert!(
            matches!(error, IngredientsError::Recipe { .. }),
            "no folder: {error}"
        );
        fs::create_dir(folder.path().join(PATCHES)).unwrap();
        for name in ["0002-b.patch", "0001-a.patch", "0001-a.patch.orig"] {
            fs::write(folder.path().join(PATCHES).join(name), "").unwrap();
        }
        assert_eq!(
            patches(folder.path()).unwrap(),
            ["patches/0001-a.patch", "patches/0002-b.patch"]
        );
    }
}
