//! Collects what goes into an image's root file system: the recipe's directories, programs and files, and the
//! libraries that the programs need. Nothing else can get in.

use std::{collections::BTreeMap, path::Path};

use cocoon_evidence::Digest32;
use cocoon_measurements::DebianPackage;

use crate::{
    command,
    erofs::{Content, Tree},
    image::{BuildError, file_error},
    input::hash_file,
    library::{self, Library},
    parts::Parts,
    recipe::{DEBIAN, Recipe},
};

/// What goes into the root, before it is written.
#[derive(Debug, Default)]
pub struct Root {
    /// Every file and directory.
    pub tree: Tree,
    /// Path in the root to the name of its source.
    pub sources: BTreeMap<String, String>,
    /// Path in the root to its Debian package.
    pub packages: BTreeMap<String, DebianPackage>,
    /// What decides the root's bytes.
    pub inputs: BTreeMap<String, Digest32>,
}

impl Root {
    /// Collects the root of a recipe.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn collect(recipe: &Recipe, parts: &Parts, cache: &Path) -> Result<Self, BuildError> {
        let mut root = Self::default();
        for directory in &recipe.directories {
            root.tree.add_directory(directory)?;
            root.inputs
                .insert(format!("directory {directory}"), Digest32::of(b""));
        }
        for (program, built) in recipe.programs.iter().zip(&parts.programs) {
            let (_, sha256) = hash_file(built).map_err(|source| file_error(built, source))?;
            root.add(&program.path, 0o755, built, &program.package, sha256)?;
        }
        for (file, made) in recipe.files.iter().zip(&parts.files) {
            let (_, sha256) = hash_file(made).map_err(|source| file_error(made, source))?;
            root.add(&file.path, 0o644, made, &file.name, sha256)?;
        }
        root.add_libraries(recipe, parts, cache)?;
        Ok(root)
    }

    fn add_libraries(&mut self, recipe: &Recipe, parts: &Parts, cache: &Path) -> Result<(), BuildError> {
        let libraries = library::closure(&parts.programs, &recipe.opened, &parts.libraries)?;
        let mut strip_version = String::new();
        if libraries.values().any(|library| library.strip) {
            strip_version = command::version("strip").map_err(BuildError::Strip)?;
            let digest = Digest32::of(strip_version.as_bytes());
            self.inputs.insert(format!("strip: {strip_version}"), digest);
        }
        for library in libraries.values() {
            let Library { install, source, .. } = library;
            if source == DEBIAN
                && let Some(package) = parts.packages.package_of(&library.path)?
            {
                self.packages.insert(install.clone(), package);
            }
            let path = library::prepared(library, &strip_version, cache)?;
            self.add(install, 0o755, &path, source, library.sha256)?;
        }
        Ok(())
    }

    fn add(
        &mut self,
        install: &str,
        mode: u32,
        path: &Path,
        source: &str,
        sha256: Digest32,
    ) -> Result<(), BuildError> {
        self.tree.add_file(install, mode, Content::of_file(path)?)?;
        self.sources.insert(install.to_owned(), source.to_owned());
        self.inputs.insert(format!("{source}: {install}"), sha256);
        Ok(())
    }
}
