//! Into FLUX.1's tokens and out of them: packed latents, places, time, guidance, text; the final norm and projection.
use super::config::FluxConfig;
use super::pipeline::{PACKED_SIDE, PIPELINE};
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
use crate::ops::RotaryTable;
use crate::system::error::Result;
use candle_core::{DType, Device, Result as TensorResult, Tensor};

/// The guidance scale that dev is told in training (`--guidance_scale` of diffusers' `train_dreambooth_lora_flux.py`).
const TRAINING_GUIDANCE: f64 = 3.5;

/// Times and guidance scales are given to the sinusoidal embedding times this (`FluxTransformer2DModel.forward`).
const EMBEDDED_UNIT: f64 = 1000.0;

/// Base of the angles of rotary positions (`FluxPosEmbed`).
const THETA: f64 = 10_000.0;

/// Weights of everything around the blocks.
pub struct FluxEmbedding {
    x_embedder: Projection,
    context_embedder: Projection,
    time: EmbeddingLayers,
    /// In dev alone.
    guidance: Option<EmbeddingLayers>,
    pooled: EmbeddingLayers,
    output: OutputLayer,
    axes: [usize; 3],
    dtype: DType,
}

impl FluxEmbedding {
    /// Takes the weights around the blocks from `weights`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(weights: &Weights, config: &FluxConfig, dtype: DType) -> Result<Self> {
        let (width, channels) = (config.width(), config.in_channels);
        let layers = |name: &str, inner: usize| {
            EmbeddingLayers::load(weights, &format!("time_text_embed.{name}"), inner, width, Projection::load_dense)
        };
        let guidance = || layers("guidance_embedder", FEATURES);
        Ok(Self {
            x_embedder: Projection::load_dense(weights, "x_embedder", channels, width)?,
            context_embedder: Projection::load_dense(weights, "context_embedder", config.joint_attention_dim, width)?,
            time: layers("timestep_embedder", FEATURES)?,
            guidance: config.guidance_embeds.then(guidance).transpose()?,
            pooled: layers("text_embedder", config.pooled_projection_dim)?,
            output: OutputLayer::load(weights, width, channels, Projection::load_dense)?,
            axes: config.axes_dims_rope,
            dtype,
        })
    }
}

impl families::Embedding for FluxEmbedding {
    fn embed_prompt(
        &self,
        latents: &Tensor,
        timestep: &Tensor,
        text: &TextEmbedding,
        prompt: Option<&Variable>,
        guidance_scale: Option<f64>,
    ) -> TensorResult<Embedded> {
        let (packed, grid) = patches::cut(&latents.to_dtype(self.dtype)?, PACKED_SIDE)?;
        let ((batch, ..), device) = (packed.dims3()?, latents.device());
        let embedded = |layers: &EmbeddingLayers, numbers: &Tensor| {
            layers.forward(features(numbers, device)?.to_dtype(self.dtype)?)
        };
        let mut vector = embedded(&self.time, timestep)?;
        if let Some(layers) = &self.guidance {
            let told = guidance_scale.unwrap_or(TRAINING_GUIDANCE) * EMBEDDED_UNIT;
            vector = (vector + embedded(layers, &Tensor::full(told as f32, batch, &Device::Cpu)?)?)?;
        }
        let pooled = self.pooled.forward(text.pooled.to_dtype(self.dtype)?)?;
        let context = match prompt {
            Some(tokens) => tokens.broadcast_left(batch)?,
            None => text.context.clone().into(),
        };
        Ok(Embedded {
            streams: Streams {
                image: self.x_embedder.forward(&packed.into())?,
                text: self.context_embedder.forward(&context.to_dtype(self.dtype)?)?,
                last_text_count: 1,
            },
            conditioning: Conditioning {
                rotary: Some(RotaryTable::of_grid(grid, self.axes, THETA, device)?),
                words: PIPELINE.words,
                ..Conditioning::of((vector + pooled)?.silu()?)
            },
            grid,
        })
    }

    fn finish(&self, image: &Variable, conditioning: &Conditioning, grid: (usize, usize)) -> TensorResult<Variable> {
        patches::put_together(&self.output.forward(image, conditioning)?, grid, PACKED_SIDE)
    }
}
