//! The MLP with its norm and residual in f32 in the host's memory.
mod arguments;
mod blocks;
mod whole;

use super::FeedForward;
use crate::kernels::memory::{Values, with_values_mut};
use crate::kernels::packed::is_as_product;
use crate::ops::backend::{Cpu, Forward, Gradients, Saved};
use arguments::{Arguments, with_arguments};
use candle_core::{Device, Result, Tensor};

/// Values of a weight that stays in cache.
const CACHED_WEIGHT: usize = 1 << 18;

/// Whether blocks of rows go through all at once: where the weights stay in cache, and products in blocks are to the last
/// bit those of whole matrices, which an adapter on a layer leads to.
fn go_in_blocks(of: &Arguments) -> bool {
    let &Arguments { rows, width, hidden, .. } = of;
    let are_as_whole = || is_as_product((rows, width, hidden)) && is_as_product((rows, hidden, width));
    width * hidden <= CACHED_WEIGHT && are_as_whole()
}

impl Cpu for FeedForward {
    /// Leaves what goes into the GELU, laid out as the backward pass reads it.
    fn forward_cpu(&self, inputs: &[Tensor], needs: &[bool]) -> Result<Forward> {
        let x = Values::of(&inputs[0])?;
        let (out, before) = with_arguments(self, &inputs[0], |of| match go_in_blocks(of) {
            true => blocks::forward(of, &x, needs[0]),
            false => whole::forward(of, &x),
        })??;
        let length = before.len();
        let kept = if needs[0] { vec![Tensor::from_vec(before, length, &Device::Cpu)?] } else { vec![] };
        Ok((Tensor::from_vec(out, inputs[0].shape(), &Device::Cpu)?, kept))
    }

    fn backward_cpu(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let (x, [before]) = (saved.input(0)?, saved.kept()?);
        let (values, before) = (Values::of(x)?, Values::of(before)?);
        with_arguments(self, x, |of| {
            with_values_mut(&gradient, |gradient| match go_in_blocks(of) {
                true => blocks::backward(of, &values, &before, gradient),
                false => whole::backward(of, &values, &before, gradient),
            })
        })???;
        gradients.add(0, gradient)
    }
}
