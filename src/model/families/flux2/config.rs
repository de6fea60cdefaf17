//! Sizes of a FLUX.2 transformer, from `transformer/config.json` (diffusers' `Flux2Transformer2DModel`).
use super::names::{DOUBLE_BLOCKS, SINGLE_BLOCKS};
use crate::model::families::names::Release;
use crate::model::families::time_embedding::FEATURES;
use crate::model::families::transformer::{Guidance, LARGEST, TransformerConfig};
use crate::model::weights::files::{ModelFiles, Part};
use crate::model::weights::sizes;
use crate::system::error::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// An MLP has at most so many hidden features for each of a token's.
const LARGEST_RATIO: f64 = 16.0;

/// Sizes of a FLUX.2 transformer; the fields are the keys of `transformer/config.json`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Flux2Config {
    /// 1: the autoencoder's latents are packed by itself.
    #[serde(default = "default_patch_size")]
    pub patch_size: usize,
    /// Channels of the packed latents.
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
    /// Sinusoidal features of the time.
    #[serde(default = "default_features")]
    pub timestep_guidance_channels: usize,
    /// The MLP's hidden features for each of a token's: a whole number.
    #[serde(default = "default_ratio")]
    pub mlp_ratio: f64,
    /// Features of a head that are turned by a token's place: 0 for all, row, column, number in the text.
    #[serde(default = "default_axes")]
    pub axes_dims_rope: [usize; 4],
    /// Base of the angles of rotary positions.
    #[serde(default = "default_theta")]
    pub rope_theta: f64,
    /// Epsilon of every norm.
    #[serde(default = "default_eps")]
    pub eps: f64,
    /// Whether the guidance scale is embedded: in FLUX.2-dev, which is another pipeline.
    #[serde(default = "yes")]
    pub guidance_embeds: bool,
}

fn default_patch_size() -> usize {
    1
}

fn default_features() -> usize {
    FEATURES
}

fn default_ratio() -> f64 {
    3.0
}

fn default_axes() -> [usize; 4] {
    [32; 4]
}

fn default_theta() -> f64 {
    2000.0
}

fn default_eps() -> f64 {
    1e-6
}

fn yes() -> bool {
    true
}

impl Flux2Config {
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
        ];
        sizes::check_up_to(LARGEST, file, &named)?;
        if self.patch_size != 1 {
            return wrong(format!("patch_size is {}, expected 1", self.patch_size));
        }
        if let Some(out) = self.out_channels.filter(|out| *out != self.in_channels) {
            return wrong(format!("out_channels is {out}, expected in_channels, {}", self.in_channels));
        }
        if self.timestep_guidance_channels != FEATURES {
            let found = self.timestep_guidance_channels;
            return wrong(format!("timestep_guidance_channels is {found}, expected {FEATURES}"));
        }
        if self.mlp_ratio.fract() != 0.0 || !(1.0..=LARGEST_RATIO).contains(&self.mlp_ratio) {
            return wrong(format!("mlp_ratio is {}, expected a whole number up to {LARGEST_RATIO}", self.mlp_ratio));
        }
        if self.eps != default_eps() {
            return wrong(format!("eps is {}, expected {}", self.eps, default_eps()));
        }
        if !(self.rope_theta >= 1.0 && self.rope_theta.is_finite()) {
            return wrong(format!("rope_theta is {}, expected a number of at least 1", self.rope_theta));
        }
        if self.guidance_embeds {
            return wrong("guidance_embeds is true, expected false: of FLUX.2 only klein is known".into());
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

    /// The MLP's hidden features.
    pub fn hidden(&self) -> usize {
        self.mlp_ratio as usize * self.width()
    }

    /// The sizes as all families have them.
    pub fn general(&self) -> TransformerConfig {
        TransformerConfig {
            block_lists: vec![(DOUBLE_BLOCKS, self.num_layers), (SINGLE_BLOCKS, self.num_single_layers)],
            num_attention_heads: self.num_attention_heads,
            attention_head_dim: self.attention_head_dim,
            in_channels: self.in_channels,
            patch_size: self.patch_size,
            max_grid: usize::MAX,
            joint_attention_dim: self.joint_attention_dim,
            pooled_projection_dim: 0,
            usual_guidance_scale: 4.0,
            guidance: Guidance::TwoPasses,
            release: Some(Release { base_model_version: "flux_2_klein_base_4b", architecture: "flux-2-klein-base-4b" }),
        }
    }
}
