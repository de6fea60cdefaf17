//! Images to latents.
use super::blocks::{LayerLoader, Level, MidBlock, ResnetBlock};
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
        let mut levels = Vec::new();
        let mut input = first;
        for (index, &output) in channels.iter().enumerate() {
            let name = format!("encoder.down_blocks.{index}");
            let resnet = |layer: usize| {
                let from = if layer == 0 { input } else { output };
                ResnetBlock::load(loader, &format!("{name}.resnets.{layer}"), from, output)
            };
            let down = format!("{name}.downsamplers.0.conv");
            levels.push(Level {
                resnets: (0..config.layers_per_block).map(resnet).collect::<Result<_>>()?,
                resample: match index + 1 < channels.len() {
                    true => Some(loader.conv(&down, output, output, 3, Stride::Two)?),
                    false => None,
                },
            });
            input = output;
        }
        let moments = 2 * config.latent_channels;
        Ok(Self {
            conv_in: loader.conv("encoder.conv_in", config.in_channels, first, 3, Stride::One)?,
            levels,
            mid: MidBlock::load(loader, "encoder.mid_block", last)?,
            norm_out: loader.norm("encoder.conv_norm_out", last)?,
            conv_out: loader.conv("encoder.conv_out", last, moments, 3, Stride::One)?,
            quant: match config.use_quant_conv {
                true => Some(loader.conv("quant_conv", moments, moments, 1, Stride::One)?),
                false => None,
            },
        })
    }

    /// Mean and log-variance of the posterior, concatenated along the channels.
    pub fn forward(&self, image: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(image)?;
        for level in &self.levels {
            for resnet in &level.resnets {
                x = resnet.forward(x)?;
            }
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
