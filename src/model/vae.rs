//! The autoencoder between pictures and latents (diffusers: `AutoencoderKL`). No gradient passes it.
use super::files::{ModelFiles, Part};
use super::layers::{Linear, attention};
use super::sizes;
use super::weights::Weights;
use crate::device::upload;
use crate::error::{Error, Result};
use crate::ops::conv2d::{Conv2d, Stride};
use crate::ops::group_norm::GroupNorm;
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use std::path::Path;

const NORM_EPS: f64 = 1e-6;
/// A pixel of a level is 2 wide in that before: with more of them than this a picture would be no pixel.
const MOST_LEVELS: usize = 8;

/// Sizes from the autoencoder's `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct VaeConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub latent_channels: usize,
    /// One a resolution level; each level after the first halves height and width.
    pub block_out_channels: Vec<usize>,
    pub layers_per_block: usize,
    pub norm_num_groups: usize,
    pub scaling_factor: f64,
    #[serde(default)]
    pub shift_factor: Option<f64>,
    #[serde(default = "yes")]
    pub use_quant_conv: bool,
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
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

    /// Pixels a latent in height and in width.
    pub fn pixels_per_latent(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

/// Norm, SiLU, convolution, twice, and the input added.
struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    fn load(source: &Source, name: &str, input: usize, output: usize) -> Result<Self> {
        Ok(Self {
            norm1: source.norm(&format!("{name}.norm1"), input)?,
            conv1: source.conv(&format!("{name}.conv1"), input, output, 3, Stride::One)?,
            norm2: source.norm(&format!("{name}.norm2"), output)?,
            conv2: source.conv(&format!("{name}.conv2"), output, output, 3, Stride::One)?,
            shortcut: match input == output {
                true => None,
                false => Some(source.conv(&format!("{name}.conv_shortcut"), input, output, 1, Stride::One)?),
            },
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = self.conv1.forward(&self.norm1.forward_silu(x)?)?;
        let inner = self.conv2.forward(&self.norm2.forward_silu(&inner)?)?;
        match &self.shortcut {
            Some(shortcut) => Ok((inner + shortcut.forward(x)?)?),
            None => Ok((inner + x)?),
        }
    }
}

/// Self-attention over all positions with a single head.
struct MidAttention {
    norm: GroupNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

impl MidAttention {
    fn load(source: &Source, name: &str, channels: usize) -> Result<Self> {
        // Files from before diffusers 0.13 name the projections otherwise and may store them as 1×1 convolutions.
        let old = source.weights.contains(&format!("{name}.query.weight"));
        let projection = |new_name: &str, old_name: &str| {
            let name = format!("{name}.{}", if old { old_name } else { new_name });
            Linear::load_flat(source.weights, &name, channels, channels)
        };
        Ok(Self {
            norm: source.norm(&format!("{name}.group_norm"), channels)?,
            q: projection("to_q", "query")?,
            k: projection("to_k", "key")?,
            v: projection("to_v", "value")?,
            out: projection("to_out.0", "proj_attn")?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = x.dims4()?;
        let tokens = self.norm.forward(x)?.reshape((batch, channels, height * width))?.transpose(1, 2)?.contiguous()?;
        let (q, k, v) = (self.q.forward(&tokens)?, self.k.forward(&tokens)?, self.v.forward(&tokens)?);
        let mixed = self.out.forward(&attention(&q, &k, &v)?)?;
        Ok((x + mixed.transpose(1, 2)?.reshape((batch, channels, height, width))?)?)
    }
}

struct MidBlock {
    first: ResnetBlock,
    attention: Option<MidAttention>,
    second: ResnetBlock,
}

impl MidBlock {
    fn load(source: &Source, name: &str, channels: usize) -> Result<Self> {
        Ok(Self {
            first: ResnetBlock::load(source, &format!("{name}.resnets.0"), channels, channels)?,
            attention: match source.config.mid_block_add_attention {
                true => Some(MidAttention::load(source, &format!("{name}.attentions.0"), channels)?),
                false => None,
            },
            second: ResnetBlock::load(source, &format!("{name}.resnets.1"), channels, channels)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.first.forward(x)?;
        let x = match &self.attention {
            Some(attention) => attention.forward(&x)?,
            None => x,
        };
        self.second.forward(&x)
    }
}

/// A resolution level: residual blocks, then a convolution that halves (encoder) or after doubling (decoder).
struct Level {
    resnets: Vec<ResnetBlock>,
    resample: Option<Conv2d>,
}

struct Encoder {
    conv_in: Conv2d,
    levels: Vec<Level>,
    mid: MidBlock,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    quant: Option<Conv2d>,
}

impl Encoder {
    fn load(source: &Source) -> Result<Self> {
        let config = source.config;
        let channels = &config.block_out_channels;
        let (first, last) = source.ends();
        let mut levels = Vec::new();
        let mut input = first;
        for (index, &output) in channels.iter().enumerate() {
            let name = format!("encoder.down_blocks.{index}");
            let resnet = |layer: usize| {
                let from = if layer == 0 { input } else { output };
                ResnetBlock::load(source, &format!("{name}.resnets.{layer}"), from, output)
            };
            let down = format!("{name}.downsamplers.0.conv");
            levels.push(Level {
                resnets: (0..config.layers_per_block).map(resnet).collect::<Result<_>>()?,
                resample: match index + 1 < channels.len() {
                    true => Some(source.conv(&down, output, output, 3, Stride::Two)?),
                    false => None,
                },
            });
            input = output;
        }
        let moments = 2 * config.latent_channels;
        Ok(Self {
            conv_in: source.conv("encoder.conv_in", config.in_channels, first, 3, Stride::One)?,
            levels,
            mid: MidBlock::load(source, "encoder.mid_block", last)?,
            norm_out: source.norm("encoder.conv_norm_out", last)?,
            conv_out: source.conv("encoder.conv_out", last, moments, 3, Stride::One)?,
            quant: match config.use_quant_conv {
                true => Some(source.conv("quant_conv", moments, moments, 1, Stride::One)?),
                false => None,
            },
        })
    }

    /// Mean and log-variance of the posterior, one after the other along the channels.
    fn forward(&self, image: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(image)?;
        for level in &self.levels {
            for resnet in &level.resnets {
                x = resnet.forward(&x)?;
            }
            if let Some(down) = &level.resample {
                x = down.forward(&x)?;
            }
        }
        x = self.norm_out.forward_silu(&self.mid.forward(&x)?)?;
        x = self.conv_out.forward(&x)?;
        Ok(match &self.quant {
            Some(quant) => quant.forward(&x)?,
            None => x,
        })
    }
}

struct Decoder {
    quant: Option<Conv2d>,
    conv_in: Conv2d,
    mid: MidBlock,
    levels: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn load(source: &Source) -> Result<Self> {
        let config = source.config;
        let latent = config.latent_channels;
        let (first, last) = source.ends();
        let mut levels = Vec::new();
        let mut input = last;
        let count = config.block_out_channels.len();
        for (index, &output) in config.block_out_channels.iter().rev().enumerate() {
            let name = format!("decoder.up_blocks.{index}");
            let resnet = |layer: usize| {
                let from = if layer == 0 { input } else { output };
                ResnetBlock::load(source, &format!("{name}.resnets.{layer}"), from, output)
            };
            let up = format!("{name}.upsamplers.0.conv");
            levels.push(Level {
                resnets: (0..=config.layers_per_block).map(resnet).collect::<Result<_>>()?,
                resample: match index + 1 < count {
                    true => Some(source.conv(&up, output, output, 3, Stride::One)?),
                    false => None,
                },
            });
            input = output;
        }
        Ok(Self {
            quant: match config.use_post_quant_conv {
                true => Some(source.conv("post_quant_conv", latent, latent, 1, Stride::One)?),
                false => None,
            },
            conv_in: source.conv("decoder.conv_in", latent, last, 3, Stride::One)?,
            mid: MidBlock::load(source, "decoder.mid_block", last)?,
            levels,
            norm_out: source.norm("decoder.conv_norm_out", first)?,
            conv_out: source.conv("decoder.conv_out", first, config.out_channels, 3, Stride::One)?,
        })
    }

    fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let x = match &self.quant {
            Some(quant) => quant.forward(latents)?,
            None => latents.clone(),
        };
        let mut x = self.mid.forward(&self.conv_in.forward(&x)?)?;
        for level in &self.levels {
            for resnet in &level.resnets {
                x = resnet.forward(&x)?;
            }
            if let Some(up) = &level.resample {
                let (_, _, height, width) = x.dims4()?;
                x = up.forward(&x.upsample_nearest2d(2 * height, 2 * width)?)?;
            }
        }
        Ok(self.conv_out.forward(&self.norm_out.forward_silu(&x)?)?)
    }
}

/// Where the tensors come from, and the sizes they must have.
struct Source<'a> {
    weights: &'a Weights,
    config: &'a VaeConfig,
}

impl Source<'_> {
    /// Channels of the first and of the last level; `VaeConfig::check` saw that there is one.
    fn ends(&self) -> (usize, usize) {
        let channels = &self.config.block_out_channels;
        (channels.first().copied().unwrap_or_default(), channels.last().copied().unwrap_or_default())
    }

    fn conv(&self, name: &str, input: usize, output: usize, kernel: usize, stride: Stride) -> Result<Conv2d> {
        let weight = self.weights.get(&format!("{name}.weight"), (output, input, kernel, kernel))?;
        Ok(Conv2d::new(weight, self.weights.get(&format!("{name}.bias"), output)?, stride)?)
    }

    fn norm(&self, name: &str, channels: usize) -> Result<GroupNorm> {
        let weight = self.weights.get(&format!("{name}.weight"), channels)?;
        let bias = self.weights.get(&format!("{name}.bias"), channels)?;
        Ok(GroupNorm::new(weight, bias, self.config.norm_num_groups, NORM_EPS)?)
    }
}

/// The autoencoder; it computes in f32 on every device, as its decoder leaves the range of f16.
pub struct Vae {
    /// Absent where only the sizes are there.
    networks: Option<(Encoder, Decoder)>,
    config: VaeConfig,
}

impl Vae {
    pub fn load(files: &ModelFiles, device: &Device) -> Result<Self> {
        let config = VaeConfig::open(files)?;
        let weights = files.weights(Part::Vae, DType::F32, device)?;
        let source = Source { weights: &weights, config: &config };
        let networks = Some((Encoder::load(&source)?, Decoder::load(&source)?));
        weights.finish()?;
        Ok(Self { networks, config })
    }

    /// The sizes alone: [`Self::encode`] and [`Self::decode`] fail.
    pub fn without_weights(files: &ModelFiles) -> Result<Self> {
        Ok(Self { networks: None, config: VaeConfig::open(files)? })
    }

    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Latents of images: the posterior's mean, shifted and scaled as the MM-DiT wants it.
    ///
    /// `[batch, 3, height, width]` in [−1, 1] to `[batch, latent, height/8, width/8]`, f32. Height and width must be
    /// multiples of [`VaeConfig::pixels_per_latent`].
    pub fn encode(&self, images: &Tensor) -> Result<Tensor> {
        let (_, channels, height, width) = images.dims4()?;
        let multiple = self.config.pixels_per_latent();
        if channels != self.config.in_channels || height % multiple != 0 || width % multiple != 0 || height * width == 0
        {
            return Err(Error::Failed(format!(
                "the autoencoder takes images of {} channels with sides that are multiples of {multiple}, \
                 not {channels} of {height}×{width}",
                self.config.in_channels
            )));
        }
        let mean =
            self.networks()?.0.forward(&images.to_dtype(DType::F32)?)?.narrow(1, 0, self.config.latent_channels)?;
        Ok(mean.affine(1.0, -self.shift())?.affine(self.config.scaling_factor, 0.0)?)
    }

    /// Images of latents: the reverse of [`Self::encode`], without a limit to [−1, 1].
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let latents = latents.to_dtype(DType::F32)?;
        self.networks()?.1.forward(&((latents / self.config.scaling_factor)? + self.shift())?)
    }

    /// Bytes that encoding one square image of `side` pixels takes for a moment: a residual block of the first level holds
    /// four tensors of its input's size.
    pub fn encoding_bytes(&self, side: usize) -> u64 {
        let channels = self.config.block_out_channels.first().copied().unwrap_or_default();
        if self.networks.is_some() { 4 * 4 * (channels * side * side) as u64 } else { 0 }
    }

    fn networks(&self) -> Result<&(Encoder, Decoder)> {
        self.networks.as_ref().ok_or_else(|| Error::Failed("the autoencoder is not loaded".into()))
    }

    fn shift(&self) -> f64 {
        self.config.shift_factor.unwrap_or(0.0)
    }
}

/// A square of RGB pixels, `[side, side, 3]`, as the autoencoder takes it: `[3, side, side]` in [−1, 1].
pub fn from_rgb8(pixels: &[u8], side: usize, device: &Device) -> candle_core::Result<Tensor> {
    let pixels = upload(pixels, (side, side, 3), device)?;
    pixels.permute((2, 0, 1))?.to_dtype(DType::F32)?.affine(2.0 / 255.0, -1.0)
}
