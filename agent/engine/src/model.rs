//! The forward pass of Qwen3 (transformers, `modeling_qwen3.py`): RMSNorm before each block, grouped-query
//! attention with normalised queries and keys and rotary positions, SiLU-gated MLP.
//!
//! One sequence at a time: its answer then does not depend on who else is served, bit by bit.

use tch::{Device, Kind, TchError, Tensor};

use crate::{
    config::ModelConfig,
    weights::{Weights, WeightsError},
};

const CPU: Device = Device::Cpu;
/// Where a second thread begins to pay. Below, threads wait for each other longer than they compute, and a
/// hundred times longer when something else needs the processors.
const WEIGHTS_PER_THREAD: usize = 32 << 20;

/// A Qwen3 on the processor.
pub struct Model {
    config: ModelConfig,
    kind: Kind,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    /// [vocabulary, hidden]; the embedding itself where they are tied.
    head: Tensor,
    /// [head_dim / 2], f32: radians per position.
    frequencies: Tensor,
}

struct Layer {
    attention_norm: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_norm: Tensor,
    key_norm: Tensor,
    output: Tensor,
    mlp_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

/// Keys and values of one sequence: per layer [1, kv_heads, capacity, head_dim].
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    length: i64,
    capacity: i64,
}

/// The positions of one forward pass: cosines and sines [tokens, head_dim], and which keys each query sees
/// ([tokens, keys], true is seen) where that is more than a plain triangle.
struct Positions {
    cos: Tensor,
    sin: Tensor,
    mask: Option<Tensor>,
}

impl KvCache {
    /// Positions that are filled.
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// Whether nothing has been computed yet.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl Model {
    /// Takes every tensor of the folder. Lowers libtorch's number of threads to what a model of this size can
    /// use.
    pub(crate) fn load(config: ModelConfig, mut weights: Weights, kind: Kind) -> Result<Self, WeightsError> {
        let threads = (weights.count() / WEIGHTS_PER_THREAD).clamp(1, 1 << 10) as i32;
        tch::set_num_threads(threads.min(tch::get_num_threads()));
        let table = [config.vocabulary, config.hidden];
        let embedding = weights.take("model.embed_tokens.weight", &table)?;
        let head = if config.tied {
            weights.ignore("lm_head.weight");
            embedding.shallow_clone()
        } else {
            weights.take("lm_head.weight", &table)?
        };
        let layers = (0..config.layers)
            .map(|index| Layer::load(&config, &mut weights, index))
            .collect::<Result<_, _>>()?;
        let norm = weights.take("model.norm.weight", &[config.hidden])?;
        weights.finish()?;
        let frequencies = frequencies(&config).map_err(|source| WeightsError::Torch {
            name: "rotary frequencies".into(),
            source,
        })?;
        Ok(Self {
            config,
            kind,
            embedding,
            layers,
            norm,
            head,
            frequencies,
        })
    }

    /// Room for a sequence of at most `capacity` tokens.
    ///
    /// # Errors
    /// libtorch has no memory for it.
    pub fn cache(&self, capacity: usize) -> Result<KvCache, TchError> {
        let capacity = i64::try_from(capacity).unwrap_or(i64::MAX);
        let size = [1, self.config.kv_heads, capacity, self.config.head_dim];
        let room = || Tensor::f_empty(size, (self.kind, CPU));
        let layers = (0..self.config.layers)
            .map(|_| Ok((room()?, room()?)))
            .collect::<Result<_, TchError>>()?;
        Ok(KvCache {
            layers,
            length: 0,
            capacity,
        })
    }

    /// Appends tokens to a sequence and returns the logits after each of them, [tokens, vocabulary] in f32.
    ///
    /// # Errors
    /// No tokens, a token outside of the vocabulary, no room left in the cache, or no memory.
    pub fn logits(&self, cache: &mut KvCache, tokens: &[u32]) -> Result<Tensor, TchError> {
        self.head(&self.hidden(cache, tokens)?)
    }

