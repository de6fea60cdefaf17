//! Attention without a stored score matrix, and the attention probability of a range of keys.
//!
//! Scores are formed for a block of queries at a time, used, and formed again in the backward pass (FlashAttention): memory
//! grows with `queries + keys`, not with their product.
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub(super) mod reference;

use super::backend::{Backend, reference_backward};
use crate::autograd::{Gradients, Op, Variable, apply};
use candle_core::{Result, Tensor, bail};
use std::ops::Range;

/// `softmax(q·kᵀ/√head_dim)·v` for each head, without mask (torch's `scaled_dot_product_attention`).
///
/// The last key and value count `last_key_count` times. q `[batch, queries, heads·head_dim]`, k and v `[batch, keys,
/// heads·head_dim]`; out as q.
///
/// # Errors
/// Shapes that do not fit.
pub fn attention(q: &Variable, k: &Variable, v: &Variable, heads: usize, last_key_count: usize) -> Result<Variable> {
    let sizes = Sizes::of(q.tensor(), k.tensor(), heads, last_key_count)?;
    if k.dims() != v.dims() {
        bail!("attention: k {:?}, v {:?}", k.dims(), v.dims());
    }
    apply(Attention { sizes }, &[q, k, v])
}

/// The probability of attention, averaged over heads, of the keys in `range` alone; the softmax is over all keys.
///
/// The last key counts `last_key_count` times. q `[batch, queries, heads·head_dim]`, k `[batch, keys, heads·head_dim]`; out
/// `[batch, queries, range]` in f32.
///
/// # Errors
/// Shapes that do not fit.
pub fn attention_probability(
    q: &Variable,
    k: &Variable,
    heads: usize,
    range: Range<usize>,
    last_key_count: usize,
) -> Result<Variable> {
    let sizes = Sizes::of(q.tensor(), k.tensor(), heads, last_key_count)?;
    if range.is_empty() || range.end > sizes.keys {
        bail!("attention probability: keys {range:?} of {}", sizes.keys);
    }
    apply(Probability { sizes, range }, &[q, k])
}

/// Sizes of one call.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub batch: usize,
    pub queries: usize,
    pub keys: usize,
    pub width: usize,
    pub heads: usize,
    /// How often the last key counts.
    pub last_key_count: usize,
}

impl Sizes {
    pub(super) fn of(q: &Tensor, k: &Tensor, heads: usize, last_key_count: usize) -> Result<Self> {
        let (batch, queries, width) = q.dims3()?;
        let (k_batch, keys, k_width) = k.dims3()?;
        if batch != k_batch || width != k_width || heads == 0 || width % heads != 0 || keys == 0 || last_key_count == 0
        {
            bail!("attention: q {:?}, k {:?}, {heads} heads", q.dims(), k.dims());
        }
        Ok(Self { batch, queries, keys, width, heads, last_key_count })
    }

    pub fn head_dim(&self) -> usize {
        self.width / self.heads
    }

    /// What scores are multiplied with.
    pub fn scale(&self) -> f32 {
        1.0 / (self.head_dim() as f32).sqrt()
    }
}

struct Attention {
    sizes: Sizes,
}

/// The log-sum-exp of every query's scores, in units of log 2, `[batch, heads, queries]`; none where the reference ran.
type Lse = Option<Tensor>;

impl Op for Attention {
    const NAME: &'static str = "attention";
    /// q, k, v and the output.
    type Saved = ([Tensor; 4], Lse);

    fn forward(&self, inputs: &[&Tensor], needs: &[bool]) -> Result<(Tensor, Option<Self::Saved>)> {
        let [q, k, v] = [inputs[0].contiguous()?, inputs[1].contiguous()?, inputs[2].contiguous()?];
        let (out, lse) = match Backend::of(&[&q, &k, &v]) {
            Backend::Cpu => cpu::forward(self.sizes, [&q, &k, &v])?,
            #[cfg(feature = "cuda")]
            Backend::Cuda => match cuda::forward(self.sizes, [&q, &k, &v])? {
                Some((out, lse)) => (out, Some(lse)),
                None => (reference::attention(self.sizes, [&q, &k, &v])?, None),
            },
            Backend::Reference => (reference::attention(self.sizes, [&q, &k, &v])?, None),
        };
        Ok((out.clone(), needs.contains(&true).then_some(([q, k, v, out], lse))))
    }

    fn backward(&self, ([q, k, v, out], lse): Self::Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let gradient = gradient.contiguous()?;
        match (Backend::of(&[&q, &gradient]), &lse) {
            (Backend::Cpu, Some(lse)) => {
                let parts = cpu::backward(self.sizes, [&q, &k, &v], (&out, lse, &gradient))?;
                parts.into_iter().enumerate().try_for_each(|(input, part)| gradients.add(input, part))
            }
            #[cfg(feature = "cuda")]
            (Backend::Cuda, Some(lse)) => cuda::backward(self.sizes, [&q, &k, &v], (&out, lse, &gradient), gradients),
            _ => {
                let forward = |i: &[Tensor]| reference::attention(self.sizes, [&i[0], &i[1], &i[2]]);
                reference_backward(forward, &[q, k, v], &gradient, gradients)
            }
        }
    }
}

struct Probability {
    sizes: Sizes,
    range: Range<usize>,
}

impl Op for Probability {
    const NAME: &'static str = "attention-probability";
    /// q and k.
    type Saved = ([Tensor; 2], Lse);

    fn forward(&self, inputs: &[&Tensor], needs: &[bool]) -> Result<(Tensor, Option<Self::Saved>)> {
        let [q, k] = [inputs[0].contiguous()?, inputs[1].contiguous()?];
        let (out, lse) = match Backend::of(&[&q, &k]) {
            Backend::Cpu => (cpu::probability(self.sizes, &self.range, [&q, &k])?, None),
            #[cfg(feature = "cuda")]
            Backend::Cuda => match cuda::range_forward(self.sizes, &self.range, [&q, &k])? {
                Some((out, lse)) => (out, Some(lse)),
                None => (reference::probability(self.sizes, &self.range, [&q, &k])?, None),
            },
            Backend::Reference => (reference::probability(self.sizes, &self.range, [&q, &k])?, None),
        };
        Ok((out, needs.contains(&true).then_some(([q, k], lse))))
    }

    fn backward(&self, ([q, k], lse): Self::Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let gradient = gradient.contiguous()?;
        let parts = match (Backend::of(&[&q, &k]), &lse) {
            (Backend::Cpu, _) => cpu::probability_backward(self.sizes, &self.range, [&q, &k], &gradient)?,
            #[cfg(feature = "cuda")]
            (Backend::Cuda, Some(lse)) => cuda::range_backward(self.sizes, &self.range, [&q, &k], (lse, &gradient))?,
            _ => {
                let forward = |i: &[Tensor]| reference::probability(self.sizes, &self.range, [&i[0], &i[1]]);
                return reference_backward(forward, &[q, k], &gradient, gradients);
            }
        };
        parts.into_iter().enumerate().try_for_each(|(input, part)| gradients.add(input, part))
    }
}
