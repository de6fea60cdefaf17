//! The MLP with its norm and residual in f32 in the host's memory.
mod blocks;
mod whole;

use super::FeedForward;
use crate::ops::kernels::memory::{Values, with_values_mut};
use candle_core::{Device, Result, Tensor, bail};

/// Values of a weight that stays in cache.
const CACHED_WEIGHT: usize = 1 << 18;

/// The output and, where `needs` says so, what goes into the GELU, laid out as the backward pass reads it.
pub fn forward(of: &FeedForward, x: &Tensor, needs: bool) -> Result<(Tensor, Option<Tensor>)> {
    let values = Values::of(x)?;
    let (out, before) = with_arguments(of, x, |of| match of.go_in_blocks() {
        true => blocks::forward(of, &values, needs),
        false => whole::forward(of, &values),
    })?;
    let length = before.len();
    let before = if needs { Some(Tensor::from_vec(before, length, &Device::Cpu)?) } else { None };
    Ok((Tensor::from_vec(out, x.shape(), &Device::Cpu)?, before))
}

/// Makes the output's gradient that of x, in place.
pub fn backward(of: &FeedForward, x: &Tensor, before: &Tensor, gradient: &Tensor) -> Result<()> {
    let (x_values, before) = (Values::of(x)?, Values::of(before)?);
    let (x_values, before): (&[f32], &[f32]) = (&x_values, &before);
    with_arguments(of, x, |of| {
        with_values_mut(gradient, |gradient| match of.go_in_blocks() {
            true => blocks::backward(of, x_values, before, gradient),
            false => whole::backward(of, x_values, before, gradient),
        })
    })?
}

/// Calls `work` with the constants of a call for `x`.
fn with_arguments<R>(of: &FeedForward, x: &Tensor, work: impl FnOnce(&Arguments) -> R) -> Result<R> {
    let (batch, tokens, width) = x.dims3()?;
    let zeros = |layer: &crate::ops::FrozenLayer| match &layer.bias {
        Some(bias) => Ok(bias.clone()),
        None => Tensor::zeros(layer.weight.dim(0)?, x.dtype(), x.device()),
    };
    let (up_bias, down_bias) = (zeros(&of.up)?, zeros(&of.down)?);
    let hidden = of.up.weight.dim(0)?;
    if of.up.weight.dims() != [hidden, width] || of.down.weight.dims() != [width, hidden] {
        bail!("feed-forward: x {:?}, weights {:?}, {:?}", x.dims(), of.up.weight.dims(), of.down.weight.dims());
    }
    Ok(work(&Arguments {
        shift: &Values::of(&of.shift)?,
        scale: &Values::of(&of.scale)?,
        gate: &Values::of(&of.gate)?,
        up: &Values::of(&of.up.weight)?,
        up_bias: &Values::of(&up_bias)?,
        down: &Values::of(&of.down.weight)?,
        down_bias: &Values::of(&down_bias)?,
        rows: batch * tokens,
        tokens,
        width,
        hidden,
    }))
}

/// Values of one call.
#[derive(Clone, Copy)]
struct Arguments<'a> {
    /// `[batch, width]`, as scale and gate.
    shift: &'a [f32],
    scale: &'a [f32],
    gate: &'a [f32],
    /// `[hidden, width]` and `[hidden]`
    up: &'a [f32],
    up_bias: &'a [f32],
    /// `[width, hidden]` and `[width]`
    down: &'a [f32],
    down_bias: &'a [f32],
    rows: usize,
    /// Rows of a batch entry.
    tokens: usize,
    width: usize,
    hidden: usize,
}

impl Arguments<'_> {
    /// Whether blocks of rows go through all at once: where the weights stay in cache, and products in blocks are to the last
    /// bit those of whole matrices, which an adapter on a layer leads to.
    fn go_in_blocks(&self) -> bool {
        self.up.len() <= CACHED_WEIGHT && blocks::are_as_whole(self)
    }

    /// Row `row` of `data` `[rows, width]`.
    #[inline(always)]
    fn row<'b>(&self, data: &'b [f32], row: usize) -> &'b [f32] {
        &data[row * self.width..][..self.width]
    }

    /// The values of the batch entry that row `row` belongs to, in data `[batch, width]`.
    #[inline(always)]
    fn entry<'b>(&self, data: &'b [f32], row: usize) -> &'b [f32] {
        self.row(data, row / self.tokens)
    }
}
