//! Layer norm with AdaLN modulation, and the RMS norm of queries and keys.
mod cpu;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
pub(super) mod reference;

use super::backend::{Backend, reference_backward};
use crate::autograd::{Gradients, Op, Variable, apply};
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

struct LayerNormModulate;

impl Op for LayerNormModulate {
    const NAME: &'static str = "layer-norm-modulate";
    /// x, shift, scale; no shift where it needs no gradient.
    type Saved = Vec<Tensor>;

    fn forward(&self, inputs: &[&Tensor], needs: &[bool]) -> Result<(Tensor, Option<Self::Saved>)> {
        let of = inputs.iter().map(|input| input.contiguous()).collect::<Result<Vec<_>>>()?;
        let y = match Backend::of(inputs) {
            Backend::Cpu => cpu::layer_norm_modulate(&of[0], &of[1], &of[2])?,
            #[cfg(feature = "cuda")]
            Backend::Cuda => cuda::layer_norm_forward(&of[0], &of[1], &of[2])?,
            Backend::Reference => reference::layer_norm_modulate(&of)?,
        };
        Ok((y, needs.contains(&true).then_some(of)))
    }

    fn backward(&self, saved: Self::Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let [x, _, scale] = &saved[..] else { bail!("{}: {} tensors were saved", Self::NAME, saved.len()) };
        if gradients.needs(1) || gradients.needs(2) {
            // Only where an adapter sits on the modulation itself; too rare to have a loop of its own.
            return reference_backward(reference::layer_norm_modulate, &saved, &gradient, gradients);
        }
        match Backend::of(&[x, &gradient]) {
            Backend::Cpu => {
                let gradient = gradient.contiguous()?;
                gradients.accumulate(0, |slot| cpu::layer_norm_backward(x, scale, &gradient, slot))
            }
            #[cfg(feature = "cuda")]
            Backend::Cuda => {
                let gradient = gradient.contiguous()?;
                gradients.accumulate(0, |slot| cuda::layer_norm_backward(x, scale, &gradient, slot))
            }
            Backend::Reference => reference_backward(reference::layer_norm_modulate, &saved, &gradient, gradients),
        }
    }
}

struct RmsNorm {
    weights: Vec<(usize, Tensor)>,
}

impl Op for RmsNorm {
    const NAME: &'static str = "rms-norm";
    /// x
    type Saved = Tensor;

    fn forward(&self, inputs: &[&Tensor], needs: &[bool]) -> Result<(Tensor, Option<Self::Saved>)> {
        let x = inputs[0].contiguous()?;
        let y = match Backend::of(&[&x]) {
            Backend::Cpu => cpu::rms_norm(&x, &self.weights)?,
            #[cfg(feature = "cuda")]
            Backend::Cuda => cuda::rms_norm_forward(&x, &self.weights)?,
            Backend::Reference => reference::rms_norm(&x, &self.weights)?,
        };
        Ok((y, needs[0].then_some(x)))
    }

    fn backward(&self, x: Tensor, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let gradient = gradient.contiguous()?;
        match Backend::of(&[&x, &gradient]) {
            Backend::Cpu => gradients.accumulate(0, |slot| cpu::rms_norm_backward(&x, &self.weights, &gradient, slot)),
            #[cfg(feature = "cuda")]
            Backend::Cuda => {
                gradients.accumulate(0, |slot| cuda::rms_norm_backward(&x, &self.weights, &gradient, slot))
            }
            Backend::Reference => {
                let forward = |inputs: &[Tensor]| reference::rms_norm(&inputs[0], &self.weights);
                reference_backward(forward, &[x], &gradient, gradients)
            }
        }
    }
}
