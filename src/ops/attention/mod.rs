//! Attention without a stored score matrix, and the attention probability of a range of keys.
//!
//! Scores are formed for a block of queries at a time, used, and formed again in the backward pass (FlashAttention): memory
//! grows with `queries + keys`, not with their product.
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reference;

use super::backend::{Variable, apply};
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

/// Inputs: q, k, v.
pub(super) struct Attention {
    pub sizes: Sizes,
}

/// Inputs: q, k.
pub(super) struct Probability {
    pub sizes: Sizes,
    pub range: Range<usize>,
}
