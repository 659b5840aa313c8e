//! Reads the recipe: what an image consists of (`PROFILE.toml`) and what the system that builds it offers
//! (`builder.toml`). Both are part of the source tree and trusted like it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use cocoon_measurements::ImageProfile;
use serde::{Deserialize, de::DeserializeOwned};

use crate::suite::Wanted;

/// The recipe's folder in the source tree.
pub const FOLDER: &str = "image/recipe";

/// In a recipe, the folder with libtorch.
pub const LIBTORCH: &str = "${LIBTORCH}";
/// In a recipe, the builder root.
pub const BUILDER: &str = "${BUILDER}";
/// In a recipe, the libraries of CUDA and the GPU half of libtorch.
pub const CUDA: &str = "${CUDA}";
/// In a recipe, what was made of NVIDIA's driver.
pub const NVIDIA: &str = "${NVIDIA}";
/// The name of a library folder whose files are from Debian packages.
pub const DEBIAN: &str = "debian";

/// `PROFILE.toml`: one image.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Who makes firmware, kernel and programs.
    pub parts: Parts,
    /// Names of kernel configuration fragments in the recipe's folder.
    pub kernel: Vec<String>,
    /// The kernel command line without the dm-verity table.
    pub command_line: String,
    /// Directories of the root that are to be there and empty.
    pub directories: Vec<String>,
    /// Programs of this workspace.
    #[serde(rename = "program")]
    pub programs: Vec<Program>,
    /// Other files.
    #[serde(default, rename = "file")]
    pub files: Vec<File>,
    /// Shared libraries that programs open by name while they run, so that nothing in their files says so.
    #[serde(default)]
    pub opened: Vec<String>,
    /// Where needed shared libraries are looked for, in order.
    #[serde(rename = "library")]
    pub libraries: Vec<LibraryFolder>,
}

/// Who makes an image's parts.
#[derive(Debug, Deserialize)]
#[serde(tag = "made", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Parts {
    /// This machine's own compilers.
    Here {
        /// Path of firmware that is installed.
        firmware: PathBuf,
    },
    /// The locked compilers of the builder root: the same bytes for everybody.
    InBuilderRoot,
}

/// A program of this workspace and its place in the root.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Absolute path in the root.
    pub path: String,
    /// The crate; its program has the same name.
    pub package: String,
    /// Cargo features to turn on.
    #[serde(default)]
    pub features: Vec<String>,
    /// How the C library is linked.
    pub linkage: Linkage,
}

/// A file that no program of this workspace is, and its place in the root.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Absolute path in the root.
    pub path: String,
    /// Named as the source in the manifest.
    pub name: String,
    /// On this machine; starts with [`NVIDIA`].
    pub from: String,
}

/// How a program gets its C library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Linkage {
    /// In the program.
    Static,
    /// From the root.
    Dynamic,
}

/// A folder with shared libraries.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LibraryFolder {
    /// Named as the source in the manifest.
    pub name: String,
    /// On this machine; may start with [`LIBTORCH`], [`BUILDER`], [`CUDA`] or [`NVIDIA`].
    pub folder: String,
    /// Remove symbols that linking does not need.
    #[serde(default)]
    pub strip: bool,
}

/// Why a recipe cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("cannot read the recipe {}; is --source the root of Cocoon's source tree?", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what this program expects.
    #[error("the recipe {} is malformed", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Box<toml::de::Error>,
    },
}

impl Recipe {
    /// Reads the recipe of a profile from a source tree.
    ///
    /// # Errors
    /// See [`RecipeError`].
    pub fn load(source: &Path, profile: ImageProfile) -> Result<Self, RecipeError> {
        let name = match profile {
            ImageProfile::Dev => "dev.toml",
            ImageProfile::Cpu => "cpu.toml",
            ImageProfile::Gpu => "gpu.toml",
        };
        load(&source.join(FOLDER).join(name))
    }
}

/// Reads what the builder root is to offer.
///
/// # Errors
/// See [`RecipeError`].
pub fn builder(source: &Path) -> Result<Wanted, RecipeError> {
    load(&source.join(FOLDER).join("builder.toml"))
}

fn load<T: DeserializeOwned>(path: &Path) -> Result<T, RecipeError> {
    let text = fs::read_to_string(path).map_err(|source| RecipeError::Read {
        path: path.to_owned(),
        source,
    })?;
    toml::from_str(&text).map_err(|source| RecipeError::Malformed {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kernel::Ingredients, lock::Lock};

    #[test]
    fn a_release_image_prints_nothing_simulates_nothing_and_takes_nothing_of_this_machine() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for profile in [ImageProfile::Cpu, ImageProfile::Gpu] {
            let recipe = Recipe::load(source, profile).unwrap();
            assert!(matches!(recipe.parts, Parts::InBuilderRoot));
            assert!(recipe.programs.iter().all(|program| program.features.is_empty()));
            assert!(!recipe.command_line.contains("console="));
            assert!(!recipe.kernel.iter().any(|fragment| fragment.contains("dev")));
            let libraries = recipe.libraries.iter().map(|library| &library.folder);
            for from in libraries.chain(recipe.files.iter().map(|file| &file.from)) {
                let places = [LIBTORCH, BUILDER, CUDA, NVIDIA];
                let locked = places.iter().any(|place| from.starts_with(place));
                assert!(locked, "{from} is this machine's");
            }
            let stripped = recipe.libraries.iter().any(|library| library.strip);
            assert!(!stripped, "by this machine's program");
        }
    }

    /// Modules look for firmware, and libraries for each other, under names with the version.
    #[test]
    fn the_image_for_gpus_names_files_of_the_locked_driver() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let recipe = Recipe::load(source, ImageProfile::Gpu).unwrap();
        let lock = Lock::load(source).unwrap();
        let version = &lock.given(ImageProfile::Gpu)[0].version;
        let firmware = format!("/lib/firmware/nvidia/{version}/gsp_ga10x.bin");
        assert!(
            recipe.files.iter().any(|file| file.path == firmware),
            "{firmware}"
        );
        let encryption = format!("libnvidia-pkcs11-openssl3.so.{version}");
        assert!(recipe.opened.contains(&encryption), "{encryption}");
    }

    #[test]
    fn the_recipes_of_this_tree_are_well_formed() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for profile in [ImageProfile::Dev, ImageProfile::Cpu, ImageProfile::Gpu] {
            let recipe = Recipe::load(source, profile).unwrap();
            Ingredients::load(source, &Lock::load(source).unwrap(), &recipe.kernel).unwrap();
        }
        let wanted = builder(source).unwrap();
        let lock = Lock::load(source).unwrap();
        lock.source("linux-source").unwrap();
        assert_eq!(lock.builder.suite, wanted.suite);
        for package in &wanted.packages {
            let locked = lock.builder.packages.iter().any(|input| &input.name == package);
            assert!(locked, "{package}: run `cocoon-image lock update`");
        }
    }
}
