//! The values of one call.
use super::super::FeedForward;
use crate::kernels::memory::Values;
use crate::ops::frozen_weight::FrozenWeight;
use crate::ops::linear::FrozenLayer;
use candle_core::{Result, Tensor, bail};

/// Calls `work` with the constants of a call for `x`.
pub fn with_arguments<R>(of: &FeedForward, x: &Tensor, work: impl FnOnce(&Arguments) -> R) -> Result<R> {
    let (batch, tokens, width) = x.dims3()?;
    let of = &of.in_type(x.dtype())?;
    let zeros = |layer: &FrozenLayer| match &layer.bias {
        Some(bias) => Ok(bias.clone()),
        None => Tensor::zeros(layer.weight.dims2()?.0, x.dtype(), x.device()),
    };
    let (up_bias, down_bias) = (zeros(&of.up)?, zeros(&of.down)?);
    let (hidden, _) = of.up.weight.dims2()?;
    if of.up.weight.dims() != [hidden, width] || of.down.weight.dims() != [width, hidden] {
        bail!("feed-forward: x {:?}, weights {:?}, {:?}", x.dims(), of.up.weight.dims(), of.down.weight.dims());
    }
    Ok(work(&Arguments {
        shift: &Values::of(&of.shift)?,
        scale: &Values::of(&of.scale)?,
        gate: &Values::of(&of.gate)?,
        up: &of.up.weight,
        up_bias: &Values::of(&up_bias)?,
        down: &of.down.weight,
        down_bias: &Values::of(&down_bias)?,
        rows: batch * tokens,
        tokens,
        width,
        hidden,
    }))
}

/// Values of one call.
#[derive(Clone, Copy)]
pub struct Arguments<'a> {
    /// `[batch, width]`, as scale and gate.
    pub shift: &'a [f32],
    pub scale: &'a [f32],
    pub gate: &'a [f32],
    /// `[hidden, width]` and `[hidden]`
    pub up: &'a FrozenWeight,
    pub up_bias: &'a [f32],
    /// `[width, hidden]` and `[width]`
    pub down: &'a FrozenWeight,
    pub down_bias: &'a [f32],
    pub rows: usize,
    /// Rows of a batch entry.
    pub tokens: usize,
    pub width: usize,
    pub hidden: usize,
}

impl Arguments<'_> {
    /// Row `row` of `data` `[rows, width]`.
    #[inline(always)]
    pub fn row<'b>(&self, data: &'b [f32], row: usize) -> &'b [f32] {
        &data[row * self.width..][..self.width]
    }

    /// The values of the batch entry that row `row` belongs to, in data `[batch, width]`.
    #[inline(always)]
    pub fn entry<'b>(&self, data: &'b [f32], row: usize) -> &'b [f32] {
        self.row(data, row / self.tokens)
    }
}
