//! GELU and the gated residual in f32 in the host's memory.
use crate::autograd::Slot;
use crate::ops::kernels::cpu::{new_rows, sigmoid};
use crate::ops::kernels::memory::{Values, add_rows};
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

/// x of any shape.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    let values = Values::of(x)?;
    let y = new_rows!(values.len(), ROW, |r, out| {
        out.iter_mut().zip(&values[r * ROW..]).for_each(|(y, x)| *y = gelu_value(*x));
    });
    Tensor::from_vec(y, x.shape(), &Device::Cpu)
}

/// Adds the gradient of x.
pub fn gelu_backward(x: &Tensor, gradient: &Tensor, slot: &mut Slot) -> Result<()> {
    let (values, gradient) = (Values::of(x)?, Values::of(gradient)?);
    let (values, gradient): (&[f32], &[f32]) = (&values, &gradient);
    add_rows!(slot, x.shape(), ROW, |r, dx| {
        let pairs = values[r * ROW..].iter().zip(&gradient[r * ROW..]);
        dx.iter_mut().zip(pairs).for_each(|(d, (x, gradient))| *d += gradient * gelu_derivative(*x));
    })
}

/// x and y `[batch, tokens, width]`, gate `[batch, width]`.
pub fn gated_residual(x: &Tensor, y: &Tensor, gate: &Tensor) -> Result<Tensor> {
    let (_, tokens, width) = x.dims3()?;
    let (x_values, y, gate) = (Values::of(x)?, Values::of(y)?, Values::of(gate)?);
    let out = new_rows!(x_values.len(), width, |r, out| {
        let (x, y) = (&x_values[r * width..][..width], &y[r * width..][..width]);
        let gate = &gate[r / tokens * width..][..width];
        for i in 0..width {
            out[i] = x[i] + gate[i] * y[i];
        }
    });
    Tensor::from_vec(out, x.shape(), &Device::Cpu)
}

/// Adds the gradient of y.
pub fn gated_residual_backward(gate: &Tensor, gradient: &Tensor, slot: &mut Slot) -> Result<()> {
    let (_, tokens, width) = gradient.dims3()?;
    let shape = gradient.shape();
    let (gate, gradient) = (Values::of(gate)?, Values::of(gradient)?);
    let (gate, gradient): (&[f32], &[f32]) = (&gate, &gradient);
    add_rows!(slot, shape, width, |r, dy| {
        let (gradient, gate) = (&gradient[r * width..][..width], &gate[r / tokens * width..][..width]);
        for i in 0..width {
            dy[i] += gradient[i] * gate[i];
        }
    })
}
