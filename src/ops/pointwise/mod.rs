//! The elementwise parts of a block: GELU, and the gated residual.
mod cpu;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
pub(super) mod reference;

use super::backend::{Backend, reference_backward};
use crate::autograd::{Gradients, Op, Variable, apply};
use candle_core::{Result, Tensor, bail};

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

struct Gelu;

impl Op for Gelu {
    const NAME: &'static str = "gelu";
    /// x
    type Saved = Tensor;

    fn forward(&self, inputs: &[&Tensor], needs: &[bool]) -> Result<(Tensor, Option<Self::Saved>)> {
        let x = inputs[0].contiguous()?;
        let y = match Backend::of(&[&x]) {
            Backend::Cpu => cpu::gelu(&x)?,
            #[cfg(feature = "cuda")]
            Backend::Cuda => cuda::gelu_forward(&x, None)?,
            Backend::Reference => x.gelu()?,
        };
        Ok((y, needs[0].then_some(x)))
    }

    fn backward(&self, x: Tensor, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let gradient = gradient.contiguous()?;
        match Backend::of(&[&x, &gradient]) {
            Backend::Cpu => gradients.accumulate(0, |slot| cpu::gelu_backward(&x, &gradient, slot)),
            #[cfg(feature = "cuda")]
            Backend::Cuda => {
                cuda::gelu_backward(&x, None, &gradient)?;
                gradients.add(0, gradient)
            }
            Backend::Reference => reference_backward(reference::gelu, &[x], &gradient, gradients),
        }
    }
}

struct GatedResidual;

impl Op for GatedResidual {
    const NAME: &'static str = "gated-residual";
    /// x, y and gate where the gate needs a gradient, else the gate.
    type Saved = Vec<Tensor>;

    fn forward(&self, inputs: &[&Tensor], needs: &[bool]) -> Result<(Tensor, Option<Self::Saved>)> {
        let mut of = inputs.iter().map(|input| input.contiguous()).collect::<Result<Vec<_>>>()?;
        let out = match Backend::of(inputs) {
            Backend::Cpu => cpu::gated_residual(&of[0], &of[1], &of[2])?,
            #[cfg(feature = "cuda")]
            Backend::Cuda => cuda::gated_forward(&of[0], &of[1], None, &of[2])?,
            Backend::Reference => reference::gated_residual(&of)?,
        };
        if !needs[2] {
            of.drain(..2);
        }
        Ok((out, needs.contains(&true).then_some(of)))
    }

    fn backward(&self, saved: Self::Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        if gradients.needs(2) {
            return reference_backward(reference::gated_residual, &saved, &gradient, gradients);
        }
        let Some(gate) = saved.last() else { bail!("{}: nothing was saved", Self::NAME) };
        let gradient = gradient.contiguous()?;
        if gradients.needs(1) {
            match Backend::of(&[gate, &gradient]) {
                Backend::Cpu => {
                    gradients.accumulate(1, |slot| cpu::gated_residual_backward(gate, &gradient, slot))?;
                }
                #[cfg(feature = "cuda")]
                Backend::Cuda => gradients.add(1, cuda::gated_backward(&gradient, gate)?)?,
                Backend::Reference => gradients.add(1, gradient.broadcast_mul(&gate.unsqueeze(1)?)?)?,
            }
        }
        gradients.add(0, gradient)
    }
}
