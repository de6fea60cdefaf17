//! Sizes of an MM-DiT, from `transformer/config.json` (diffusers' `SD3Transformer2DModel`).
use super::names::BLOCKS;
use crate::model::families::config::{FamilyConfig, check_sizes};
use crate::model::families::names::Release;
use crate::model::families::transformer::{Guidance, TransformerConfig};
use crate::system::error::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// Sizes of an MM-DiT; the fields are the keys of `transformer/config.json`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct MmDitConfig {
    /// Side of a patch of latents that becomes one token.
    pub patch_size: usize,
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels of the prediction; absent: as many as of the latents.
    pub out_channels: Option<usize>,
    /// Blocks.
    pub num_layers: usize,
    /// Width of an attention head.
    pub attention_head_dim: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width of the text embeddings.
    pub joint_attention_dim: usize,
    /// Width that text embeddings are projected to: heads · width of a head.
    pub caption_projection_dim: usize,
    /// Width of the pooled text embedding.
    pub pooled_projection_dim: usize,
    /// Side of the table of positions, in tokens.
    pub pos_embed_max_size: usize,
    /// Blocks with a second, image-only attention (SD3.5-medium).
    #[serde(default)]
    pub dual_attention_layers: Vec<usize>,
    /// `rms_norm` (SD3.5) or none (SD3).
    pub qk_norm: Option<String>,
}

impl MmDitConfig {
    /// Channels of the prediction; absent: as many as of the latents.
    pub fn out_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// Whether block `layer` is the last, which has no text output.
    pub fn is_last(&self, layer: usize) -> bool {
        layer + 1 == self.num_layers
    }
}

impl FamilyConfig for MmDitConfig {
    fn checked(self, file: &Path) -> Result<Self> {
        let config = self;
        let wrong = |problem: String| Err(Error::file(file, problem));
        let named = [
            ("patch_size", config.patch_size),
            ("in_channels", config.in_channels),
            ("num_layers", config.num_layers),
            ("attention_head_dim", config.attention_head_dim),
            ("num_attention_heads", config.num_attention_heads),
            ("pos_embed_max_size", config.pos_embed_max_size),
            ("joint_attention_dim", config.joint_attention_dim),
            ("pooled_projection_dim", config.pooled_projection_dim),
            ("out_channels", config.out_channels()),
        ];
        check_sizes(file, &named)?;
        if config.caption_projection_dim != config.width() {
            return wrong(format!(
                "caption_projection_dim is {}, expected num_attention_heads · attention_head_dim = {}",
                config.caption_projection_dim,
                config.width()
            ));
        }
        match config.qk_norm.as_deref() {
            None | Some("rms_norm") => Ok(config),
            Some(other) => wrong(format!("qk_norm \"{other}\" is not supported, only \"rms_norm\" or null")),
        }
    }

    fn general(&self) -> TransformerConfig {
        TransformerConfig {
            block_lists: vec![(BLOCKS, self.num_layers)],
            num_attention_heads: self.num_attention_heads,
            attention_head_dim: self.attention_head_dim,
            in_channels: self.in_channels,
            patch_size: self.patch_size,
            max_grid: self.pos_embed_max_size,
            joint_attention_dim: self.joint_attention_dim,
            pooled_projection_dim: self.pooled_projection_dim,
            usual_guidance_scale: 7.0,
            guidance: Guidance::TwoPasses,
            release: Some(release(self.qk_norm.is_some(), !self.dual_attention_layers.is_empty())),
        }
    }
}

/// The released model by what sets it apart in its configuration.
pub fn release(qk_norm: bool, dual_attention: bool) -> Release {
    let (base_model_version, architecture) = match (qk_norm, dual_attention) {
        (_, true) => ("5-medium", "stable-diffusion-3-5-medium"),
        (true, false) => ("5-large", "stable-diffusion-3-5-large"),
        (false, false) => ("medium", "stable-diffusion-3-medium"),
    };
    Release { base_model_version, architecture }
}
