//! The blocks of encoder and decoder.
//!
//! A block takes its input by value, adds to it in place and frees tensors as early as possible: of the largest
//! activations, only the input, the one between the two convolutions and, if the number of channels changes, the output
//! exist at a time.
use super::config::VaeConfig;
use crate::model::layers::{Linear, attention};
use crate::model::weights::Weights;
use crate::ops::conv2d::{Conv2d, Input, Stride};
use crate::ops::group_norm::GroupNorm;
use crate::system::error::Result;
use candle_core::Tensor;

const NORM_EPS: f64 = 1e-6;

/// Weights and configuration that layers are loaded from.
pub struct LayerLoader<'a> {
    pub weights: &'a Weights,
    pub config: &'a VaeConfig,
}

impl LayerLoader<'_> {
    /// Of the `channels` of all levels, those of the first and the last; `VaeConfig::check` ensures that there is a level.
    pub fn ends(&self, channels: &[usize]) -> (usize, usize) {
        (channels.first().copied().unwrap_or_default(), channels.last().copied().unwrap_or_default())
    }

    pub fn conv(&self, name: &str, input: usize, output: usize, kernel: usize, stride: Stride) -> Result<Conv2d> {
        let weight = self.weights.get(&format!("{name}.weight"), (output, input, kernel, kernel))?;
        Ok(Conv2d::new(weight, self.weights.get(&format!("{name}.bias"), output)?, stride)?)
    }

    pub fn norm(&self, name: &str, channels: usize) -> Result<GroupNorm> {
        let weight = self.weights.get(&format!("{name}.weight"), channels)?;
        let bias = self.weights.get(&format!("{name}.bias"), channels)?;
        Ok(GroupNorm::new(weight, bias, self.config.norm_num_groups, NORM_EPS)?)
    }
}

/// Twice group norm, SiLU and convolution, with a residual connection.
struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    fn load(loader: &LayerLoader, name: &str, input: usize, output: usize) -> Result<Self> {
        Ok(Self {
            norm1: loader.norm(&format!("{name}.norm1"), input)?,
            conv1: loader.conv(&format!("{name}.conv1"), input, output, 3, Stride::One)?,
            norm2: loader.norm(&format!("{name}.norm2"), output)?,
            conv2: loader.conv(&format!("{name}.conv2"), output, output, 3, Stride::One)?,
            shortcut: (input != output)
                .then(|| loader.conv(&format!("{name}.conv_shortcut"), input, output, 1, Stride::One))
                .transpose()?,
        })
    }

    fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        let inner = self.conv1.forward_from(Input::NormSilu(&x, &self.norm1))?;
        if let Some(shortcut) = &self.shortcut {
            x = shortcut.forward(&x)?;
        }
        Ok(self.conv2.add_to(x, Input::NormSilu(&inner, &self.norm2))?)
    }
}

/// Single-head self-attention over all positions.
struct MidAttention {
    norm: GroupNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

impl MidAttention {
    fn load(loader: &LayerLoader, name: &str, channels: usize) -> Result<Self> {
        // Files from before diffusers 0.13 use other names and may store the projections as 1×1 convolutions.
        let old = loader.weights.contains(&format!("{name}.query.weight"));
        let projection = |new_name: &str, old_name: &str| {
            let name = format!("{name}.{}", if old { old_name } else { new_name });
            Linear::load_flat(loader.weights, &name, channels, channels)
        };
        Ok(Self {
            norm: loader.norm(&format!("{name}.group_norm"), channels)?,
            q: projection("to_q", "query")?,
            k: projection("to_k", "key")?,
            v: projection("to_v", "value")?,
            out: projection("to_out.0", "proj_attn")?,
        })
    }

    fn forward(&self, x: Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = x.dims4()?;
        let tokens =
            self.norm.forward(&x)?.reshape((batch, channels, height * width))?.transpose(1, 2)?.contiguous()?;
        let (q, k, v) = (self.q.forward(&tokens)?, self.k.forward(&tokens)?, self.v.forward(&tokens)?);
        let mixed = self.out.forward(&attention(&q, &k, &v)?)?;
        Ok((x + mixed.transpose(1, 2)?.reshape((batch, channels, height, width))?)?)
    }
}

pub struct MidBlock {
    first: ResnetBlock,
    attention: Option<MidAttention>,
    second: ResnetBlock,
}

impl MidBlock {
    pub fn load(loader: &LayerLoader, name: &str, channels: usize) -> Result<Self> {
        Ok(Self {
            first: ResnetBlock::load(loader, &format!("{name}.resnets.0"), channels, channels)?,
            attention: loader
                .config
                .mid_block_add_attention
                .then(|| MidAttention::load(loader, &format!("{name}.attentions.0"), channels))
                .transpose()?,
            second: ResnetBlock::load(loader, &format!("{name}.resnets.1"), channels, channels)?,
        })
    }

    pub fn forward(&self, x: Tensor) -> Result<Tensor> {
        let mut x = self.first.forward(x)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(x)?;
        }
        self.second.forward(x)
    }
}

/// A resolution level: residual blocks, then a convolution of stride 2 (encoder) or after upsampling (decoder).
pub struct Level {
    resnets: Vec<ResnetBlock>,
    pub resample: Option<Conv2d>,
}

impl Level {
    /// The levels of `list`, which make so many `channels`, in their order: each `count` residual blocks, and in all but the
    /// last the convolution `resample` behind them.
    pub fn load_all(
        loader: &LayerLoader,
        list: &str,
        channels: &[usize],
        count: usize,
        (resample, stride): (&str, Stride),
    ) -> Result<Vec<Self>> {
        let level = |(index, &output): (usize, &usize)| {
            let name = format!("{list}.{index}");
            let resnet = |number: usize| {
                let input = if number == 0 { channels[index.saturating_sub(1)] } else { output };
                ResnetBlock::load(loader, &format!("{name}.resnets.{number}"), input, output)
            };
            let resnets = (0..count).map(resnet).collect::<Result<_>>()?;
            let conv = || loader.conv(&format!("{name}.{resample}"), output, output, 3, stride);
            Ok(Self { resnets, resample: (index + 1 < channels.len()).then(conv).transpose()? })
        };
        channels.iter().enumerate().map(level).collect()
    }

    /// Through the residual blocks.
    pub fn residual(&self, x: Tensor) -> Result<Tensor> {
        self.resnets.iter().try_fold(x, |x, resnet| resnet.forward(x))
    }
}