    /// As [`Self::logits`], but only after the last token: `[vocabulary]`.
    ///
    /// # Errors
    /// As [`Self::logits`].
    pub fn last_logits(&self, cache: &mut KvCache, tokens: &[u32]) -> Result<Vec<f32>, TchError> {
        let hidden = self.hidden(cache, tokens)?;
        let last = hidden.f_narrow(1, tokens.len() as i64 - 1, 1)?;
        Vec::try_from(&self.head(&last)?.f_squeeze_dim(0)?)
    }

    /// Appends tokens to a sequence without asking what follows.
    pub(crate) fn prefill(&self, cache: &mut KvCache, tokens: &[u32]) -> Result<(), TchError> {
        self.hidden(cache, tokens).map(|_| ())
    }

    /// [1, tokens, hidden].
    fn hidden(&self, cache: &mut KvCache, tokens: &[u32]) -> Result<Tensor, TchError> {
        let count = tokens.len() as i64;
        let known = tokens
            .iter()
            .all(|&token| i64::from(token) < self.config.vocabulary);
        if count == 0 || !known || count > cache.capacity - cache.length {
            return Err(TchError::Shape(
                "tokens do not fit the vocabulary or the cache".into(),
            ));
        }
        let _no_grad = tch::no_grad_guard();
        let ids: Vec<i64> = tokens.iter().map(|&token| token.into()).collect();
        let ids = Tensor::f_from_slice(&ids)?.f_view([1, count])?;
        let mut x = Tensor::f_embedding(&self.embedding, &ids, -1, false, false)?;
        let positions = self.positions(cache.length, count)?;
        for (layer, (keys, values)) in self.layers.iter().zip(&cache.layers) {
            let normed = self.rms_norm(&x, &layer.attention_norm)?;
            x = x.f_add(&self.attention(layer, &normed, keys, values, cache.length, &positions)?)?;
            let normed = self.rms_norm(&x, &layer.mlp_norm)?;
            x = x.f_add(&mlp(layer, &normed)?)?;
        }
        cache.length += count;
        Ok(x)
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        let _no_grad = tch::no_grad_guard();
        linear(&self.rms_norm(hidden, &self.norm)?, &self.head)?
            .f_squeeze_dim(0)?
            .f_to_kind(Kind::Float)
    }

    /// Angles are computed in f32 and rounded at the end, as transformers does it.
    fn positions(&self, start: i64, count: i64) -> Result<Positions, TchError> {
        let end = start + count;
        let position = Tensor::f_arange_start(start, end, (Kind::Float, CPU))?;
        let angle = position.f_outer(&self.frequencies)?;
        let angle = Tensor::f_cat(&[&angle, &angle], -1)?;
        let mask = if start > 0 && count > 1 {
            let keys = Tensor::f_arange(end, (Kind::Int64, CPU))?;
            let queries = Tensor::f_arange_start(start, end, (Kind::Int64, CPU))?.f_unsqueeze(1)?;
            Some(keys.f_le_tensor(&queries)?)
        } else {
            None
        };
        let (cos, sin) = (
            angle.f_cos()?.f_to_kind(self.kind)?,
            angle.f_sin()?.f_to_kind(self.kind)?,
        );
        Ok(Positions { cos, sin, mask })
    }

    fn attention(
        &self,
        layer: &Layer,
        x: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        start: i64,
        positions: &Positions,
    ) -> Result<Tensor, TchError> {
        let ModelConfig {
            heads,
            kv_heads,
            head_dim,
            ..
        } = self.config;
        let count = x.size()[1];
        let split = |weight, heads| linear(x, weight)?.f_view([1, count, heads, head_dim]);
        let rotated =
            |projected: Tensor, norm| rotate(&self.rms_norm(&projected, norm)?.f_transpose(1, 2)?, positions);
        let query = rotated(split(&layer.query, heads)?, &layer.query_norm)?;
        let key = rotated(split(&layer.key, kv_heads)?, &layer.key_norm)?;
        let value = split(&layer.value, kv_heads)?.f_transpose(1, 2)?;
        keys.f_narrow(2, start, count)?.f_copy_(&key)?;
        values.f_narrow(2, start, count)?.f_copy_(&value)?;

        let (keys, values) = (
            keys.f_narrow(2, 0, start + count)?,
            values.f_narrow(2, 0, start + count)?,
        );
        let mask = positions.mask.as_ref();
        let attend = |query: &Tensor, causal, grouped| {
            Tensor::f_scaled_dot_product_attention(query, &keys, &values, mask, 0.0, causal, None, grouped)
        };
        let mixed = if count == 1 {
            // The heads that share a key are laid out as queries of one head: nothing is repeated or masked.
            attend(
                &query.f_reshape([1, kv_heads, heads / kv_heads, head_dim])?,
                false,
                false,
            )?
        } else {
            attend(&query, mask.is_none(), true)?.f_transpose(1, 2)?
        };
        linear(&mixed.f_reshape([1, count, heads * head_dim])?, &layer.output)
    }

