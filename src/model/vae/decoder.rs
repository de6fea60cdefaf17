//! Latents to images.
use super::blocks::{LayerLoader, Level, MidBlock, ResnetBlock};
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
        let mut levels = Vec::new();
        let mut input = last;
        let count = config.decoder_channels().len();
        for (index, &output) in config.decoder_channels().iter().rev().enumerate() {
            let name = format!("decoder.up_blocks.{index}");
            let resnet = |layer: usize| {
                let from = if layer == 0 { input } else { output };
                ResnetBlock::load(loader, &format!("{name}.resnets.{layer}"), from, output)
            };
            let up = format!("{name}.upsamplers.0.conv");
            levels.push(Level {
                resnets: (0..=config.layers_per_block).map(resnet).collect::<Result<_>>()?,
                resample: match index + 1 < count {
                    true => Some(loader.conv(&up, output, output, 3, Stride::One)?),
                    false => None,
                },
            });
            input = output;
        }
        Ok(Self {
            quant: match config.use_post_quant_conv {
                true => Some(loader.conv("post_quant_conv", latent, latent, 1, Stride::One)?),
                false => None,
            },
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
            for resnet in &level.resnets {
                x = resnet.forward(x)?;
            }
            if let Some(up) = &level.resample {
                x = up.forward_from(Input::Upsampled(&x))?;
            }
        }
        Ok(self.conv_out.forward_from(Input::NormSilu(&x, &self.norm_out))?)
    }
}
