//! Images to latents.
use super::blocks::{LayerLoader, Level, MidBlock};
use crate::ops::conv2d::{Conv2d, Input, Stride};
use crate::ops::group_norm::GroupNorm;
use crate::system::error::Result;
use candle_core::Tensor;

/// diffusers' `Encoder`, followed by older autoencoders' `quant_conv`.
pub struct Encoder {
    conv_in: Conv2d,
    levels: Vec<Level>,
    mid: MidBlock,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    quant: Option<Conv2d>,
}

impl Encoder {
    pub fn load(loader: &LayerLoader) -> Result<Self> {
        let config = loader.config;
        let channels = &config.block_out_channels;
        let (first, last) = loader.ends(channels);
        let down = ("downsamplers.0.conv", Stride::Two);
        let levels = Level::load_all(loader, "encoder.down_blocks", channels, config.layers_per_block, down)?;
        let moments = 2 * config.latent_channels;
        Ok(Self {
            conv_in: loader.conv("encoder.conv_in", config.in_channels, first, 3, Stride::One)?,
            levels,
            mid: MidBlock::load(loader, "encoder.mid_block", last)?,
            norm_out: loader.norm("encoder.conv_norm_out", last)?,
            conv_out: loader.conv("encoder.conv_out", last, moments, 3, Stride::One)?,
            quant: config
                .use_quant_conv
                .then(|| loader.conv("quant_conv", moments, moments, 1, Stride::One))
                .transpose()?,
        })
    }

    /// Mean and log-variance of the posterior, concatenated along the channels.
    pub fn forward(&self, image: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(image)?;
        for level in &self.levels {
            x = level.residual(x)?;
            if let Some(down) = &level.resample {
                x = down.forward(&x)?;
            }
        }
        x = self.mid.forward(x)?;
        x = self.conv_out.forward_from(Input::NormSilu(&x, &self.norm_out))?;
        Ok(match &self.quant {
            Some(quant) => quant.forward(&x)?,
            None => x,
        })
    }
}
