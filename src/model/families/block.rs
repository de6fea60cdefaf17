//! What a family's denoiser is made of.
use super::joint::{Conditioning, Embedded, JointInputs, Probe, Streams};
use crate::autograd::Variable;
use crate::model::projection::Projection;
use crate::model::text::TextEmbedding;
use candle_core::{Result as TensorResult, Tensor};

/// Into a family's tokens and out of them.
pub trait Embedding {
    /// Latents `[batch, channels, h, w]`, as the autoencoder makes them, to packed tokens; timestep `[batch]` (1000σ),
    /// best on the host; the text, of which equal tokens at the end may be computed once. `prompt`, the token embeddings of
    /// one prompt `[tokens, width]`, stands in for those of every text. `guidance_scale` is for a model that embeds it;
    /// without it such a model is told that of training.
    fn embed_prompt(
        &self,
        latents: &Tensor,
        timestep: &Tensor,
        text: &TextEmbedding,
        prompt: Option<&Variable>,
        guidance_scale: Option<f64>,
    ) -> TensorResult<Embedded>;

    /// [`Self::embed_prompt`] of the texts themselves, with the guidance scale of training.
    fn embed(&self, latents: &Tensor, timestep: &Tensor, text: &TextEmbedding) -> TensorResult<Embedded> {
        self.embed_prompt(latents, timestep, text, None, None)
    }

    /// Image tokens `[batch, tokens, width]`, which are `grid` rows and columns, to the velocity `[batch, channels, h, w]`
    /// in f32.
    fn finish(&self, image: &Variable, conditioning: &Conditioning, grid: (usize, usize)) -> TensorResult<Variable>;
}

/// What one block saves for the backward pass, in vectors of the model's width a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedActivations {
    /// For every image token.
    pub image: usize,
    /// For every text token.
    pub text: usize,
}

/// One block with joint attention, differentiable in its adapters and in the streams.
pub trait Block {
    /// The layers that an adapter can sit on, by their names within the block.
    fn projections(&mut self) -> Vec<(&'static str, &mut Projection)>;

    /// Queries and keys of the joint attention alone: all that segmentation needs of the expert block. `conditioning` is
    /// [`Embedded::conditioning`].
    fn probe(&self, streams: &Streams, conditioning: &Conditioning) -> TensorResult<Probe>;

    /// The block's output, and what its joint attention was computed from; `attend` returns what
    /// [`JointInputs::attend`] does, or something else in its place.
    fn forward_with(
        &self,
        streams: &Streams,
        conditioning: &Conditioning,
        attend: &mut dyn FnMut(&JointInputs) -> TensorResult<Variable>,
    ) -> TensorResult<(Streams, JointInputs)>;

    /// [`Self::forward_with`] the block's own joint attention.
    fn forward(&self, streams: &Streams, conditioning: &Conditioning) -> TensorResult<(Streams, JointInputs)> {
        self.forward_with(streams, conditioning, &mut JointInputs::attend)
    }

    /// Whether the model's output depends on `layer`.
    fn reaches_output(&self, _layer: &str) -> bool {
        true
    }

    /// Whether scores between the probe's image queries and text keys depend on `layer`, or, with `image_keys`, those
    /// between its image queries and all keys.
    fn reaches_probe(&self, layer: &str, image_keys: bool) -> bool;

    /// What a forward pass saves with the adapters that are on the block, by count of what its operations save.
    fn saved_activations(&self) -> SavedActivations;
}
