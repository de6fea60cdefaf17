//! Sizes of a FLUX.1 transformer, from `transformer/config.json` (diffusers' `FluxTransformer2DModel`).
use super::pipeline::PACKED_SIDE;
use crate::model::families::config::{FamilyConfig, check_sizes};
use crate::model::families::flux::{DOUBLE_BLOCKS, SINGLE_BLOCKS, check_axes, check_channels, one};
use crate::model::families::names::Release;
use crate::model::families::transformer::{Guidance, TransformerConfig};
use crate::system::error::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// Sizes of a FLUX.1 transformer; the fields are the keys of `transformer/config.json`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct FluxConfig {
    /// 1: latents are packed before they come to the transformer.
    #[serde(default = "one")]
    pub patch_size: usize,
    /// Channels of packed latents.
    pub in_channels: usize,
    /// Channels of the packed prediction; absent: as many as of the latents.
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

fn default_axes() -> [usize; 3] {
    [16, 56, 56]
}

impl FamilyConfig for FluxConfig {
    fn checked(self, file: &Path) -> Result<Self> {
        let named = [
            ("in_channels", self.in_channels),
            ("num_layers", self.num_layers),
            ("num_single_layers", self.num_single_layers),
            ("attention_head_dim", self.attention_head_dim),
            ("num_attention_heads", self.num_attention_heads),
            ("joint_attention_dim", self.joint_attention_dim),
            ("pooled_projection_dim", self.pooled_projection_dim),
        ];
        check_sizes(file, &named)?;
        let packed = PACKED_SIDE * PACKED_SIDE;
        if !self.in_channels.is_multiple_of(packed) {
            let problem = format!("in_channels is {}, expected a multiple of {packed}", self.in_channels);
            return Err(Error::file(file, problem));
        }
        check_channels(file, self.patch_size, self.in_channels, self.out_channels)?;
        check_axes(file, &self.axes_dims_rope, self.attention_head_dim)?;
        Ok(self)
    }

    fn general(&self) -> TransformerConfig {
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
