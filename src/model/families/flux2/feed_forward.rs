//! A stream's MLP (diffusers' `Flux2FeedForward`).
use crate::autograd::Variable;
use crate::model::projection::Projection;
use crate::model::weights::Weights;
use crate::ops;
use crate::system::error::Result;
use candle_core::Result as TensorResult;

/// Its two layers, with SwiGLU between.
pub(super) struct SwiGluLayers {
    pub(super) linear_in: Projection,
    pub(super) linear_out: Projection,
}

impl SwiGluLayers {
    /// Takes `NAME.linear_in` and `NAME.linear_out`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub(super) fn load(weights: &Weights, name: &str, width: usize, hidden: usize) -> Result<Self> {
        let load = Projection::load_without_bias;
        Ok(Self {
            linear_in: load(weights, &format!("{name}.linear_in"), width, 2 * hidden)?,
            linear_out: load(weights, &format!("{name}.linear_out"), hidden, width)?,
        })
    }

    /// `x` plus what the layers make of it, normed and modulated.
    pub(super) fn forward(&self, x: &Variable, [shift, scale, gate]: [&Variable; 3]) -> TensorResult<Variable> {
        let normed = ops::layer_norm_modulate(x, shift, scale)?;
        let hidden = ops::swiglu(&self.linear_in.forward(&normed)?)?;
        ops::gated_residual(x, &self.linear_out.forward(&hidden)?, gate)
    }

    /// Saved activations: the norm's input, SwiGLU's, and those of layers with an adapter.
    pub(super) fn saved(&self) -> usize {
        let ((hidden, width), (_, doubled)) = (self.linear_out.sizes(), self.linear_in.sizes());
        let normed = usize::from(self.linear_in.is_adapted());
        1 + normed + doubled / width + usize::from(self.linear_out.is_adapted()) * (hidden / width)
    }
}
