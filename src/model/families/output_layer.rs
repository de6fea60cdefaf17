//! From the last block's image tokens to the values of their patches.
use super::joint::Conditioning;
use crate::autograd::Variable;
use crate::model::projection::{LoadProjection, Projection};
use crate::model::weights::Weights;
use crate::ops;
use crate::system::error::Result;
use candle_core::{DType, Result as TensorResult};

/// Norm, modulated by the conditioning (diffusers' `AdaLayerNormContinuous`), and projection.
pub(super) struct OutputLayer {
    norm_out: Projection,
    proj_out: Projection,
}

impl OutputLayer {
    /// Takes `norm_out` and `proj_out`, which makes `outer` values of a token, from `weights`, with biases or without.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub(super) fn load(weights: &Weights, width: usize, outer: usize, load: LoadProjection) -> Result<Self> {
        Ok(Self {
            norm_out: load(weights, "norm_out.linear", width, 2 * width)?,
            proj_out: load(weights, "proj_out", width, outer)?,
        })
    }

    /// Image tokens `[batch, tokens, width]` as `[batch, tokens, outer]` in f32.
    pub(super) fn forward(&self, image: &Variable, conditioning: &Conditioning) -> TensorResult<Variable> {
        // Scale comes before shift.
        let modulation = self.norm_out.forward(&conditioning.vector.clone().into())?.tensor().chunk(2, 1)?;
        let (scale, shift) = (modulation[0].clone().into(), modulation[1].clone().into());
        let normed = ops::layer_norm_modulate(image, &shift, &scale)?;
        self.proj_out.forward(&normed)?.to_dtype(DType::F32)
    }
}