    /// In bf16 as transformers does it: the mean in f32, the weight multiplied in bf16.
    fn rms_norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor, TchError> {
        let epsilon = self.config.norm_epsilon;
        if self.kind == Kind::Float {
            return x.f_rms_norm(weight.size(), Some(weight), epsilon);
        }
        let wide = x.f_to_kind(Kind::Float)?;
        let mean = wide
            .f_square()?
            .f_mean_dim([-1i64].as_slice(), true, None::<Kind>)?;
        let scale = mean.f_add_scalar(epsilon)?.f_rsqrt()?;
        wide.f_mul(&scale)?.f_to_kind(self.kind)?.f_mul(weight)
    }
}

impl Layer {
    fn load(config: &ModelConfig, weights: &mut Weights, index: usize) -> Result<Self, WeightsError> {
        let &ModelConfig {
            hidden,
            intermediate,
            heads,
            kv_heads,
            head_dim,
            ..
        } = config;
        let mut take =
            |name: &str, shape: &[i64]| weights.take(&format!("model.layers.{index}.{name}.weight"), shape);
        Ok(Self {
            attention_norm: take("input_layernorm", &[hidden])?,
            query: take("self_attn.q_proj", &[heads * head_dim, hidden])?,
            key: take("self_attn.k_proj", &[kv_heads * head_dim, hidden])?,
            value: take("self_attn.v_proj", &[kv_heads * head_dim, hidden])?,
            query_norm: take("self_attn.q_norm", &[head_dim])?,
            key_norm: take("self_attn.k_norm", &[head_dim])?,
            output: take("self_attn.o_proj", &[hidden, heads * head_dim])?,
            mlp_norm: take("post_attention_layernorm", &[hidden])?,
            gate: take("mlp.gate_proj", &[intermediate, hidden])?,
            up: take("mlp.up_proj", &[intermediate, hidden])?,
            down: take("mlp.down_proj", &[hidden, intermediate])?,
        })
    }
}

fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor, TchError> {
    x.f_linear(weight, None::<&Tensor>)
}

fn mlp(layer: &Layer, x: &Tensor) -> Result<Tensor, TchError> {
    let gate = linear(x, &layer.gate)?.f_silu()?;
    linear(&gate.f_mul(&linear(x, &layer.up)?)?, &layer.down)
}

/// Rotary positions: the two halves of each head are the coordinates of its rotations. x: [1, heads, tokens,
/// head_dim].
fn rotate(x: &Tensor, positions: &Positions) -> Result<Tensor, TchError> {
    let half = x.size()[3] / 2;
    let turned = Tensor::f_cat(
        &[x.f_narrow(-1, half, half)?.f_neg()?, x.f_narrow(-1, 0, half)?],
        -1,
    )?;
    x.f_mul(&positions.cos)?.f_add(&turned.f_mul(&positions.sin)?)
}

/// theta^(-2i/head_dim), with the same operations as transformers, so that the last bits agree.
fn frequencies(config: &ModelConfig) -> Result<Tensor, TchError> {
    let even =
        Tensor::f_arange_start_step(0, config.head_dim, 2, (Kind::Int64, CPU))?.f_to_kind(Kind::Float)?;
    let exponent = even.f_div_scalar(config.head_dim)?;
    Tensor::f_pow_scalar(config.rope_theta, &exponent)?.f_reciprocal()
}
