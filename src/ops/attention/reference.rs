//! Attention in candle's operations, the scores of some queries at a time.
use super::{Attention, Probability, Sizes};
use crate::ops::backend::Reference;
use candle_core::{D, DType, Result, Tensor};
use std::ops::Range;

/// Scores that are held at a time.
const SCORES: usize = 1 << 28;

impl Reference for Attention {
    fn reference(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let v = split(self.sizes, &inputs[2])?;
        with_probability(self.sizes, &inputs[0], &inputs[1], |probability| {
            let out = probability.to_dtype(v.dtype())?.matmul(&v)?;
            out.transpose(1, 2)?.contiguous()?.flatten_from(2)
        })
    }
}

impl Reference for Probability {
    fn reference(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let Range { start, end } = self.range;
        with_probability(self.sizes, &inputs[0], &inputs[1], |probability| {
            probability.narrow(3, start, end - start)?.mean(1)
        })
    }
}

/// Joins what `use_scores` makes of the softmax over all keys, `[batch, heads, some queries, keys]`.
fn with_probability(
    sizes: Sizes,
    q: &Tensor,
    k: &Tensor,
    use_scores: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let Sizes { batch, queries, keys, heads, last_key_count, .. } = sizes;
    let (q, k) = (split(sizes, q)?, split(sizes, k)?.t()?.contiguous()?);
    let chunk = (SCORES / (batch * heads * keys)).clamp(1, queries);
    let mut bias = vec![0f32; keys];
    bias[keys - 1] = (last_key_count as f32).ln();
    let bias = Tensor::from_vec(bias, keys, q.device())?;
    let mut parts = vec![];
    for start in (0..queries).step_by(chunk) {
        let q = q.narrow(2, start, chunk.min(queries - start))?.contiguous()?;
        let scores = (q.matmul(&k)?.to_dtype(DType::F32)? * f64::from(sizes.scale()))?.broadcast_add(&bias)?;
        let exp = scores.broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?.exp()?;
        parts.push(use_scores(&exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?)?);
    }
    Tensor::cat(&parts, 1)
}

/// `[batch, tokens, width]` to `[batch, heads, tokens, head_dim]`.
fn split(sizes: Sizes, x: &Tensor) -> Result<Tensor> {
    x.reshape((sizes.batch, x.dim(1)?, sizes.heads, sizes.head_dim()))?.transpose(1, 2)?.contiguous()
}
