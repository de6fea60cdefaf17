//! Latents to images.
use super::blocks::{LayerLoader, Level, MidBlock};
use crate::ops::conv2d::{Conv2d, Input, Stride};
use crate::ops::group_norm::GroupNorm;
use crate::system::error::Result;
use candle_core::Tensor;

/// diffusers' `Decoder`, preceded by older autoencoders' `post_quant_conv`.
pub struct Decoder {
    quant: Option<Conv2d>,
    conv_in: Conv2d,
    mid: MidBlock,
    levels: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub fn load(loader: &LayerLoader) -> Result<Self> {
        let config = loader.config;
        let latent = config.latent_channels;
        let (first, last) = loader.ends(config.decoder_channels());
        let channels: Vec<usize> = config.decoder_channels().iter().rev().copied().collect();
        let (count, up) = (config.layers_per_block + 1, ("upsamplers.0.conv", Stride::One));
        let levels = Level::load_all(loader, "decoder.up_blocks", &channels, count, up)?;
        Ok(Self {
            quant: config
                .use_post_quant_conv
                .then(|| loader.conv("post_quant_conv", latent, latent, 1, Stride::One))
                .transpose()?,
            conv_in: loader.conv("decoder.conv_in", latent, last, 3, Stride::One)?,
            mid: MidBlock::load(loader, "decoder.mid_block", last)?,
            levels,
            norm_out: loader.norm("decoder.conv_norm_out", first)?,
            conv_out: loader.conv("decoder.conv_out", first, config.out_channels, 3, Stride::One)?,
        })
    }

    pub fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let x = match &self.quant {
            Some(quant) => quant.forward(latents)?,
            None => latents.clone(),
        };
        let mut x = self.mid.forward(self.conv_in.forward(&x)?)?;
        for level in &self.levels {
            x = level.residual(x)?;
            if let Some(up) = &level.resample {
                x = up.forward_from(Input::Upsampled(&x))?;
            }
        }
        Ok(self.conv_out.forward_from(Input::NormSilu(&x, &self.norm_out))?)
    }
}
