//! The autoencoder's configuration.
use crate::model::weights::files::{ModelFiles, Part};
use crate::model::weights::sizes;
use crate::system::error::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// Each level halves the resolution; with more levels than this, latents would have no pixels.
const MOST_LEVELS: usize = 8;

/// Sides of a patch of latents are no longer.
const LARGEST_PATCH: usize = 8;

/// Sizes from the autoencoder's `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct VaeConfig {
    /// Channels of the picture.
    pub in_channels: usize,
    /// Channels of the decoded picture.
    pub out_channels: usize,
    /// Channels of the latents, before they are packed.
    pub latent_channels: usize,
    /// Channels of each resolution level; each level after the first halves height and width.
    pub block_out_channels: Vec<usize>,
    /// Those of the decoder, from the first level on; absent: the same.
    decoder_block_out_channels: Option<Vec<usize>>,
    /// Residual blocks a level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Latents are `(mean − shift_factor) · scaling_factor`; absent where they are packed.
    scaling_factor: Option<f64>,
    /// See `scaling_factor`; absent: 0.
    shift_factor: Option<f64>,
    /// Sides of the square of latents that is packed into one, where they are packed.
    #[serde(default = "default_patch_size")]
    patch_size: (usize, usize),
    /// Added to the variance of packed latents.
    #[serde(default = "default_batch_norm_eps")]
    pub batch_norm_eps: f64,
    /// Whether a 1×1 convolution follows the encoder.
    #[serde(default = "yes")]
    pub use_quant_conv: bool,
    /// Whether a 1×1 convolution precedes the decoder.
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
    /// Whether the middle block has an attention.
    #[serde(default = "yes")]
    pub mid_block_add_attention: bool,
    act_fn: Option<String>,
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
    #[serde(default)]
    down_block_types: Vec<String>,
    #[serde(default)]
    up_block_types: Vec<String>,
}

fn yes() -> bool {
    true
}

fn default_patch_size() -> (usize, usize) {
    (2, 2)
}

fn default_batch_norm_eps() -> f64 {
    1e-4
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
        let of_decoder = self.decoder_channels();
        if of_decoder.len() != self.block_out_channels.len() {
            let (found, levels) = (of_decoder.len(), self.block_out_channels.len());
            return problem(format!("decoder_block_out_channels has {found} levels, expected {levels}"));
        }
        let mut levels = self.block_out_channels.iter().chain(of_decoder);
        let named = levels.clone().map(|channels| ("block_out_channels", *channels));
        sizes::check(path, &sizes.into_iter().chain(named).collect::<Vec<_>>())?;
        let groups = self.norm_num_groups;
        if let Some(channels) = levels.find(|channels| !channels.is_multiple_of(groups)) {
            return problem(format!("block_out_channels has {channels}, no multiple of norm_num_groups {groups}"));
        }
        if self.act_fn.as_deref().is_some_and(|act| act != "silu" && act != "swish") {
            return problem(format!("act_fn is {:?}, expected \"silu\"", self.act_fn.as_deref().unwrap_or_default()));
        }
        let plain = |kind: &String| kind != "DownEncoderBlock2D" && kind != "UpDecoderBlock2D";
        if let Some(kind) = self.down_block_types.iter().chain(&self.up_block_types).find(|kind| plain(kind)) {
            return problem(format!("block type {kind:?} is not supported"));
        }
        if self.is_packed() {
            sizes::check_eps(path, "batch_norm_eps", self.batch_norm_eps)?;
            return match self.patch_size {
                (height, width) if height == width && (1..=LARGEST_PATCH).contains(&height) => Ok(()),
                size => problem(format!("patch_size is {size:?}, expected equal sides of 1 to {LARGEST_PATCH}")),
            };
        }
        let Some(scaling_factor) = self.scaling_factor else {
            return problem("missing field `scaling_factor`".into());
        };
        if !(scaling_factor.is_finite() && scaling_factor != 0.0) {
            return problem(format!("scaling_factor is {scaling_factor}"));
        }
        match self.shift_factor {
            Some(shift) if !shift.is_finite() => problem(format!("shift_factor is {shift}")),
            _ => Ok(()),
        }
    }

    /// Pixels per latent, horizontally and vertically; packed latents are those of a whole patch.
    pub fn pixels_per_latent(&self) -> usize {
        self.packed_side() << (self.block_out_channels.len() - 1)
    }

    /// Channels of the latents, packed where they are.
    pub fn channels(&self) -> usize {
        self.latent_channels * self.packed_side() * self.packed_side()
    }

    /// Whether latents are packed into patches and normalised by running statistics, in the place of scale and shift.
    pub(super) fn is_packed(&self) -> bool {
        self.class_name.as_deref() == Some("AutoencoderKLFlux2")
    }

    /// Side of the square of latents that is packed into one.
    pub(super) fn packed_side(&self) -> usize {
        if self.is_packed() { self.patch_size.0 } else { 1 }
    }

    /// Channels of the decoder's levels.
    pub(super) fn decoder_channels(&self) -> &[usize] {
        self.decoder_block_out_channels.as_ref().unwrap_or(&self.block_out_channels)
    }

    /// `(shift_factor, scaling_factor)`
    pub(super) fn shift_and_scale(&self) -> (f64, f64) {
        (self.shift_factor.unwrap_or(0.0), self.scaling_factor.unwrap_or(1.0))
    }
}
