//! The text model of CLIP with its projection (transformers: `CLIPTextModelWithProjection`).
use crate::error::{Error, Result};
use crate::model::files::{ModelFiles, Part};
use crate::model::layers::{LayerNorm, Linear};
use crate::model::weights::Weights;
use candle_core::{D, DType, Device, Tensor};
use serde::Deserialize;
use std::path::PathBuf;

/// Sizes from the text encoder's `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct ClipConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub max_position_embeddings: usize,
    pub projection_dim: usize,
    pub hidden_act: ClipActivation,
    #[serde(default = "default_eps")]
    pub layer_norm_eps: f64,
    #[serde(default = "default_end")]
    pub eos_token_id: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipActivation {
    /// `x · sigmoid(1.702 x)`.
    QuickGelu,
    /// Exact, by the error function.
    Gelu,
}

fn default_eps() -> f64 {
    1e-5
}

fn default_end() -> u32 {
    49407
}

struct Layer {
    norm1: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

/// A CLIP text model; computes in `compute`, whatever type its weights are stored as.
pub struct ClipTextModel {
    config: ClipConfig,
    /// `[vocab, hidden]`.
    tokens: Tensor,
    /// `[positions, hidden]`.
    positions: Tensor,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    projection: Linear,
    compute: DType,
    /// The file that the sizes come from, for errors.
    path: PathBuf,
}

/// What the text model yields for a batch of prompts.
pub struct ClipOutput {
    /// States before the last layer: `[batch, tokens, hidden]`.
    pub hidden: Tensor,
    /// Projected state of the end-of-text token: `[batch, projection]`.
    pub pooled: Tensor,
}

impl ClipTextModel {
    pub fn load(files: &ModelFiles, part: Part, dtype: DType, compute: DType, device: &Device) -> Result<Self> {
        let config: ClipConfig = files.config(part)?;
        let path = files.config_path(part);
        if config.num_attention_heads == 0 || !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            let problem = format!(
                "hidden_size {} is no multiple of num_attention_heads {}",
                config.hidden_size, config.num_attention_heads
            );
            return Err(Error::file(path, problem));
        }
        if config.num_hidden_layers == 0 {
            return Err(Error::file(path, "num_hidden_layers is 0, expected at least 1"));
        }
        let weights = files.weights(part, dtype, device)?;
        // Older files store the index 0..77 as a tensor.
        weights.ignore("text_model.embeddings.position_ids");
        let model = Self::build(config, path, &weights, compute)?;
        weights.finish()?;
        Ok(model)
    }

