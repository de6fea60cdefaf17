//! GELU, SwiGLU and the gated residual in f32 in the host's memory.
use super::{GatedResidual, Gelu, SwiGlu};
use crate::kernels::cpu::{new_rows, sigmoid};
use crate::kernels::memory::Values;
use crate::ops::accumulate::add_rows;
use crate::ops::backend::{Cpu, Forward, Gradients, Saved};
use candle_core::{Device, Result, Tensor};

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;
/// Values that are handed to a thread as one row.
const ROW: usize = 4096;

/// `(1 + tanh(√(2/π)·(x + 0.044715·x³))) / 2`, the sigmoid of twice that.
#[inline(always)]
fn gelu_share(x: f32) -> f32 {
    sigmoid(2.0 * SQRT_2_OVER_PI * x * (x * x).mul_add(CUBIC, 1.0))
}

#[inline(always)]
pub fn gelu_value(x: f32) -> f32 {
    x * gelu_share(x)
}

#[inline(always)]
pub fn gelu_derivative(x: f32) -> f32 {
    let share = gelu_share(x);
    let inner = 2.0 * SQRT_2_OVER_PI * (x * x).mul_add(3.0 * CUBIC, 1.0);
    (x * inner * (1.0 - share)).mul_add(share, share)
}

impl Cpu for Gelu {
    fn forward_cpu(&self, inputs: &[Tensor], _: &[bool]) -> Result<Forward> {
        let x = Values::of(&inputs[0])?;
        let y = new_rows!(x.len(), ROW, |r, out| {
            out.iter_mut().zip(&x[r * ROW..]).for_each(|(y, x)| *y = gelu_value(*x));
        });
        Ok((Tensor::from_vec(y, inputs[0].shape(), &Device::Cpu)?, vec![]))
    }

    fn backward_cpu(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let (x, dy) = (Values::of(saved.input(0)?)?, Values::of(&gradient)?);
        add_rows!(gradients, 0, gradient.shape(), ROW, |r, dx| {
            let pairs = x[r * ROW..].iter().zip(&dy[r * ROW..]);
            dx.iter_mut().zip(pairs).for_each(|(dx, (x, dy))| *dx += dy * gelu_derivative(*x));
        })
    }
}

impl Cpu for SwiGlu {
    fn forward_cpu(&self, inputs: &[Tensor], _: &[bool]) -> Result<Forward> {
        let ((shape, width), x) = (Self::output(&inputs[0]), Values::of(&inputs[0])?);
        let y = new_rows!(x.len() / 2, width, |r, out| {
            let (a, b) = x[2 * r * width..][..2 * width].split_at(width);
            for i in 0..width {
                out[i] = a[i] * sigmoid(a[i]) * b[i];
            }
        });
        Ok((Tensor::from_vec(y, shape, &Device::Cpu)?, vec![]))
    }

    fn backward_cpu(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let (_, width) = Self::output(saved.input(0)?);
        let (x, dy) = (Values::of(saved.input(0)?)?, Values::of(&gradient)?);
        add_rows!(gradients, 0, saved.input(0)?.shape(), 2 * width, |r, dx| {
            let ((a, b), dy) = (x[2 * r * width..][..2 * width].split_at(width), &dy[r * width..][..width]);
            let (da, db) = dx.split_at_mut(width);
            for i in 0..width {
                let share = sigmoid(a[i]);
                da[i] += dy[i] * b[i] * share * (a[i] * (1.0 - share) + 1.0);
                db[i] += dy[i] * a[i] * share;
            }
        })
    }
}

impl Cpu for GatedResidual {
    fn forward_cpu(&self, inputs: &[Tensor], _: &[bool]) -> Result<Forward> {
        let (_, tokens, width) = inputs[0].dims3()?;
        let (x, y, gate) = (Values::of(&inputs[0])?, Values::of(&inputs[1])?, Values::of(&inputs[2])?);
        let out = new_rows!(x.len(), width, |r, out| {
            let (x, y) = (&x[r * width..][..width], &y[r * width..][..width]);
            let gate = &gate[r / tokens * width..][..width];
            for i in 0..width {
                out[i] = x[i] + gate[i] * y[i];
            }
        });
        Ok((Tensor::from_vec(out, inputs[0].shape(), &Device::Cpu)?, vec![]))
    }

    fn backward_cpu(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let (_, tokens, width) = gradient.dims3()?;
        let (gate, dz) = (Values::of(saved.input(2)?)?, Values::of(&gradient)?);
        add_rows!(gradients, 1, gradient.shape(), width, |r, dy| {
            let (dz, gate) = (&dz[r * width..][..width], &gate[r / tokens * width..][..width]);
            for i in 0..width {
                dy[i] += dz[i] * gate[i];
            }
        })?;
        drop(dz);
        gradients.add(0, gradient)
    }
}
