//! Runs a model with libtorch: the part of the guest that sees prompts in the clear and holds no keys.
//!
//! The agent starts the binary `cocoon-engine` as an unprivileged child with one end of a socketpair as
//! descriptor 3 and speaks `cocoon_protocol::engine` with it: load, generate, cancel. The engine reads a
//! Hugging Face folder of the Qwen3 architecture and answers with text and counts. It opens no other files,
//! has no network, and prints nothing about requests.
//!
//! [`serve`] is the conversation, [`Engine`] the scheduler, [`Model`] the forward pass.

mod config;
mod engine;
mod model;
mod sampling;
mod serve;
mod template;
mod text;
mod weights;

pub use config::{ConfigError, ModelConfig};
pub use engine::{Engine, LoadError};
pub use model::{KvCache, Model};
pub use serve::{ServeError, serve};
pub use template::TemplateError;
pub use text::TokenizerError;
pub use weights::WeightsError;

use std::path::Path;

use cocoon_protocol::NumericProfile;

impl Model {
    /// Loads only the model of a folder, without tokenizer and template, to compare its logits.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn read(folder: &Path, profile: NumericProfile) -> Result<Self, LoadError> {
        let kind = engine::kind_of(profile);
        let config = ModelConfig::read(folder)?;
        Ok(Self::load(config, weights::Weights::open(folder, kind)?, kind)?)
    }
}
