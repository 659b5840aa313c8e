//! Inputs that whoever builds an image has to bring: NVIDIA's driver.
//!
//! Its publisher hands it out on its own site and under its own licence; neither Debian nor a package index has it. The
//! lock pins it like every other input. It is looked for where those are, and never asked of a network: what is missing
//! is told before anything is fetched or compiled.

use std::path::PathBuf;

use cocoon_evidence::Digest32;
use serde::Deserialize;

use crate::input::{InputError, Sources, hash_file, unusable};

/// One file of exactly known content that is brought.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GivenInput {
    /// What the builder calls it.
    pub name: String,
    /// For people.
    pub version: String,
    /// File name.
    pub file: String,
    /// Of the whole file.
    pub sha256: Digest32,
    /// Where its publisher has it, for people: nothing here goes there.
    pub publisher: String,
    /// What may be done with it, for people.
    pub licence: String,
}

/// Why a given input cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GivenError {
    /// It was not brought.
    #[error(
        "{} {} is missing, and you have to bring it: only its publisher has it. Download {} from {} and put it into {}, \
         or name its folder in COCOON_INPUTS. Its SHA-256 has to be {}. Licence: {}",
        input.name, input.version, input.file, input.publisher, folder.display(), input.sha256, input.licence
    )]
    NotGiven {
        /// What the lock says of it.
        input: Box<GivenInput>,
        /// Where it may be put.
        folder: PathBuf,
    },
    /// A file with the right name has other content.
    #[error(
        "{} is not {} {}: its SHA-256 is {found}, image.lock says {}; remove it, or replace it by the file from {}",
        path.display(), input.name, input.version, input.sha256, input.publisher
    )]
    WrongContent {
        /// Where it lies.
        path: PathBuf,
        /// What the lock says of it.
        input: Box<GivenInput>,
        /// Its hash.
        found: Digest32,
    },
    /// It cannot be read.
    #[error(transparent)]
    Unusable(Box<InputError>),
}

impl From<InputError> for GivenError {
    fn from(error: InputError) -> Self {
        Self::Unusable(Box::new(error))
    }
}

impl GivenInput {
    /// The path of the file, whose content was just compared.
    ///
    /// # Errors
    /// See [`GivenError`].
    pub fn find(&self, sources: &Sources) -> Result<PathBuf, GivenError> {
        let Some(path) = sources.named(&self.file)? else {
            return Err(GivenError::NotGiven {
                input: Box::new(self.clone()),
                folder: sources.folder(),
            });
        };
        let (_, found) = hash_file(&path).map_err(|source| unusable(&path, source))?;
        if found == self.sha256 {
            return Ok(path);
        }
        Err(GivenError::WrongContent {
            path,
            input: Box::new(self.clone()),
            found,
        })
    }
}
