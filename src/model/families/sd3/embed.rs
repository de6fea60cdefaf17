//! Into the MM-DiT's tokens and out of them: patches, positions, time, text; the final norm and projection.
use super::config::MmDitConfig;
use crate::autograd::Variable;
use crate::model::families::block as families;
use crate::model::families::joint::{Embedded, Streams};
use crate::model::projection::Projection;
use crate::model::text::TextEmbedding;
use crate::model::weights::Weights;
use crate::ops;
use crate::ops::device::upload;
use crate::system::error::Result;
use candle_core::{DType, Device, Result as TensorResult, Tensor, bail};

/// Features of the sinusoidal time embedding (diffusers' `CombinedTimestepTextProjEmbeddings`).
const TIME_FEATURES: usize = 256;

/// Weights of everything around the blocks.
pub struct MmDitEmbedding {
    patch_size: usize,
    patch: Projection,
    /// `[max, max, width]`
    positions: Tensor,
    context: Projection,
    time: [Projection; 2],
    pooled: [Projection; 2],
    norm_out: Projection,
    out: Projection,
    out_channels: usize,
    dtype: DType,
}

impl MmDitEmbedding {
    /// Takes the weights around the blocks from `weights`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(weights: &Weights, config: &MmDitConfig, dtype: DType) -> Result<Self> {
        let (width, patch, channels) = (config.width(), config.patch_size, config.in_channels);
        let maximum = config.pos_embed_max_size;
        let kernel = weights.get("pos_embed.proj.weight", (width, channels, patch, patch))?;
        let pair = |name: &str, inner: usize| -> Result<[Projection; 2]> {
            let name = format!("time_text_embed.{name}");
            Ok([
                Projection::load(weights, &format!("{name}.linear_1"), inner, width)?,
                Projection::load(weights, &format!("{name}.linear_2"), width, width)?,
            ])
        };
        Ok(Self {
            patch_size: patch,
            patch: Projection::new(
                kernel.reshape((width, channels * patch * patch))?,
                Some(weights.get("pos_embed.proj.bias", width)?),
            ),
            positions: weights
                .get("pos_embed.pos_embed", (1, maximum * maximum, width))?
                .reshape((maximum, maximum, width))?,
            context: Projection::load(weights, "context_embedder", config.joint_attention_dim, width)?,
            time: pair("timestep_embedder", TIME_FEATURES)?,
            pooled: pair("text_embedder", config.pooled_projection_dim)?,
            norm_out: Projection::load(weights, "norm_out.linear", width, 2 * width)?,
            out: Projection::load(weights, "proj_out", width, patch * patch * config.out_channels())?,
            out_channels: config.out_channels(),
            dtype,
        })
    }
}

impl families::Embedding for MmDitEmbedding {
    /// Of the text's zeros behind CLIP's tokens, where there is no T5, one is computed and counts for all.
    fn embed_prompt(
        &self,
        latents: &Tensor,
        timestep: &Tensor,
        text: &TextEmbedding,
        prompt: Option<&Variable>,
    ) -> TensorResult<Embedded> {
        let (batch, channels, height, width) = latents.dims4()?;
        let p = self.patch_size;
        let maximum = self.positions.dim(0)?;
        let (rows, columns) = (height / p, width / p);
        if rows * p != height || columns * p != width || rows == 0 || columns == 0 {
            bail!("latents of {height}×{width} do not divide into patches of {p}×{p}");
        }
        if rows > maximum || columns > maximum {
            bail!("latents of {height}×{width} are larger than the model's {maximum}×{maximum} positions of {p}×{p}");
        }
        let patches = latents
            .to_dtype(self.dtype)?
            .reshape(&[batch, channels, rows, p, columns, p][..])?
            .permute([0, 2, 4, 1, 3, 5].as_slice())?
            .reshape((batch, rows * columns, channels * p * p))?;
        let positions = self
            .positions
            .narrow(0, (maximum - rows) / 2, rows)?
            .narrow(1, (maximum - columns) / 2, columns)?
            .reshape((rows * columns, ()))?
            .to_dtype(self.dtype)?;
        let image = self.patch.forward(&patches.into())?.tensor().broadcast_add(&positions)?;
        let mlp = |[first, second]: &[Projection; 2], x: Tensor| {
            let hidden = first.forward(&x.into())?.tensor().silu()?;
            TensorResult::Ok(second.forward(&hidden.into())?.into_tensor())
        };
        let time = mlp(&self.time, time_features(timestep, latents.device())?.to_dtype(self.dtype)?)?;
        let pooled = mlp(&self.pooled, text.pooled.to_dtype(self.dtype)?)?;
        let (context, last_text_count) = match prompt {
            Some(tokens) => (tokens.broadcast_left(batch)?, 1),
            None => {
                let count = text.zeros.max(1);
                (text.context.narrow(1, 0, text.context.dim(1)? + 1 - count)?.into(), count)
            }
        };
        let context = context.to_dtype(self.dtype)?;
        Ok(Embedded {
            streams: Streams { image: image.into(), text: self.context.forward(&context)?, last_text_count },
            conditioning: (time + pooled)?.silu()?,
            grid: (rows, columns),
        })
    }

    fn finish(
        &self,
        image: &Variable,
        conditioning: &Tensor,
        (rows, columns): (usize, usize),
    ) -> TensorResult<Variable> {
        // diffusers' AdaLayerNormContinuous has scale before shift.
        let modulation = self.norm_out.forward(&conditioning.clone().into())?.tensor().chunk(2, 1)?;
        let (scale, shift) = (modulation[0].clone().into(), modulation[1].clone().into());
        let normed = ops::layer_norm_modulate(image, &shift, &scale)?;
        let ((batch, ..), p) = (image.dims3()?, self.patch_size);
        self.out
            .forward(&normed)?
            .to_dtype(DType::F32)?
            .reshape(&[batch, rows, columns, p, p, self.out_channels][..])?
            .permute(&[0, 5, 1, 3, 2, 4])?
            .reshape((batch, self.out_channels, rows * p, columns * p))
    }
}

/// Sinusoidal features `[batch, 256]` of time steps `[batch]`, cosines first (diffusers' `Timesteps` with
/// `flip_sin_to_cos=True, downscale_freq_shift=0`).
fn time_features(timestep: &Tensor, device: &Device) -> TensorResult<Tensor> {
    let half = TIME_FEATURES / 2;
    let frequency: Vec<f32> = (0..half).map(|i| (-(10_000f32.ln()) * i as f32 / half as f32).exp()).collect();
    let steps: Vec<f32> = timestep.to_dtype(DType::F32)?.to_vec1()?;
    let mut features = Vec::with_capacity(steps.len() * TIME_FEATURES);
    for step in &steps {
        features.extend(frequency.iter().map(|f| (step * f).cos()));
        features.extend(frequency.iter().map(|f| (step * f).sin()));
    }
    upload(features, (steps.len(), TIME_FEATURES), device)
}
