//! `config.json` and `generation_config.json` of a Hugging Face folder, checked until only a Qwen3 that this
//! engine can run is left. The files come from a measured volume, but are still read with bounds.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// A configuration or an index of tensors has some kilobytes; a tokenizer some megabytes.
pub(crate) const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Why a file of the model's folder cannot be read or does not fit. It says nothing about requests.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is missing or unreadable.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is larger than such a file can sensibly be.
    #[error("{} is larger than {bytes_max} bytes", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// The bound.
        bytes_max: u64,
    },
    /// Not the JSON that is expected there.
    #[error("{} is not the expected JSON", path.display())]
    Json {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A model that this engine does not run.
    #[error("config.json: {field} is {found}, but this engine needs {rule}")]
    Unsupported {
        /// Which field.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What it may hold.
        rule: &'static str,
    },
}

/// The shape of a Qwen3. All sizes are positive and small enough that their products do not overflow.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub(crate) vocabulary: i64,
    pub(crate) hidden: i64,
    pub(crate) intermediate: i64,
    pub(crate) layers: usize,
    pub(crate) heads: i64,
    pub(crate) kv_heads: i64,
    pub(crate) head_dim: i64,
    pub(crate) norm_epsilon: f64,
    pub(crate) rope_theta: f64,
    pub(crate) tied: bool,
    pub(crate) positions_max: u32,
    pub(crate) stop_tokens: Vec<u32>,
}

/// Qwen3Config of transformers; `rope_theta` is at the top before version 5 and under `rope_parameters` since.
#[derive(Deserialize)]
struct RawConfig {
    model_type: String,
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    max_position_embeddings: i64,
    rms_norm_eps: f64,
    hidden_act: Option<String>,
    rope_theta: Option<f64>,
    rope_parameters: Option<RopeParameters>,
    rope_scaling: Option<serde_json::Value>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    eos_token_id: Option<TokenIds>,
}

#[derive(Deserialize)]
struct RopeParameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
}

#[derive(Deserialize)]
struct RawGenerationConfig {
    eos_token_id: Option<TokenIds>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenIds {
    One(u32),
    Many(Vec<u32>),
}

impl TokenIds {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

impl ModelConfig {
    /// Reads `config.json` and, where it exists, `generation_config.json`, whose stop tokens take precedence.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(folder: &Path) -> Result<Self, ConfigError> {
        let raw: RawConfig = read_json(&folder.join("config.json"))?;
        let generation = folder.join("generation_config.json");
        let stop_tokens = if generation.exists() {
            read_json::<RawGenerationConfig>(&generation)?.eos_token_id
        } else {
            None
        };
        raw.check(stop_tokens)
    }
}

impl RawConfig {
    fn check(self, stop_tokens: Option<TokenIds>) -> Result<ModelConfig, ConfigError> {
        self.refuse_other_models()?;
        let kv_heads = self.num_key_value_heads.unwrap_or(self.num_attention_heads);
        let size = |field, value, max| positive(field, value, max);
        let heads = size("num_attention_heads", self.num_attention_heads, 1 << 12)?;
        let hidden = size("hidden_size", self.hidden_size, 1 << 20)?;
        let kv_heads = size("num_key_value_heads", kv_heads, heads)?;
        let head_dim = size("head_dim", self.head_dim.unwrap_or(hidden / heads), 1 << 12)?;
        require(
            heads % kv_heads == 0,
            "num_key_value_heads",
            &kv_heads,
            "a divisor of num_attention_heads",
        )?;
        require(head_dim % 2 == 0, "head_dim", &head_dim, "an even number")?;
        let rope = self.rope_parameters.as_ref().and_then(|rope| rope.rope_theta);
        let rope_theta = rope.or(self.rope_theta).unwrap_or(f64::NAN);
        require(
            (1.0..=1e12).contains(&rope_theta),
            "rope_theta",
            &rope_theta,
            "a number from 1 to 10^12",
        )?;
        let epsilon = self.rms_norm_eps;
        require(
            (0.0..=1.0).contains(&epsilon),
            "rms_norm_eps",
            &epsilon,
            "a number from 0 to 1",
        )?;
        let vocabulary = size("vocab_size", self.vocab_size, 1 << 22)?;
        let stop_tokens = stop_tokens
            .or(self.eos_token_id)
            .map_or_else(Vec::new, TokenIds::into_vec);
        let known = !stop_tokens.is_empty() && stop_tokens.iter().all(|&id| i64::from(id) < vocabulary);
        require(
            known,
            "eos_token_id",
            &format!("{stop_tokens:?}"),
            "one or more tokens of the vocabulary",
        )?;
        Ok(ModelConfig {
            vocabulary,
            hidden,
            intermediate: size("intermediate_size", self.intermediate_size, 1 << 20)?,
            layers: size("num_hidden_layers", self.num_hidden_layers, 1 << 10)? as usize,
            heads,
            kv_heads,
            head_dim,
            norm_epsilon: epsilon,
            rope_theta,
            tied: self.tie_word_embeddings,
            positions_max: size("max_position_embeddings", self.max_position_embeddings, 1 << 24)? as u32,
            stop_tokens,
        })
    }

