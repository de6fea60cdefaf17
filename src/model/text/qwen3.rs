//! Qwen3 as a text encoder (transformers: `Qwen3ForCausalLM`): the hidden states of some layers on the way, side by side.
//!
//! candle-transformers has a Qwen3 that hands out its last states alone.
use super::qwen_tokenizer::QwenTokens;
use super::tokenizer::{check_ids, check_length};
use crate::config::TextEncoderKind;
use crate::model::layers::Linear;
use crate::model::weights::Weights;
use crate::model::weights::files::{ModelFiles, Part};
use crate::model::weights::sizes;
use crate::system::error::{Error, Result};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops::{rms_norm, silu, softmax_last_dim};
use candle_nn::rotary_emb::rope;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Sizes from the text encoder's `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Qwen3Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// Absent: as many as attention heads.
    num_key_value_heads: Option<usize>,
    /// Absent: the hidden size shared out between the heads.
    head_dim: Option<usize>,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    rope_theta: Option<f64>,
    /// Where transformers 5 has it.
    rope_parameters: Option<RopeParameters>,
    rope_scaling: Option<serde_json::Value>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    hidden_act: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct RopeParameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
}

impl Qwen3Config {
    fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Base of the angles of rotary positions.
    fn theta(&self) -> Option<f64> {
        self.rope_theta.or(self.rope_parameters.as_ref()?.rope_theta)
    }

    fn check(&self, file: &Path, layers: &[usize]) -> Result<()> {
        let named = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.kv_heads()),
            ("head_dim", self.head_dim()),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        sizes::check(file, &named)?;
        sizes::check_eps(file, "rms_norm_eps", self.rms_norm_eps)?;
        let wrong = |problem: String| Err(Error::file(file, problem));
        if !self.num_attention_heads.is_multiple_of(self.kv_heads()) {
            let (heads, of_keys) = (self.num_attention_heads, self.kv_heads());
            return wrong(format!("num_attention_heads {heads} is no multiple of num_key_value_heads {of_keys}"));
        }
        if !self.head_dim().is_multiple_of(2) {
            return wrong(format!("head_dim is {}, expected an even number", self.head_dim()));
        }
        // The last layer's states would be those behind the final norm.
        let last = layers.iter().copied().max().unwrap_or(0);
        if self.num_hidden_layers <= last {
            return wrong(format!("num_hidden_layers is {}, expected more than {last}", self.num_hidden_layers));
        }
        if !self.theta().is_some_and(|theta| theta.is_finite() && theta >= 1.0) {
            return wrong(format!("rope_theta is {:?}, expected a number of at least 1", self.theta()));
        }
        let rope_type = self.rope_parameters.as_ref().and_then(|rope| rope.rope_type.as_deref());
        let unsupported = [
            ("rope_scaling", self.rope_scaling.is_some()),
            ("rope_type", rope_type.is_some_and(|kind| kind != "default")),
            ("attention_bias", self.attention_bias),
            ("use_sliding_window", self.use_sliding_window),
            ("hidden_act", self.hidden_act.as_deref().is_some_and(|act| act != "silu")),
        ];
        match unsupported.iter().find(|(_, set)| *set) {
            Some((key, _)) => wrong(format!("{key} is set to what is not supported for this text encoder")),
            None => Ok(()),
        }
    }
}

/// A Qwen3 model up to the last layer that is wanted; it computes in `compute`, whatever the dtype of its weights.
pub struct Qwen3Encoder {
    config: Qwen3Config,
    /// `[vocab, hidden]`
    tokens: Tensor,
    layers: Vec<Qwen3Layer>,
    /// After how many layers the hidden states are taken.
    taken: &'static [usize],
    compute: DType,
    /// The source of the sizes, for errors.
    path: PathBuf,
}

