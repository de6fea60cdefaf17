//! The elementwise parts of a block: GELU, and the gated residual.
use super::function::{Function, Values, apply, composed_backward};
use crate::ops::kernels::cpu::{new_rows, sigmoid};
use candle_core::{Device, Result, Tensor};

/// GELU in its tanh form (diffusers' `gelu-approximate`).
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    apply(Gelu, &[x])
}

/// `x + gate·y`: x and y `[batch, tokens, width]`, gate `[batch, width]`.
pub fn gated_residual(x: &Tensor, y: &Tensor, gate: &Tensor) -> Result<Tensor> {
    apply(GatedResidual, &[x, y, gate])
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;
/// Elements that are handed to a thread as one row.
const STRIP: usize = 4096;

/// `(1 + tanh(√(2/π)·(x + 0.044715·x³))) / 2`, the sigmoid of twice that.
#[inline(always)]
fn gelu_share(x: f32) -> f32 {
    sigmoid(2.0 * SQRT_2_OVER_PI * x * (x * x).mul_add(CUBIC, 1.0))
}

#[inline(always)]
pub(super) fn gelu_value(x: f32) -> f32 {
    x * gelu_share(x)
}

#[inline(always)]
pub(super) fn gelu_derivative(x: f32) -> f32 {
    let share = gelu_share(x);
    let inner = 2.0 * SQRT_2_OVER_PI * (x * x).mul_add(3.0 * CUBIC, 1.0);
    (x * inner * (1.0 - share)).mul_add(share, share)
}

pub(super) struct Gelu;

impl Function for Gelu {
    const NAME: &'static str = "gelu";

    fn composed(&self, inputs: &[Tensor]) -> Result<Tensor> {
        inputs[0].gelu()
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, inputs: &[Tensor]) -> Result<Option<super::cuda::Forward>> {
        super::cuda::pointwise::gelu_forward(&inputs[0], None)
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, of: &super::cuda::Backward) -> Result<super::cuda::Gradients> {
        let dx = super::cuda::pointwise::gelu_backward(&of.inputs[0], None, of.grad)?;
        Ok(dx.map(|dx| vec![Some(dx)]))
    }

    fn cpu_forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let x = Values::of(&inputs[0])?;
        let y = new_rows!(x.len(), STRIP, |r, out| {
            out.iter_mut().zip(&x[r * STRIP..]).for_each(|(y, x)| *y = gelu_value(*x));
        });
        Tensor::from_vec(y, inputs[0].shape(), &Device::Cpu)
    }

    fn cpu_backward(&self, inputs: &[Tensor], _: &Tensor, grad: &Tensor, _: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let (x, grad) = (Values::of(&inputs[0])?, Values::of(grad)?);
        let dx = new_rows!(x.len(), STRIP, |r, out| {
            let values = x[r * STRIP..].iter().zip(&grad[r * STRIP..]);
            out.iter_mut().zip(values).for_each(|(d, (x, grad))| *d = grad * gelu_derivative(*x));
        });
        Ok(vec![Some(Tensor::from_vec(dx, inputs[0].shape(), &Device::Cpu)?)])
    }
}

pub(super) struct GatedResidual;

impl Function for GatedResidual {
    const NAME: &'static str = "gated-residual";

    fn composed(&self, inputs: &[Tensor]) -> Result<Tensor> {
        &inputs[0] + inputs[1].broadcast_mul(&inputs[2].unsqueeze(1)?)?
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, inputs: &[Tensor]) -> Result<Option<super::cuda::Forward>> {
        super::cuda::pointwise::gated_forward(&inputs[0], &inputs[1], None, &inputs[2])
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, of: &super::cuda::Backward) -> Result<super::cuda::Gradients> {
        if of.needs[2] {
            return Ok(None);
        }
        let dy = super::cuda::pointwise::gated_backward(of.grad, &of.inputs[2])?;
        Ok(dy.map(|dy| vec![of.needs[0].then(|| of.grad.clone()), of.needs[1].then_some(dy), None]))
    }

    fn cpu_forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (_, tokens, width) = inputs[0].dims3()?;
        let (x, y, gate) = (Values::of(&inputs[0])?, Values::of(&inputs[1])?, Values::of(&inputs[2])?);
        let out = new_rows!(x.len(), width, |r, out| {
            let (x, y) = (&x[r * width..][..width], &y[r * width..][..width]);
            let gate = &gate[r / tokens * width..][..width];
            for i in 0..width {
                out[i] = x[i] + gate[i] * y[i];
            }
        });
        Tensor::from_vec(out, inputs[0].shape(), &Device::Cpu)
    }

    fn cpu_backward(
        &self,
        inputs: &[Tensor],
        _: &Tensor,
        grad: &Tensor,
        needs: &[bool],
    ) -> Result<Vec<Option<Tensor>>> {
        if needs[2] {
            return composed_backward(|inputs| self.composed(inputs), inputs, grad, needs);
        }
        let (_, tokens, width) = inputs[0].dims3()?;
        let dy = if needs[1] {
            let (gate, grad) = (Values::of(&inputs[2])?, Values::of(grad)?);
            let dy = new_rows!(grad.len(), width, |r, out| {
                let (grad, gate) = (&grad[r * width..][..width], &gate[r / tokens * width..][..width]);
                for i in 0..width {
                    out[i] = grad[i] * gate[i];
                }
            });
            Some(Tensor::from_vec(dy, inputs[1].shape(), &Device::Cpu)?)
        } else {
            None
        };
        Ok(vec![needs[0].then(|| grad.clone()), dy, None])
    }
}
