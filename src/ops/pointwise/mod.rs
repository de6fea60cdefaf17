//! The elementwise parts of a block: GELU, and the gated residual.
mod cpu;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
mod reference;

use crate::autograd::{Variable, apply};
use candle_core::Result;

pub(super) use cpu::{gelu_derivative, gelu_value};

/// GELU in its tanh form (diffusers' `gelu-approximate`).
///
/// # Errors
/// None but the device's.
pub fn gelu(x: &Variable) -> Result<Variable> {
    apply(Gelu, &[x])
}

/// `x + gate·y`: x and y `[batch, tokens, width]`, gate `[batch, width]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn gated_residual(x: &Variable, y: &Variable, gate: &Variable) -> Result<Variable> {
    apply(GatedResidual, &[x, y, gate])
}

/// Input: x.
struct Gelu;

/// Inputs: x, y, gate.
pub(super) struct GatedResidual;
