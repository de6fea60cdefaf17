//! Layer norm with AdaLN modulation, and the RMS norm of queries and keys.
mod cpu;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
mod reference;

use super::backend::{Variable, apply};
use candle_core::{Result, Tensor, bail};

pub(super) use cpu::{add_norm_row_backward, modulate_row};

/// Epsilon of every norm in SD3's transformer (diffusers: `eps=1e-6`).
const EPSILON: f64 = 1e-6;

/// `layer_norm(x)·(1 + scale) + shift` without affine weights (diffusers' `AdaLayerNormZero`).
///
/// x `[batch, tokens, width]`, shift and scale `[batch, width]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn layer_norm_modulate(x: &Variable, shift: &Variable, scale: &Variable) -> Result<Variable> {
    apply(LayerNormModulate, &[x, shift, scale])
}

/// `x / rms(x) · weight` of every head (diffusers' `RMSNorm`): x `[batch, tokens, heads·head_dim]`, and for parts of the
/// tokens, one after the other, how many they are and their frozen weight `[head_dim]`.
///
/// # Errors
/// Parts that are not all tokens, or weights that do not divide the width.
pub fn rms_norm(x: &Variable, weights: Vec<(usize, Tensor)>) -> Result<Variable> {
    let (_, tokens, width) = x.dims3()?;
    let fits = weights.iter().all(|(_, weight)| width.is_multiple_of(weight.elem_count().max(1)));
    if !fits || weights.iter().map(|(tokens, _)| tokens).sum::<usize>() != tokens {
        bail!("rms norm: x {:?}, weights of {:?} tokens", x.dims(), weights.iter().map(|w| w.0).collect::<Vec<_>>());
    }
    let weights =
        weights.into_iter().map(|(tokens, weight)| Ok((tokens, weight.to_dtype(x.tensor().dtype())?.contiguous()?)));
    apply(RmsNorm { weights: weights.collect::<Result<_>>()? }, &[x])
}

/// Inputs: x, shift, scale.
pub(super) struct LayerNormModulate;

/// Input: x.
pub(super) struct RmsNorm {
    /// Of parts of the tokens, one after the other: how many, and their weight.
    pub weights: Vec<(usize, Tensor)>,
}
