//! The second half of a block's stream in one node: norm, modulation, MLP, gate and residual.
//!
//! Apart, these are five nodes, whose results and gradients go through memory each; here a block of rows goes through
//! them all, and the backward pass needs what goes into the GELU alone.
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reference;

use super::backend::{Backend, reference_backward};
use super::linear::FrozenLayer;
use crate::autograd::{Gradients, Op, Variable, apply};
use candle_core::{DType, Result, Tensor, bail};

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
    Backend::of(&[x]) != Backend::Reference
}

struct FeedForward {
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
    up: FrozenLayer,
    down: FrozenLayer,
}

impl FeedForward {
    /// Its constants in the type of the arithmetic: shift, scale, gate, and weights with their biases.
    fn in_type(&self, dtype: DType) -> Result<Self> {
        let of = |tensor: &Tensor| tensor.to_dtype(dtype)?.contiguous();
        let layer = |layer: &FrozenLayer| {
            Result::Ok(FrozenLayer { weight: of(&layer.weight)?, bias: layer.bias.as_ref().map(of).transpose()? })
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

/// x, and what goes into the GELU; none of the latter where the reference ran.
struct Saved {
    x: Tensor,
    before: Option<Tensor>,
}

impl Op for FeedForward {
    const NAME: &'static str = "feed-forward";
    type Saved = Saved;

    fn forward(&self, inputs: &[&Tensor], needs: &[bool]) -> Result<(Tensor, Option<Saved>)> {
        let x = inputs[0].contiguous()?;
        let of = self.in_type(x.dtype())?;
        let (out, before) = match Backend::of(&[&x]) {
            Backend::Cpu => cpu::forward(&of, &x, needs[0])?,
            #[cfg(feature = "cuda")]
            Backend::Cuda => cuda::forward(&of, &x).map(|(out, before)| (out, Some(before)))?,
            Backend::Reference => (reference::forward(&of, &x)?, None),
        };
        Ok((out, needs[0].then_some(Saved { x, before })))
    }

    fn backward(&self, saved: Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let Saved { x, before } = saved;
        let of = self.in_type(x.dtype())?;
        let gradient = gradient.contiguous()?;
        match (Backend::of(&[&x, &gradient]), before) {
            (Backend::Cpu, Some(before)) => {
                cpu::backward(&of, &x, &before, &gradient)?;
                gradients.add(0, gradient)
            }
            #[cfg(feature = "cuda")]
            (Backend::Cuda, Some(before)) => {
                cuda::backward(&of, &x, &before, &gradient)?;
                gradients.add(0, gradient)
            }
            (Backend::Reference, _) => {
                reference_backward(|inputs| reference::forward(&of, &inputs[0]), &[x], &gradient, gradients)
            }
            _ => bail!("{}: the forward pass saved nothing for the backward pass", Self::NAME),
        }
    }
}
