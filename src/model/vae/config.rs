//! The autoencoder's configuration.
use crate::model::weights::files::{ModelFiles, Part};
use crate::model::weights::sizes;
use crate::system::error::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// Each level halves the resolution; with more levels than this, latents would have no pixels.
const MOST_LEVELS: usize = 8;

/// Sizes from the autoencoder's `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct VaeConfig {
    /// Channels of the picture.
    pub in_channels: usize,
    /// Channels of the decoded picture.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of each resolution level; each level after the first halves height and width.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks a level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Latents are `(mean − shift_factor) · scaling_factor`.
    pub scaling_factor: f64,
    /// See `scaling_factor`; absent: 0.
    #[serde(default)]
    pub shift_factor: Option<f64>,
    /// Whether a 1×1 convolution follows the encoder.
    #[serde(default = "yes")]
    pub use_quant_conv: bool,
    /// Whether a 1×1 convolution precedes the decoder.
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
    /// Whether the middle block has an attention.
    #[serde(default = "yes")]
    pub mid_block_add_attention: bool,
    #[serde(default)]
    act_fn: Option<String>,
    #[serde(default)]
    down_block_types: Vec<String>,
    #[serde(default)]
    up_block_types: Vec<String>,
}

fn yes() -> bool {
    true
}

impl VaeConfig {
    /// Reads and checks a model's configuration.
    pub fn open(files: &ModelFiles) -> Result<Self> {
        let config: Self = files.config(Part::Vae)?;
        config.check(&files.config_path(Part::Vae))?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<()> {
        let problem = |text: String| Err(Error::file(path, text));
        if !(1..=MOST_LEVELS).contains(&self.block_out_channels.len()) {
            let levels = self.block_out_channels.len();
            return problem(format!("block_out_channels has {levels} levels, expected 1 to {MOST_LEVELS}"));
        }
        let sizes = [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("latent_channels", self.latent_channels),
            ("layers_per_block", self.layers_per_block),
            ("norm_num_groups", self.norm_num_groups),
        ];
        let levels = self.block_out_channels.iter().map(|channels| ("block_out_channels", *channels));
        sizes::check(path, &sizes.into_iter().chain(levels).collect::<Vec<_>>())?;
        let groups = self.norm_num_groups;
        if let Some(channels) = self.block_out_channels.iter().find(|c| **c == 0 || !c.is_multiple_of(groups)) {
            return problem(format!("block_out_channels has {channels}, no multiple of norm_num_groups {groups}"));
        }
        if self.act_fn.as_deref().is_some_and(|act| act != "silu" && act != "swish") {
            return problem(format!("act_fn is {:?}, expected \"silu\"", self.act_fn.as_deref().unwrap_or_default()));
        }
        let plain = |kind: &String| kind != "DownEncoderBlock2D" && kind != "UpDecoderBlock2D";
        if let Some(kind) = self.down_block_types.iter().chain(&self.up_block_types).find(|kind| plain(kind)) {
            return problem(format!("block type {kind:?} is not supported"));
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor != 0.0) {
            return problem(format!("scaling_factor is {}", self.scaling_factor));
        }
        match self.shift_factor {
            Some(shift) if !shift.is_finite() => problem(format!("shift_factor is {shift}")),
            _ => Ok(()),
        }
    }

    /// Pixels per latent, horizontally and vertically.
    pub fn pixels_per_latent(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}
