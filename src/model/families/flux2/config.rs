//! Sizes of a FLUX.2 transformer, from `transformer/config.json` (diffusers' `Flux2Transformer2DModel`).
use crate::model::families::config::{FamilyConfig, check_sizes};
use crate::model::families::flux::{DOUBLE_BLOCKS, SINGLE_BLOCKS, check_axes, check_channels, one};
use crate::model::families::names::Release;
use crate::model::families::time_embedding::FEATURES;
use crate::model::families::transformer::{Guidance, TransformerConfig};
use crate::model::weights::files::{ModelFiles, Part};
use crate::system::error::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// An MLP has at most so many hidden features for each of a token's.
const LARGEST_RATIO: f64 = 16.0;

/// Sizes of a FLUX.2 transformer; the fields are the keys of `transformer/config.json`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Flux2Config {
    /// 1: the autoencoder's latents are packed by itself.
    #[serde(default = "one")]
    pub patch_size: usize,
    /// Channels of the packed latents.
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
    /// Whether the pipeline says that the model is distilled: it is then not guided.
    #[serde(skip)]
    pub is_distilled: bool,
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
    /// The MLP's hidden features.
    pub fn hidden(&self) -> usize {
        self.mlp_ratio as usize * self.width()
    }
}

impl FamilyConfig for Flux2Config {
    fn checked(self, file: &Path) -> Result<Self> {
        let wrong = |problem: String| Err(Error::file(file, problem));
        let named = [
            ("in_channels", self.in_channels),
            ("num_layers", self.num_layers),
            ("num_single_layers", self.num_single_layers),
            ("attention_head_dim", self.attention_head_dim),
            ("num_attention_heads", self.num_attention_heads),
            ("joint_attention_dim", self.joint_attention_dim),
        ];
        check_sizes(file, &named)?;
        check_channels(file, self.patch_size, self.in_channels, self.out_channels)?;
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
        check_axes(file, &self.axes_dims_rope, self.attention_head_dim)?;
        Ok(self)
    }

    fn general(&self) -> TransformerConfig {
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
            guidance: if self.is_distilled { Guidance::None } else { Guidance::TwoPasses },
            release: Some(Release { base_model_version: "flux_2_klein_base_4b", architecture: "flux-2-klein-base-4b" }),
        }
    }
    /// A distilled model is not guided, as diffusers' pipeline has it (`is_distilled`).
    fn open(files: &ModelFiles) -> Result<Self> {
        #[derive(Deserialize)]
        struct PipelineConfig {
            #[serde(default)]
            is_distilled: bool,
        }
        let config = files.config::<Self>(Part::Transformer)?.checked(&files.config_path(Part::Transformer))?;
        let is_distilled = !files.is_one_file() && files.pipeline_config::<PipelineConfig>()?.is_distilled;
        Ok(Self { is_distilled, ..config })
    }
}
