//! The text model of CLIP, with its projection or without (transformers: `CLIPTextModelWithProjection`, `CLIPTextModel`).
//!
//! candle-transformers has a text model without the projection, of sizes from a list instead of `config.json`.
use super::clip_layer::{ClipActivation, ClipLayer, LayerSizes};
use super::tokenizer::{check_ids, check_length};
use crate::model::layers::{LayerNorm, Linear};
use crate::model::weights::Weights;
use crate::model::weights::files::{ModelFiles, Part};
use crate::model::weights::sizes;
use crate::system::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use std::path::{Path, PathBuf};

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

fn default_eps() -> f64 {
    1e-5
}

fn default_end() -> u32 {
    49407
}

impl ClipConfig {
    fn check(&self, path: &Path) -> Result<()> {
        sizes::check_eps(path, "layer_norm_eps", self.layer_norm_eps)?;
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("max_position_embeddings", self.max_position_embeddings),
            ("projection_dim", self.projection_dim),
        ];
        sizes::check(path, &sizes)?;
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        if !hidden.is_multiple_of(heads) {
            let problem = format!("hidden_size {hidden} is no multiple of num_attention_heads {heads}");
            return Err(Error::file(path, problem));
        }
        Ok(())
    }
}

/// What becomes of the state of the end-of-text token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// It is normed and projected (transformers: `CLIPTextModelWithProjection`).
    Projected,
    /// It is normed (`CLIPTextModel`).
    Normed,
}

/// A CLIP text model that computes in `compute`, whatever the dtype of its weights.
pub struct ClipTextModel {
    config: ClipConfig,
    /// `[vocab, hidden]`.
    tokens: Tensor,
    /// `[positions, hidden]`.
    positions: Tensor,
    layers: Vec<ClipLayer>,
    final_norm: LayerNorm,
    /// None where the pooled state is not projected.
    projection: Option<Linear>,
    compute: DType,
    /// The source of the sizes, for error messages.
    path: PathBuf,
}

/// The text model's output for a batch of prompts.
pub struct ClipOutput {
    /// The second last layer's hidden states: `[batch, tokens, hidden]`.
    pub hidden: Tensor,
    /// The state of the end-of-text token, normed and with a projection projected: `[batch, projection]`, without one
    /// `[batch, hidden]`.
    pub pooled: Tensor,
}

impl ClipTextModel {
    pub fn load(
        files: &ModelFiles,
        part: Part,
        pooling: Pooling,
        dtype: DType,
        compute: DType,
        device: &Device,
    ) -> Result<Self> {
        let weights = files.weights(part, dtype, device)?;
        let model = Self::from_weights(files.config(part)?, files.config_path(part), pooling, &weights, compute)?;
        weights.finish()?;
        Ok(model)
    }

    /// Takes the text model's tensors from `weights`; the sizes come from the file `path`.
    pub fn from_weights(
        config: ClipConfig,
        path: PathBuf,
        pooling: Pooling,
        weights: &Weights,
        compute: DType,
    ) -> Result<Self> {
        config.check(&path)?;
        // transformers writes a model that has no projection without the prefix since version 5.
        let bare = pooling == Pooling::Normed && weights.contains("embeddings.token_embedding.weight");
        let prefix = if bare { "" } else { "text_model." };
        // Older files store the position indices 0..77 as a tensor.
        weights.ignore(&format!("{prefix}embeddings.position_ids"));
        let (hidden, eps) = (config.hidden_size, config.layer_norm_eps);
        let embedding = |name: &str, rows: usize| weights.get(&format!("{prefix}embeddings.{name}"), (rows, hidden));
        let sizes = LayerSizes {
            hidden,
            intermediate: config.intermediate_size,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
            eps,
        };
        let layer = |index: usize| ClipLayer::load(weights, &format!("{prefix}encoder.layers.{index}"), sizes);
        Ok(Self {
            tokens: embedding("token_embedding.weight", config.vocab_size)?,
            positions: embedding("position_embedding.weight", config.max_position_embeddings)?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            final_norm: LayerNorm::load(weights, &format!("{prefix}final_layer_norm"), hidden, eps)?,
            projection: match pooling {
                Pooling::Projected => {
                    Some(Linear::load_no_bias(weights, "text_projection", hidden, config.projection_dim)?)
                }
                Pooling::Normed => {
                    weights.ignore("text_projection.weight");
                    None
                }
            },
            compute,
            path,
            config,
        })
    }

    /// Runs the model on prompts of equal length, `ids[prompt][position]`; both outputs are f32.
    pub fn forward(&self, ids: &[Vec<u32>]) -> Result<ClipOutput> {
        let device = self.tokens.device();
        let (batch, length) = (ids.len(), ids.first().map_or(0, Vec::len));
        check_length(&self.path, self.config.max_position_embeddings, length)?;
        check_ids(&self.path, self.config.vocab_size, ids.iter().flatten())?;
        let flat = Tensor::from_vec(ids.concat(), batch * length, device)?;
        let tokens = self.tokens.index_select(&flat, 0)?.to_dtype(self.compute)?;
        let positions = self.positions.narrow(0, 0, length)?.to_dtype(self.compute)?;
        let mut x = tokens.reshape((batch, length, self.config.hidden_size))?.broadcast_add(&positions)?;
        let mask = causal_mask(length, self.compute, device)?;
        let mut hidden = x.clone();
        for layer in &self.layers {
            hidden = x;
            x = layer.forward(&hidden, Some(&mask))?;
        }
        let ends: Vec<u32> = (0..).zip(ids).map(|(row, ids)| row * length as u32 + self.end_position(ids)).collect();
        let ends = Tensor::from_vec(ends, batch, device)?;
        let states = x.reshape((batch * length, self.config.hidden_size))?.index_select(&ends, 0)?;
        let mut pooled = self.final_norm.forward(&states)?;
        if let Some(projection) = &self.projection {
            pooled = projection.forward(&pooled)?;
        }
        Ok(ClipOutput { hidden: hidden.to_dtype(DType::F32)?, pooled: pooled.to_dtype(DType::F32)? })
    }

    /// Position of the end-of-text token.
    fn end_position(&self, ids: &[u32]) -> u32 {
        // CLIP's released configs have the wrong id 2; transformers then takes the highest id.
        let position = if self.config.eos_token_id == 2 {
            let highest = ids.iter().max();
            ids.iter().position(|id| Some(id) == highest)
        } else {
            ids.iter().position(|&id| id == self.config.eos_token_id)
        };
        position.unwrap_or(0) as u32
    }
}

/// The causal mask, `[length, length]`: 0 for visible tokens, −∞ for later ones.
fn causal_mask(length: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let mask: Vec<f32> = (0..length)
        .flat_map(|row| (0..length).map(move |column| if column > row { f32::NEG_INFINITY } else { 0.0 }))
        .collect();
    Ok(Tensor::from_vec(mask, (length, length), device)?.to_dtype(dtype)?)
}
