//! Into the MM-DiT's tokens and out of them: patches, positions, time, text; the final norm and projection.
use super::config::MmDitConfig;
use super::pipeline::PIPELINE;
use crate::autograd::Variable;
use crate::model::families::block as families;
use crate::model::families::config::FamilyConfig;
use crate::model::families::joint::{Conditioning, Embedded, Streams};
use crate::model::families::output_layer::OutputLayer;
use crate::model::families::patches;
use crate::model::families::time_embedding::{EmbeddingLayers, FEATURES, features};
use crate::model::projection::Projection;
use crate::model::text::TextEmbedding;
use crate::model::weights::Weights;
use crate::system::error::Result;
use candle_core::{DType, Result as TensorResult, Tensor, bail};

/// Weights of everything around the blocks.
pub struct MmDitEmbedding {
    patch_size: usize,
    patch: Projection,
    /// `[max, max, width]`
    positions: Tensor,
    context: Projection,
    time: EmbeddingLayers,
    pooled: EmbeddingLayers,
    output: OutputLayer,
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
        let layers = |name: &str, inner: usize| {
            EmbeddingLayers::load(weights, &format!("time_text_embed.{name}"), inner, width, Projection::load_dense)
        };
        let kernel = weights.get("pos_embed.proj.weight", (width, channels, patch, patch))?;
        Ok(Self {
            patch_size: patch,
            patch: Projection::new(
                kernel.reshape((width, channels * patch * patch))?,
                Some(weights.get("pos_embed.proj.bias", width)?),
            ),
            positions: weights
                .get("pos_embed.pos_embed", (1, maximum * maximum, width))?
                .reshape((maximum, maximum, width))?,
            context: Projection::load_dense(weights, "context_embedder", config.joint_attention_dim, width)?,
            time: layers("timestep_embedder", FEATURES)?,
            pooled: layers("text_embedder", config.pooled_projection_dim)?,
            output: OutputLayer::load(weights, width, patch * patch * config.out_channels(), Projection::load_dense)?,
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
        _: Option<f64>,
    ) -> TensorResult<Embedded> {
        let (batch, _, height, width) = latents.dims4()?;
        let (patches, (rows, columns)) = patches::cut(&latents.to_dtype(self.dtype)?, self.patch_size)?;
        let (p, maximum) = (self.patch_size, self.positions.dim(0)?);
        if rows > maximum || columns > maximum {
            bail!("latents of {height}×{width} are larger than the model's {maximum}×{maximum} positions of {p}×{p}");
        }
        let positions = self
            .positions
            .narrow(0, (maximum - rows) / 2, rows)?
            .narrow(1, (maximum - columns) / 2, columns)?
            .reshape((rows * columns, ()))?
            .to_dtype(self.dtype)?;
        let image = self.patch.forward(&patches.into())?.tensor().broadcast_add(&positions)?;
        let time = self.time.forward(features(timestep, latents.device())?.to_dtype(self.dtype)?)?;
        let pooled = self.pooled.forward(text.pooled.to_dtype(self.dtype)?)?;
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
            conditioning: Conditioning { words: PIPELINE.words, ..Conditioning::of((time + pooled)?.silu()?) },
            grid: (rows, columns),
        })
    }

    fn finish(
        &self,
        image: &Variable,
        conditioning: &Conditioning,
        (rows, columns): (usize, usize),
    ) -> TensorResult<Variable> {
        let ((batch, ..), p) = (image.dims3()?, self.patch_size);
        self.output
            .forward(image, conditioning)?
            .reshape(&[batch, rows, columns, p, p, self.out_channels][..])?
            .permute(&[0, 5, 1, 3, 2, 4])?
            .reshape((batch, self.out_channels, rows * p, columns * p))
    }
}
