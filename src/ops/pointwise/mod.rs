//! The elementwise parts of a block: GELU, SwiGLU, and the gated residual.
mod cpu;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
mod reference;

use super::backend::{Variable, apply};
use candle_core::{Result, Tensor, bail};

pub(super) use cpu::{gelu_derivative, gelu_value};

/// GELU in its tanh form (diffusers' `gelu-approximate`).
///
/// # Errors
/// None but the device's.
pub fn gelu(x: &Variable) -> Result<Variable> {
    apply(Gelu, &[x])
}

/// `silu(a)·b` of the two halves `a` and `b` of the last dimension: x `[…, 2·width]`, to `[…, width]` (diffusers'
/// `Flux2SwiGLU`).
///
/// # Errors
/// An odd last dimension.
pub fn swiglu(x: &Variable) -> Result<Variable> {
    match x.dims().last() {
        Some(last) if last.is_multiple_of(2) && *last > 0 => apply(SwiGlu, &[x]),
        _ => bail!("SwiGLU of {:?}", x.dims()),
    }
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

/// Input: x.
struct SwiGlu;

impl SwiGlu {
    /// Shape of what becomes of x, and its last dimension.
    fn output(x: &Tensor) -> (Vec<usize>, usize) {
        let mut shape = x.dims().to_vec();
        let width = shape.last().map_or(0, |last| last / 2);
        shape.iter_mut().next_back().into_iter().for_each(|last| *last = width);
        (shape, width)
    }
}

/// Inputs: x, y, gate.
pub(super) struct GatedResidual;
