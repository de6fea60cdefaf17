//! Into FLUX.2's tokens and out of them: packed latents, places, time, text, the modulations that all blocks share; the
//! final norm and projection.
use super::config::Flux2Config;
use super::pipeline::PIPELINE;
use crate::autograd::Variable;
use crate::model::families::block as families;
use crate::model::families::config::FamilyConfig;
use crate::model::families::joint::{Conditioning, Embedded, Streams};
use crate::model::families::output_layer::OutputLayer;
use crate::model::families::patches;
use crate::model::families::stream_layers::modulation;
use crate::model::families::time_embedding::{EmbeddingLayers, FEATURES, features};
use crate::model::projection::Projection;
use crate::model::text::TextEmbedding;
use crate::model::weights::Weights;
use crate::ops::RotaryTable;
use crate::system::error::Result;
use candle_core::{DType, Result as TensorResult, Tensor};

/// What a modulation is shared by, and its place in [`Conditioning::shared`].
pub(super) enum SharedModulation {
    /// The image stream of double-stream blocks.
    Image = 0,
    /// Their text stream.
    Text = 1,
    /// Single-stream blocks.
    Single = 2,
}

/// Weights of everything around the blocks.
pub struct Flux2Embedding {
    x_embedder: Projection,
    context_embedder: Projection,
    time: EmbeddingLayers,
    /// In the order of [`SharedModulation`].
    modulations: [Projection; 3],
    output: OutputLayer,
    axes: [usize; 4],
    theta: f64,
    dtype: DType,
}

impl Flux2Embedding {
    /// Takes the weights around the blocks from `weights`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(weights: &Weights, config: &Flux2Config, dtype: DType) -> Result<Self> {
        let (width, channels) = (config.width(), config.in_channels);
        let load = Projection::load_dense_without_bias;
        let modulation = |name: &str, parts: usize| load(weights, &format!("{name}.linear"), width, parts * width);
        Ok(Self {
            x_embedder: load(weights, "x_embedder", channels, width)?,
            context_embedder: load(weights, "context_embedder", config.joint_attention_dim, width)?,
            time: EmbeddingLayers::load(weights, "time_guidance_embed.timestep_embedder", FEATURES, width, load)?,
            modulations: [
                modulation("double_stream_modulation_img", 6)?,
                modulation("double_stream_modulation_txt", 6)?,
                modulation("single_stream_modulation", 3)?,
            ],
            output: OutputLayer::load(weights, width, channels, load)?,
            axes: config.axes_dims_rope,
            theta: config.rope_theta,
            dtype,
        })
    }

    /// Where the tokens of the joint sequence are, image first (`Flux2KleinPipeline._prepare_latent_ids` and
    /// `_prepare_text_ids`).
    fn places(&self, (rows, columns): (usize, usize), text: usize, x: &Tensor) -> TensorResult<RotaryTable> {
        let of_image = (0..rows * columns).map(|token| [0, token / columns, token % columns, 0]);
        let of_text = (0..text).map(|token| [0, 0, 0, token]);
        RotaryTable::of_places(of_image.chain(of_text), self.axes, self.theta, x.device())
    }
}

impl families::Embedding for Flux2Embedding {
    fn embed_prompt(
        &self,
        latents: &Tensor,
        timestep: &Tensor,
        text: &TextEmbedding,
        prompt: Option<&Variable>,
        _: Option<f64>,
    ) -> TensorResult<Embedded> {
        let (packed, grid) = patches::cut(&latents.to_dtype(self.dtype)?, 1)?;
        let (batch, ..) = packed.dims3()?;
        let time = features(timestep, latents.device())?.to_dtype(self.dtype)?;
        let context = match prompt {
            Some(tokens) => tokens.broadcast_left(batch)?,
            None => text.context.clone().into(),
        };
        let (_, text_tokens, _) = context.dims3()?;
        let rotary = Some(self.places(grid, text_tokens, latents)?);
        let vector = self.time.forward(time)?.silu()?;
        let mut conditioning = Conditioning { rotary, words: PIPELINE.words, ..Conditioning::of(vector) };
        for layer in &self.modulations {
            let parts = modulation(layer, &conditioning)?.into_iter().map(Variable::into_tensor).collect();
            conditioning.shared.push(parts);
        }
        Ok(Embedded {
            streams: Streams {
                image: self.x_embedder.forward(&packed.into())?,
                text: self.context_embedder.forward(&context.to_dtype(self.dtype)?)?,
                last_text_count: 1,
            },
            conditioning,
            grid,
        })
    }

    fn finish(&self, image: &Variable, conditioning: &Conditioning, grid: (usize, usize)) -> TensorResult<Variable> {
        patches::put_together(&self.output.forward(image, conditioning)?, grid, 1)
    }
}