    fn build(config: ClipConfig, path: PathBuf, weights: &Weights, compute: DType) -> Result<Self> {
        let (hidden, eps) = (config.hidden_size, config.layer_norm_eps);
        let embedding = |name: &str, rows: usize| weights.get(&format!("text_model.embeddings.{name}"), (rows, hidden));
        let layer = |index: usize| {
            let name = |module: &str| format!("text_model.encoder.layers.{index}.{module}");
            let square = |module: &str| Linear::load(weights, &name(module), hidden, hidden);
            Ok(Layer {
                norm1: LayerNorm::load(weights, &name("layer_norm1"), hidden, eps)?,
                q: square("self_attn.q_proj")?,
                k: square("self_attn.k_proj")?,
                v: square("self_attn.v_proj")?,
                out: square("self_attn.out_proj")?,
                norm2: LayerNorm::load(weights, &name("layer_norm2"), hidden, eps)?,
                fc1: Linear::load(weights, &name("mlp.fc1"), hidden, config.intermediate_size)?,
                fc2: Linear::load(weights, &name("mlp.fc2"), config.intermediate_size, hidden)?,
            })
        };
        Ok(Self {
            tokens: embedding("token_embedding.weight", config.vocab_size)?,
            positions: embedding("position_embedding.weight", config.max_position_embeddings)?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            final_norm: LayerNorm::load(weights, "text_model.final_layer_norm", hidden, eps)?,
            projection: Linear::load_no_bias(weights, "text_projection", hidden, config.projection_dim)?,
            compute,
            path,
            config,
        })
    }

    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Runs the model on prompts of equal length, `ids[prompt][position]`; both results are f32.
    pub fn forward(&self, ids: &[Vec<u32>]) -> Result<ClipOutput> {
        let device = self.tokens.device();
        let (batch, length) = (ids.len(), ids.first().map_or(0, Vec::len));
        if length > self.config.max_position_embeddings {
            let positions = self.config.max_position_embeddings;
            let problem = format!("max_position_embeddings is {positions}, but prompts have {length} tokens");
            return Err(Error::file(&self.path, problem));
        }
        if let Some(id) = ids.iter().flatten().find(|&&id| id as usize >= self.config.vocab_size) {
            let vocab = self.config.vocab_size;
            return Err(Error::file(&self.path, format!("vocab_size is {vocab}, but the tokenizer yields token {id}")));
        }
        let flat = Tensor::from_vec(ids.concat(), batch * length, device)?;
        let tokens = self.tokens.index_select(&flat, 0)?.to_dtype(self.compute)?;
        let positions = self.positions.narrow(0, 0, length)?.to_dtype(self.compute)?;
        let mut x = tokens.reshape((batch, length, self.config.hidden_size))?.broadcast_add(&positions)?;
        let mask = causal_mask(length, self.compute, device)?;
        let mut hidden = x.clone();
        for layer in &self.layers {
            hidden = x;
            x = self.layer(layer, &hidden, &mask)?;
        }
        let ends: Vec<u32> = (0..).zip(ids).map(|(row, ids)| row * length as u32 + self.end_position(ids)).collect();
        let ends = Tensor::from_vec(ends, batch, device)?;
        let states = x.reshape((batch * length, self.config.hidden_size))?.index_select(&ends, 0)?;
        let pooled = self.projection.forward(&self.final_norm.forward(&states)?)?;
        Ok(ClipOutput { hidden: hidden.to_dtype(DType::F32)?, pooled: pooled.to_dtype(DType::F32)? })
    }

    /// Position of the end-of-text token.
    fn end_position(&self, ids: &[u32]) -> u32 {
        // The released configs of CLIP say 2, which is wrong; transformers then takes the highest id.
        let position = if self.config.eos_token_id == 2 {
            let highest = ids.iter().max();
            ids.iter().position(|id| Some(id) == highest)
        } else {
            ids.iter().position(|&id| id == self.config.eos_token_id)
        };
        position.unwrap_or(0) as u32
    }

    fn layer(&self, layer: &Layer, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let (batch, length, hidden) = x.dims3()?;
        let heads = self.config.num_attention_heads;
        let split = |x: Tensor| x.reshape((batch, length, heads, hidden / heads))?.transpose(1, 2)?.contiguous();
        let normed = layer.norm1.forward(x)?;
        let q = split((layer.q.forward(&normed)? * ((hidden / heads) as f64).powf(-0.5))?)?;
        let (k, v) = (split(layer.k.forward(&normed)?)?, split(layer.v.forward(&normed)?)?);
        let scores = q.matmul(&k.transpose(D::Minus2, D::Minus1)?)?.broadcast_add(mask)?;
        let mixed = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)?;
        let x = (x + layer.out.forward(&mixed.transpose(1, 2)?.reshape((batch, length, hidden))?)?)?;
        let inner = layer.fc1.forward(&layer.norm2.forward(&x)?)?;
        let inner = match self.config.hidden_act {
            ClipActivation::QuickGelu => (&inner * candle_nn::ops::sigmoid(&(&inner * 1.702)?)?)?,
            ClipActivation::Gelu => inner.gelu_erf()?,
        };
        Ok((x + layer.fc2.forward(&inner)?)?)
    }
}

/// `[length, length]`: 0 where a token may look, −∞ at those after it.
fn causal_mask(length: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let mask: Vec<f32> = (0..length)
        .flat_map(|row| (0..length).map(move |column| if column > row { f32::NEG_INFINITY } else { 0.0 }))
        .collect();
    Ok(Tensor::from_vec(mask, (length, length), device)?.to_dtype(dtype)?)
}
