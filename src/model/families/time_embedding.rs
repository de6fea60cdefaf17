//! The embedding of numbers and of the pooled text (diffusers' `CombinedTimestepTextProjEmbeddings` and its like).
use crate::model::projection::{LoadProjection, Projection};
use crate::model::weights::Weights;
use crate::ops::device::upload;
use crate::system::error::Result;
use candle_core::{DType, Device, Result as TensorResult, Tensor};

/// Sinusoidal features of a number.
pub(super) const FEATURES: usize = 256;

/// Two layers with a SiLU between (diffusers' `TimestepEmbedding`, `PixArtAlphaTextProjection`).
pub(super) struct EmbeddingLayers([Projection; 2]);

impl EmbeddingLayers {
    /// Takes `NAME.linear_1` and `linear_2`, with biases or without.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub(super) fn load(
        weights: &Weights,
        name: &str,
        inner: usize,
        width: usize,
        load: LoadProjection,
    ) -> Result<Self> {
        Ok(Self([
            load(weights, &format!("{name}.linear_1"), inner, width)?,
            load(weights, &format!("{name}.linear_2"), width, width)?,
        ]))
    }

    /// `[batch, inner]` to `[batch, width]`.
    pub(super) fn forward(&self, x: Tensor) -> TensorResult<Tensor> {
        let [first, second] = &self.0;
        let hidden = first.forward(&x.into())?.tensor().silu()?;
        Ok(second.forward(&hidden.into())?.into_tensor())
    }
}

/// Sinusoidal features `[batch, 256]` of numbers `[batch]`, cosines first (diffusers' `Timesteps` with
/// `flip_sin_to_cos=True, downscale_freq_shift=0`).
pub(super) fn features(numbers: &Tensor, device: &Device) -> TensorResult<Tensor> {
    let half = FEATURES / 2;
    let frequency: Vec<f32> = (0..half).map(|i| (-(10_000f32.ln()) * i as f32 / half as f32).exp()).collect();
    let numbers: Vec<f32> = numbers.to_dtype(DType::F32)?.to_vec1()?;
    let mut features = Vec::with_capacity(numbers.len() * FEATURES);
    for number in &numbers {
        features.extend(frequency.iter().map(|f| (number * f).cos()));
        features.extend(frequency.iter().map(|f| (number * f).sin()));
    }
    upload(features, (numbers.len(), FEATURES), device)
}
