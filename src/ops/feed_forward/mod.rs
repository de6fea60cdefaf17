//! The second half of a block's stream in one node: norm, modulation, MLP, gate and residual.
//!
//! Apart, these are five nodes, whose results and gradients go through memory each; here a block of rows goes through
//! them all, and the backward pass needs what goes into the GELU alone.
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reference;

use super::backend::{Backend, Variable, apply};
use super::frozen_weight::FrozenWeight;
use super::linear::FrozenLayer;
use candle_core::{DType, Result, Tensor};

/// Modulation of a block's MLP (AdaLN), each `[batch, width]`.
#[derive(Clone, Copy)]
pub struct Modulation<'a> {
    /// Added after the norm.
    pub shift: &'a Tensor,
    /// The normed values are multiplied by one plus this.
    pub scale: &'a Tensor,
    /// Factor of the MLP's output.
    pub gate: &'a Tensor,
}

/// `x + gate·down(gelu(up(layer_norm(x)·(1 + scale) + shift)))` with frozen `up` and `down` (the MLP of diffusers'
/// `JointTransformerBlock`): x `[batch, tokens, width]`.
///
/// # Errors
/// Shapes that do not fit, or a type that [`has_kernels`] does not have.
pub fn feed_forward(x: &Variable, modulation: Modulation, up: FrozenLayer, down: FrozenLayer) -> Result<Variable> {
    let Modulation { shift, scale, gate } = modulation;
    let op = FeedForward { shift: shift.clone(), scale: scale.clone(), gate: gate.clone(), up, down };
    apply(op, &[x])
}

/// Whether [`feed_forward`] takes tensors like `x`: in other types its parts run one by one.
pub fn has_kernels(x: &Tensor) -> bool {
    Backend::of(std::slice::from_ref(x)) != Backend::Reference
}

/// [`has_kernels`] of what is multiplied with `weight`: f32 on the CPU, and on a GPU the type of dense weights.
pub fn has_kernels_for(weight: &FrozenWeight) -> bool {
    weight.device().is_cpu() || Backend::of_type(&weight.device(), weight.dtype()) != Backend::Reference
}

/// Input: x.
struct FeedForward {
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
    up: FrozenLayer,
    down: FrozenLayer,
}

impl FeedForward {
    /// Its constants in the type of the arithmetic: shift, scale, gate and biases. Each weight is written out in it by itself
    /// when it is multiplied with.
    fn in_type(&self, dtype: DType) -> Result<Self> {
        let of = |tensor: &Tensor| tensor.to_dtype(dtype)?.contiguous();
        let layer = |layer: &FrozenLayer| {
            Result::Ok(FrozenLayer { weight: layer.weight.clone(), bias: layer.bias.as_ref().map(of).transpose()? })
        };
        Ok(Self {
            shift: of(&self.shift)?,
            scale: of(&self.scale)?,
            gate: of(&self.gate)?,
            up: layer(&self.up)?,
            down: layer(&self.down)?,
        })
    }
}