struct Qwen3Layer {
    input_layernorm: Tensor,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Tensor,
    k_norm: Tensor,
    post_attention_layernorm: Tensor,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

/// What every layer's attention is told.
struct Positions {
    /// `[tokens, head_dim/2]`
    cosines: Tensor,
    /// As `cosines`.
    sines: Tensor,
    /// `[batch, 1, tokens, tokens]`: 0 where a token sees another, else −∞.
    mask: Tensor,
}

impl Qwen3Encoder {
    /// Loads the layers up to the last of `taken`.
    ///
    /// # Errors
    /// A file is missing, damaged, or does not fit its config.
    pub fn load(
        files: &ModelFiles,
        taken: &'static [usize],
        dtype: DType,
        compute: DType,
        device: &Device,
    ) -> Result<Self> {
        let part = Part::Text(TextEncoderKind::Qwen3);
        let (config, path): (Qwen3Config, _) = (files.config(part)?, files.config_path(part));
        config.check(&path, taken)?;
        let weights = files.weights(part, dtype, device)?;
        // A model without its output layer is stored without the prefix.
        let prefix = if weights.contains("embed_tokens.weight") { "" } else { "model." };
        let depth = taken.iter().copied().max().unwrap_or(0);
        let tokens = weights.get(&format!("{prefix}embed_tokens.weight"), (config.vocab_size, config.hidden_size))?;
        let layer = |index: usize| Qwen3Layer::load(&weights, &format!("{prefix}layers.{index}"), &config);
        let layers = (0..depth).map(layer).collect::<Result<_>>()?;
        (depth..config.num_hidden_layers).for_each(|layer| weights.ignore_all(&format!("{prefix}layers.{layer}.")));
        weights.ignore(&format!("{prefix}norm.weight"));
        weights.ignore("lm_head.weight");
        weights.finish()?;
        // Its activations overflow f16, as T5's do.
        let compute = if compute == DType::F16 { DType::F32 } else { compute };
        Ok(Self { config, tokens, layers, taken, compute, path })
    }

    /// The hidden states, side by side, f32 `[batch, tokens, states·hidden]`, of prompts of equal length, padding included: padding sees the
    /// prompt before it, and nothing sees padding.
    ///
    /// # Errors
    /// A token that the model does not know, or more tokens than it has positions for.
    pub fn forward(&self, prompts: &[QwenTokens]) -> Result<Tensor> {
        let ids = || prompts.iter().flat_map(|prompt| &prompt.ids);
        let (batch, length) = (prompts.len(), prompts.first().map_or(0, |prompt| prompt.ids.len()));
        check_ids(&self.path, self.config.vocab_size, ids())?;
        check_length(&self.path, self.config.max_position_embeddings, length)?;
        let flat = Tensor::from_vec(ids().copied().collect::<Vec<_>>(), batch * length, self.tokens.device())?;
        let x = self.tokens.index_select(&flat, 0)?.to_dtype(self.compute)?;
        let mut x = x.reshape((batch, length, self.config.hidden_size))?;
        let positions = self.positions(prompts, length)?;
        let mut taken = vec![];
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, &positions, &self.config)?;
            if self.taken.contains(&(index + 1)) {
                taken.push(x.to_dtype(DType::F32)?);
            }
        }
        Ok(Tensor::cat(&taken, 2)?)
    }

    fn positions(&self, prompts: &[QwenTokens], length: usize) -> Result<Positions> {
        let (pairs, device) = (self.config.head_dim() / 2, self.tokens.device());
        let theta = self.config.theta().unwrap_or(1.0) as f32;
        // In f32, as transformers has it.
        let frequency = |pair: usize| 1.0 / theta.powf((2 * pair) as f32 / (2 * pairs) as f32);
        let frequencies: Vec<f32> = (0..pairs).map(frequency).collect();
        let table = |of: fn(f32) -> f32| -> candle_core::Result<Tensor> {
            let angle = |token: usize| frequencies.iter().map(move |frequency| of(token as f32 * frequency));
            let values: Vec<f32> = (0..length).flat_map(angle).collect();
            Tensor::from_vec(values, (length, pairs), device)?.to_dtype(self.compute)
        };
        let mut mask = Vec::with_capacity(prompts.len() * length * length);
        for prompt in prompts {
            let sees = |from: usize, to: usize| to <= from && to < prompt.filled;
            let row = |from: usize| (0..length).map(move |to| if sees(from, to) { 0f32 } else { f32::NEG_INFINITY });
            mask.extend((0..length).flat_map(row));
        }
        let mask = Tensor::from_vec(mask, (prompts.len(), 1, length, length), device)?.to_dtype(self.compute)?;
        Ok(Positions { cosines: table(f32::cos)?, sines: table(f32::sin)?, mask })
    }
}

