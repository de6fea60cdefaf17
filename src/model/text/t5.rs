//! T5's encoder (transformers' `T5EncoderModel`), run as in diffusers: on all tokens including padding, without attention
//! mask. Its linear layers are quantised where that was asked for.
use super::tokenizer::check_ids;
use crate::config::TextEncoderKind;
use crate::model::layers::Linear;
use crate::model::weights::files::{ModelFiles, Part};
use crate::model::weights::{Weights, sizes};
use crate::system::error::{Error, Result};
use candle_core::{D, DType, Device, Module, Tensor};
use candle_nn::Activation;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Sizes of a T5 encoder; the fields are the keys of its `config.json`.
#[derive(Debug, Deserialize)]
pub(super) struct T5Config {
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub d_model: usize,
    /// Width of an attention head.
    pub d_kv: usize,
    /// Width of the MLP's hidden features.
    pub d_ff: usize,
    /// Layers.
    pub num_layers: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Distances that attention tells apart, or ranges of such.
    pub relative_attention_num_buckets: usize,
    /// Distances from here on are one.
    #[serde(default = "default_max_distance")]
    pub relative_attention_max_distance: usize,
    /// Epsilon of the norms.
    pub layer_norm_epsilon: f64,
    /// The MLP's activation, and whether it is a gate.
    #[serde(default)]
    feed_forward_proj: T5FeedForward,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
enum T5FeedForward {
    /// T5 1.0.
    #[default]
    #[serde(rename = "relu")]
    Relu,
    /// T5 1.1, by tanh (transformers' `gelu_new`).
    #[serde(rename = "gated-gelu")]
    GatedGelu,
    #[serde(rename = "gated-silu")]
    GatedSilu,
}

fn default_max_distance() -> usize {
    128
}

impl T5Config {
    fn check(&self, path: &Path) -> Result<()> {
        let named = [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("d_kv", self.d_kv),
            ("d_ff", self.d_ff),
            ("num_layers", self.num_layers),
            ("num_heads", self.num_heads),
            ("relative_attention_num_buckets", self.relative_attention_num_buckets),
            ("relative_attention_max_distance", self.relative_attention_max_distance),
        ];
        sizes::check(path, &named)?;
        sizes::check_eps(path, "layer_norm_epsilon", self.layer_norm_epsilon)?;
        if self.relative_attention_num_buckets < 4 {
            let problem = "num_heads must be at least 1 and relative_attention_num_buckets at least 4";
            return Err(Error::file(path, problem));
        }
        Ok(())
    }
}

/// A T5 encoder: layers after one table of embeddings. It computes in `compute`, whatever the dtype of its weights.
pub struct T5Encoder {
    /// `[vocab_size, d_model]`
    embeddings: Tensor,
    /// Of the first layer, which all have: `[buckets, heads]`.
    position_bias: Tensor,
    layers: Vec<T5Layer>,
    norm: T5LayerNorm,
    pub(super) config: T5Config,
    compute: DType,
    /// The source of the sizes, for error messages.
    path: PathBuf,
}

struct T5Layer {
    attention_norm: T5LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    feed_forward_norm: T5LayerNorm,
    up: Linear,
    /// What the first layer's result is multiplied with, in a gated MLP.
    gated: Option<Linear>,
    down: Linear,
    activation: Activation,
}

/// Without a mean, and without a bias.
struct T5LayerNorm {
    weight: Tensor,
    eps: f64,
}

impl T5LayerNorm {
    fn load(weights: &Weights, name: &str, config: &T5Config) -> Result<Self> {
        Ok(Self { weight: weights.get(&format!("{name}.weight"), config.d_model)?, eps: config.layer_norm_epsilon })
    }

    /// In f32, whatever type x is.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let wide = x.to_dtype(DType::F32)?;
        let mean_square = (wide.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?;
        let normed = wide.broadcast_div(&mean_square.sqrt()?)?.to_dtype(x.dtype())?;
        Ok(normed.broadcast_mul(&self.weight.to_dtype(x.dtype())?)?)
    }
}

impl T5Encoder {
    pub fn load(files: &ModelFiles, dtype: DType, compute: DType, device: &Device) -> Result<Self> {
        let part = Part::Text(TextEncoderKind::T5);
        let (config, path): (T5Config, _) = (files.config(part)?, files.config_path(part));
        config.check(&path)?;
        let weights = files.weights(part, dtype, device)?;
        // The embedding table has two names; transformers writes either or both.
        if weights.contains("shared.weight") {
            weights.ignore("encoder.embed_tokens.weight");
        }
        let tables = ["shared.weight", "decoder.embed_tokens.weight", "encoder.embed_tokens.weight"];
        let table = tables.into_iter().find(|name| weights.contains(name)).unwrap_or(tables[0]);
        let bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        let layer = |layer: usize| T5Layer::load(&weights, layer, &config);
        let encoder = Self {
            embeddings: weights.get(table, (config.vocab_size, config.d_model))?,
            position_bias: weights.get(bias, (config.relative_attention_num_buckets, config.num_heads))?,
            layers: (0..config.num_layers).map(layer).collect::<Result<_>>()?,
            norm: T5LayerNorm::load(&weights, "encoder.final_layer_norm", &config)?,
            config,
            // T5's activations overflow f16; for that reason transformers keeps parts of it in f32.
            compute: if compute == DType::F16 { DType::F32 } else { compute },
            path,
        };
        weights.finish()?;
        Ok(encoder)
    }

