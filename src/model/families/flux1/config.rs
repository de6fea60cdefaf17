//! Sizes of a FLUX.1 transformer, from `transformer/config.json` (diffusers' `FluxTransformer2DModel`).
use super::names::{DOUBLE_BLOCKS, SINGLE_BLOCKS};
use crate::model::families::names::Release;
use crate::model::families::transformer::{Guidance, LARGEST, TransformerConfig};
use crate::model::weights::files::{ModelFiles, Part};
use crate::model::weights::sizes;
use crate::system::error::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// Side of the square of latents that is packed into a token (diffusers' `FluxPipeline._pack_latents`).
pub const PACKED_SIDE: usize = 2;

/// Sizes of a FLUX.1 transformer; the fields are the keys of `transformer/config.json`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct FluxConfig {
    /// 1: latents are packed before they come to the transformer.
    #[serde(default = "default_patch_size")]
    pub patch_size: usize,
    /// Channels of packed latents.
    pub in_channels: usize,
    /// Channels of the packed prediction; absent: as many as of the latents.
    #[serde(default)]
    pub out_channels: Option<usize>,
    /// Double-stream blocks.
    pub num_layers: usize,
    /// Single-stream blocks, behind the others.
    pub num_single_layers: usize,
    /// Width of an attention head.
    pub attention_head_dim: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width of the text embeddings.
    pub joint_attention_dim: usize,
    /// Width of the pooled text embedding.
    pub pooled_projection_dim: usize,
    /// Whether the guidance scale is embedded (dev).
    #[serde(default)]
    pub guidance_embeds: bool,
    /// Features of a head that are turned by a token's place: 0 for all, row, column.
    #[serde(default = "default_axes")]
    pub axes_dims_rope: [usize; 3],
}

fn default_patch_size() -> usize {
    1
}

fn default_axes() -> [usize; 3] {
    [16, 56, 56]
}

impl FluxConfig {
    /// Reads and checks a model's configuration.
    ///
    /// # Errors
    /// A key is missing, or what is there does not make a model.
    pub fn open(files: &ModelFiles) -> Result<Self> {
        files.config::<Self>(Part::Transformer)?.checked(&files.config_path(Part::Transformer))
    }

    /// Refuses sizes that do not make a model, naming the `file` that they came from.
    ///
    /// # Errors
    /// Such sizes.
    pub fn checked(self, file: &Path) -> Result<Self> {
        let wrong = |problem: String| Err(Error::file(file, problem));
        let named = [
            ("in_channels", self.in_channels),
            ("num_layers", self.num_layers),
            ("num_single_layers", self.num_single_layers),
            ("attention_head_dim", self.attention_head_dim),
            ("num_attention_heads", self.num_attention_heads),
            ("joint_attention_dim", self.joint_attention_dim),
            ("pooled_projection_dim", self.pooled_projection_dim),
        ];
        sizes::check_up_to(LARGEST, file, &named)?;
        if self.patch_size != 1 {
            return wrong(format!("patch_size is {}, expected 1", self.patch_size));
        }
        let packed = PACKED_SIDE * PACKED_SIDE;
        if !self.in_channels.is_multiple_of(packed) {
            return wrong(format!("in_channels is {}, expected a multiple of {packed}", self.in_channels));
        }
        if let Some(out) = self.out_channels.filter(|out| *out != self.in_channels) {
            return wrong(format!("out_channels is {out}, expected in_channels, {}", self.in_channels));
        }
        let axes = self.axes_dims_rope;
        let fits = axes.iter().try_fold(0usize, |sum, axis| sum.checked_add(*axis)) == Some(self.attention_head_dim);
        if !fits || axes.iter().any(|axis| !axis.is_multiple_of(2)) {
            let head_dim = self.attention_head_dim;
            return wrong(format!(
                "axes_dims_rope is {axes:?}, expected even numbers that add up to attention_head_dim, {head_dim}"
            ));
        }
        Ok(self)
    }

    /// Features of a token.
    pub fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// The sizes as all families have them.
    pub fn general(&self) -> TransformerConfig {
        TransformerConfig {
            block_lists: vec![(DOUBLE_BLOCKS, self.num_layers), (SINGLE_BLOCKS, self.num_single_layers)],
            num_attention_heads: self.num_attention_heads,
            attention_head_dim: self.attention_head_dim,
            in_channels: self.in_channels / (PACKED_SIDE * PACKED_SIDE),
            patch_size: PACKED_SIDE,
            max_grid: usize::MAX,
            joint_attention_dim: self.joint_attention_dim,
            pooled_projection_dim: self.pooled_projection_dim,
            usual_guidance_scale: 3.5,
            guidance: if self.guidance_embeds { Guidance::Embedded } else { Guidance::None },
            release: Some(Release {
                base_model_version: "flux1",
                architecture: if self.guidance_embeds { "flux-1-dev" } else { "flux-1" },
            }),
        }
    }
}