impl Qwen3Layer {
    fn load(weights: &Weights, prefix: &str, config: &Qwen3Config) -> Result<Self> {
        let (hidden, inner, head_dim) = (config.hidden_size, config.intermediate_size, config.head_dim());
        let (queries, keys) = (config.num_attention_heads * head_dim, config.kv_heads() * head_dim);
        let linear = |name: &str, input: usize, output: usize| {
            Linear::load_no_bias(weights, &format!("{prefix}.{name}"), input, output)
        };
        let norm = |name: &str, size: usize| weights.get(&format!("{prefix}.{name}.weight"), size);
        Ok(Self {
            input_layernorm: norm("input_layernorm", hidden)?,
            q_proj: linear("self_attn.q_proj", hidden, queries)?,
            k_proj: linear("self_attn.k_proj", hidden, keys)?,
            v_proj: linear("self_attn.v_proj", hidden, keys)?,
            o_proj: linear("self_attn.o_proj", queries, hidden)?,
            q_norm: norm("self_attn.q_norm", head_dim)?,
            k_norm: norm("self_attn.k_norm", head_dim)?,
            post_attention_layernorm: norm("post_attention_layernorm", hidden)?,
            gate_proj: linear("mlp.gate_proj", hidden, inner)?,
            up_proj: linear("mlp.up_proj", hidden, inner)?,
            down_proj: linear("mlp.down_proj", inner, hidden)?,
        })
    }

    /// `[batch, tokens, hidden]` to equal shape.
    fn forward(&self, x: &Tensor, positions: &Positions, config: &Qwen3Config) -> Result<Tensor> {
        let norm = |x: &Tensor, weight: &Tensor| {
            rms_norm(&x.contiguous()?, &weight.to_dtype(x.dtype())?, config.rms_norm_eps as f32)
        };
        let (batch, length, _) = x.dims3()?;
        let (heads, kv_heads, head_dim) = (config.num_attention_heads, config.kv_heads(), config.head_dim());
        let by_head = |x: Tensor, heads: usize| x.reshape((batch, length, heads, head_dim));
        let turned = |x: Tensor| rope(&x.transpose(1, 2)?.contiguous()?, &positions.cosines, &positions.sines);
        let normed = norm(x, &self.input_layernorm)?;
        let queries = turned(norm(&by_head(self.q_proj.forward(&normed)?, heads)?, &self.q_norm)?)?;
        let keys = turned(norm(&by_head(self.k_proj.forward(&normed)?, kv_heads)?, &self.k_norm)?)?;
        let values = by_head(self.v_proj.forward(&normed)?, kv_heads)?.transpose(1, 2)?.contiguous()?;

        // Heads that share keys and values are one after the other: their queries are taken as those of one.
        let groups = heads / kv_heads;
        let queries = queries.reshape((batch, kv_heads, groups * length, head_dim))?;
        let scores = (queries.matmul(&keys.transpose(D::Minus2, D::Minus1)?)? * (head_dim as f64).powf(-0.5))?;
        let scores = scores.reshape((batch, heads, length, length))?.broadcast_add(&positions.mask)?;
        let shares = softmax_last_dim(&scores)?.reshape((batch, kv_heads, groups * length, length))?;
        let mixed = shares.matmul(&values)?.reshape((batch, heads, length, head_dim))?;
        let mixed = mixed.transpose(1, 2)?.reshape((batch, length, heads * head_dim))?;
        let x = (x + self.o_proj.forward(&mixed)?)?;

        let normed = norm(&x, &self.post_attention_layernorm)?;
        let inner = (silu(&self.gate_proj.forward(&normed)?)? * self.up_proj.forward(&normed)?)?;
        Ok((x + self.down_proj.forward(&inner)?)?)
    }
}