    fn refuse_other_models(&self) -> Result<(), ConfigError> {
        let activation = self.hidden_act.as_deref().unwrap_or("silu");
        let scaling = self
            .rope_scaling
            .as_ref()
            .is_some_and(|scaling| !scaling.is_null());
        let rope_type = self
            .rope_parameters
            .as_ref()
            .and_then(|rope| rope.rope_type.as_deref());
        let rope_type = rope_type.unwrap_or("default");
        require(
            self.model_type == "qwen3",
            "model_type",
            &self.model_type,
            "qwen3",
        )?;
        require(activation == "silu", "hidden_act", activation, "silu")?;
        require(!self.attention_bias, "attention_bias", "true", "false")?;
        require(!self.use_sliding_window, "use_sliding_window", "true", "false")?;
        require(!scaling, "rope_scaling", "set", "null")?;
        require(
            rope_type == "default",
            "rope_parameters.rope_type",
            rope_type,
            "default",
        )
    }
}

fn positive(field: &'static str, value: i64, max: i64) -> Result<i64, ConfigError> {
    require(
        (1..=max).contains(&value),
        field,
        &value,
        "a positive number of sensible size",
    )?;
    Ok(value)
}

fn require(
    holds: bool,
    field: &'static str,
    found: &(impl ToString + ?Sized),
    rule: &'static str,
) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    let found = found.to_string();
    Err(ConfigError::Unsupported { field, found, rule })
}

/// Reads a whole file that is small by nature.
pub(crate) fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, ConfigError> {
    let path_of = || path.to_path_buf();
    let mut bytes = vec![];
    File::open(path)
        .and_then(|file| file.take(bytes_max + 1).read_to_end(&mut bytes))
        .map_err(|source| ConfigError::Read {
            path: path_of(),
            source,
        })?;
    if bytes.len() as u64 > bytes_max {
        return Err(ConfigError::TooLarge {
            path: path_of(),
            bytes_max,
        });
    }
    Ok(bytes)
}

pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, ConfigError> {
    let bytes = read_bounded(path, CONFIG_BYTES_MAX)?;
    serde_json::from_slice(&bytes).map_err(|source| ConfigError::Json {
        path: path.to_path_buf(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn sound() -> Value {
        json!({
            "model_type": "qwen3", "vocab_size": 100, "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "eos_token_id": 2,
            "tie_word_embeddings": true,
        })
    }

    fn parse(value: Value, generation: Option<Value>) -> Result<ModelConfig, ConfigError> {
        let stop_tokens = generation.map(|value| serde_json::from_value(value).unwrap());
        serde_json::from_value::<RawConfig>(value)
            .unwrap()
            .check(stop_tokens)
    }

    #[test]
    fn rope_theta_is_found_at_either_place() {
        assert_eq!(parse(sound(), None).unwrap().rope_theta, 1e4);
        let mut newer = sound();
        newer["rope_theta"] = Value::Null;
        newer["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 5e5});
        assert_eq!(parse(newer, None).unwrap().rope_theta, 5e5);
    }

    #[test]
    fn stop_tokens_of_the_generation_config_take_precedence() {
        assert_eq!(parse(sound(), None).unwrap().stop_tokens, [2]);
        assert_eq!(parse(sound(), Some(json!([3, 4]))).unwrap().stop_tokens, [3, 4]);
    }

    #[test]
    fn other_models_are_refused_by_the_name_of_the_field() {
        let cases = [
            ("model_type", json!("llama")),
            ("hidden_act", json!("gelu")),
            ("attention_bias", json!(true)),
            ("use_sliding_window", json!(true)),
            ("rope_scaling", json!({"type": "yarn"})),
            ("rope_theta", Value::Null),
            ("rms_norm_eps", json!(-1.0)),
            ("vocab_size", json!(0)),
            ("hidden_size", json!(i64::MAX)),
            ("num_hidden_layers", json!(-3)),
            ("num_key_value_heads", json!(3)),
            ("head_dim", json!(5)),
            ("eos_token_id", json!(100)),
            ("eos_token_id", Value::Null),
        ];
        for (changed, value) in cases {
            let mut config = sound();
            config[changed] = value;
            match parse(config, None) {
                Err(ConfigError::Unsupported { field, .. }) => assert_eq!(field, changed),
                other => panic!("{changed}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_giant_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, vec![b' '; CONFIG_BYTES_MAX as usize + 1]).unwrap();
        assert!(matches!(
            ModelConfig::read(folder.path()),
            Err(ConfigError::TooLarge { .. })
        ));
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(
            ModelConfig::read(folder.path()),
            Err(ConfigError::Json { .. })
        ));
    }
}
