//! Builds what boots: the guest image and model volumes.
//!
//! [`image::build`] makes firmware, kernel, root file system and manifest from a recipe; [`model::pack`] makes
//! a model volume. The same inputs give the same bytes: nothing is taken from a host folder but the content
//! of named files. The source tree, the toolchain and the distribution's packages are trusted; what is
//! fetched is checked against `image.lock`.

pub mod builder;
pub mod command;
pub mod compare;
pub mod crates;
pub mod erofs;
pub mod given;
pub mod image;
pub mod input;
pub mod inspect;
pub mod interrupt;
pub mod kernel;
pub mod library;
pub mod lock;
pub mod model;
pub mod origin;
pub mod package;
pub mod parts;
pub mod program;
pub mod progress;
pub mod provenance;
pub mod publish;
pub mod recipe;
pub mod root;
pub mod sandbox;
pub mod sbom;
pub mod script;
pub mod signature;
pub mod suite;
pub mod toolchain;
pub mod verity;
pub mod workshop;