    /// The last layer's hidden states, f32 `[batch, tokens, hidden]`, of prompts of equal length.
    pub fn forward(&self, ids: &[Vec<u32>]) -> Result<Tensor> {
        check_ids(&self.path, self.config.vocab_size, ids.iter().flatten())?;
        let (batch, tokens, device) = (ids.len(), ids.first().map_or(0, Vec::len), self.embeddings.device());
        let ids = Tensor::from_vec(ids.concat(), batch * tokens, device)?;
        let embedded = self.embeddings.index_select(&ids, 0)?;
        let mut states = embedded.reshape((batch, tokens, self.config.d_model))?.to_dtype(self.compute)?;
        let bias = self.bias(tokens)?;
        for layer in &self.layers {
            states = layer.forward(&states, &bias, &self.config)?;
        }
        Ok(self.norm.forward(&states)?.to_dtype(DType::F32)?)
    }

    /// What is added to the scores of attention, `[1, heads, tokens, tokens]`: by how far a query and a key are apart.
    fn bias(&self, tokens: usize) -> Result<Tensor> {
        let places = (0..tokens).flat_map(|query| (0..tokens).map(move |key| (query, key)));
        let buckets: Vec<u32> = places.map(|(query, key)| self.bucket(query, key) as u32).collect();
        let buckets = Tensor::from_vec(buckets, tokens * tokens, self.embeddings.device())?;
        let bias = self.position_bias.index_select(&buckets, 0)?.reshape((tokens, tokens, self.config.num_heads))?;
        Ok(bias.permute((2, 0, 1))?.unsqueeze(0)?.to_dtype(self.compute)?)
    }

    /// Half of the buckets are for keys behind the query; in each half one half for a distance each, the others for more and
    /// more of them (`T5Attention._relative_position_bucket`).
    fn bucket(&self, query: usize, key: usize) -> usize {
        let half = self.config.relative_attention_num_buckets / 2;
        let exact = half / 2;
        let (first, distance) = if key > query { (half, key - query) } else { (0, query - key) };
        if distance < exact {
            return first + distance;
        }
        let largest = self.config.relative_attention_max_distance as f32 / exact as f32;
        let further = f32::log(distance as f32 / exact as f32, largest) * (half - exact) as f32;
        first + (exact + further as usize).min(half - 1)
    }
}

impl T5Layer {
    fn load(weights: &Weights, layer: usize, config: &T5Config) -> Result<Self> {
        let (width, inner, hidden) = (config.d_model, config.num_heads * config.d_kv, config.d_ff);
        let name = |module: &str| format!("encoder.block.{layer}.layer.{module}");
        let linear = |module: &str, input, output| Linear::load_no_bias(weights, &name(module), input, output);
        let is_gated = config.feed_forward_proj != T5FeedForward::Relu;
        let up = if is_gated { "1.DenseReluDense.wi_0" } else { "1.DenseReluDense.wi" };
        Ok(Self {
            attention_norm: T5LayerNorm::load(weights, &name("0.layer_norm"), config)?,
            q: linear("0.SelfAttention.q", width, inner)?,
            k: linear("0.SelfAttention.k", width, inner)?,
            v: linear("0.SelfAttention.v", width, inner)?,
            out: linear("0.SelfAttention.o", inner, width)?,
            feed_forward_norm: T5LayerNorm::load(weights, &name("1.layer_norm"), config)?,
            up: linear(up, width, hidden)?,
            gated: is_gated.then(|| linear("1.DenseReluDense.wi_1", width, hidden)).transpose()?,
            down: linear("1.DenseReluDense.wo", hidden, width)?,
            activation: match config.feed_forward_proj {
                T5FeedForward::Relu => Activation::Relu,
                T5FeedForward::GatedGelu => Activation::NewGelu,
                T5FeedForward::GatedSilu => Activation::Silu,
            },
        })
    }

    fn forward(&self, x: &Tensor, bias: &Tensor, config: &T5Config) -> Result<Tensor> {
        let (batch, tokens, _) = x.dims3()?;
        let (heads, size) = (config.num_heads, config.d_kv);
        let normed = self.attention_norm.forward(x)?;
        let split = |layer: &Linear| -> Result<Tensor> {
            Ok(layer.forward(&normed)?.reshape((batch, tokens, heads, size))?.transpose(1, 2)?.contiguous()?)
        };
        // T5's scores are not divided by the root of the heads' size.
        let scores = split(&self.q)?.matmul(&split(&self.k)?.t()?)?.broadcast_add(bias)?;
        let mixed = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&split(&self.v)?)?;
        let x = (x + self.out.forward(&mixed.transpose(1, 2)?.reshape((batch, tokens, heads * size))?)?)?;
        let normed = self.feed_forward_norm.forward(&x)?;
        let hidden = self.activation.forward(&self.up.forward(&normed)?)?;
        let hidden = match &self.gated {
            Some(gated) => (hidden * gated.forward(&normed)?)?,
            None => hidden,
        };
        Ok((x + self.down.forward(&hidden)?)?)
    }
}
