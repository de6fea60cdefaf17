//! Attention without a stored score matrix, and the attention probability of a range of keys.
//!
//! Scores are formed for a block of queries at a time, used, and formed again in the backward pass: memory grows with
//! `queries + keys`, not with their product.
mod streaming;

use super::function::{Function, Values, apply};
use crate::ops::kernels::cpu::{Product, Start, Threads, View, softmax, sum, vectorised};
use candle_core::{D, DType, Device, Result, Tensor};
use rayon::prelude::*;
use std::f32::consts::{LN_2, LOG2_E};
use std::ops::Range;
use std::sync::Mutex;
use streaming::{Head, Passed, Scratch};

/// Queries whose scores are held at a time.
const BLOCK: usize = 128;
/// Queries of a head that are one task.
const TASK: usize = 1024;
/// Score elements that the composed form holds at a time.
const COMPOSED_SCORES: usize = 1 << 28;

/// `softmax(q·kᵀ/√head_dim)·v` for each head, without mask (torch's `scaled_dot_product_attention`).
///
/// The last key stands for `last_key_count` equal ones, with equal values. q `[batch, queries, heads·head_dim]`, k and v
/// `[batch, keys, heads·head_dim]`; out as q.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, last_key_count: usize) -> Result<Tensor> {
    apply(Attention::new(heads, last_key_count), &[q, k, v])
}

/// Softmax attention over all keys, averaged over heads, for the keys in `range` only.
///
/// The last key stands for `last_key_count` equal ones. q `[batch, queries, heads·head_dim]`, k
/// `[batch, keys, heads·head_dim]`; out `[batch, queries, range]`.
pub fn attention_probability(
    q: &Tensor,
    k: &Tensor,
    heads: usize,
    range: Range<usize>,
    last_key_count: usize,
) -> Result<Tensor> {
    apply(Probability { heads, range, last_key_count }, &[q, k])
}

/// Sizes of one call, and the place of a head in its tensors.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    queries: usize,
    keys: usize,
    width: usize,
    heads: usize,
    /// Added to the last key's score, in units of log 2: equal keys are one key whose exponential counts as often.
    last_key_bias: f32,
}

impl Sizes {
    fn of(q: &Tensor, k: &Tensor, heads: usize, last_key_count: usize) -> Result<Self> {
        let (batch, queries, width) = q.dims3()?;
        let (k_batch, keys, k_width) = k.dims3()?;
        if batch != k_batch || width != k_width || heads == 0 || width % heads != 0 || keys == 0 || last_key_count == 0
        {
            candle_core::bail!("attention: q {:?}, k {:?}, {heads} heads", q.dims(), k.dims());
        }
        Ok(Self { batch, queries, keys, width, heads, last_key_bias: (last_key_count as f32).log2() })
    }

    fn head_dim(&self) -> usize {
        self.width / self.heads
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim() as f32).sqrt()
    }

    /// The rows from `start` on of one batch entry and head, in `data` `[batch, tokens, width]`.
    fn head<'a>(&self, data: &'a [f32], tokens: usize, batch: usize, head: usize, start: usize) -> View<'a> {
        let offset = (batch * tokens + start) * self.width + head * self.head_dim();
        View { data: &data[offset..], row_stride: self.width, column_stride: 1 }
    }

    /// One batch entry's and head's part of q, k and v.
    fn whole_head<'a>(&self, (q, k, v): (&'a [f32], &'a [f32], &'a [f32]), (batch, head): (usize, usize)) -> Head<'a> {
        Head {
            q: self.head(q, self.queries, batch, head, 0),
            k: self.head(k, self.keys, batch, head, 0),
            v: self.head(v, self.keys, batch, head, 0),
            queries: self.queries,
            keys: self.keys,
            head_dim: self.head_dim(),
            scale: self.scale(),
            last_key_bias: self.last_key_bias,
        }
    }

    /// Softmax scores of `rows` queries from `start` on, into `scores` `[rows, keys]`.
    fn probabilities(
        &self,
        scores: &mut [f32],
        q: &[f32],
        k: &[f32],
        (batch, head): (usize, usize),
        (start, rows): (usize, usize),
    ) {
        Product {
            shape: (rows, self.head_dim(), self.keys),
            a: self.head(q, self.queries, batch, head, start),
            b: self.head(k, self.keys, batch, head, 0).transposed(),
            scale: self.scale() * LOG2_E,
            start: Start::Zero,
            threads: Threads::One,
        }
        .into(scores, self.keys);
        vectorised!({
            for row in scores[..rows * self.keys].chunks_exact_mut(self.keys) {
                row[self.keys - 1] += self.last_key_bias;
                softmax(row);
            }
        });
    }

    /// From `d_scores` `[rows, keys]` to the gradients of q and k, both of one head: `[queries, head_dim]`, `[keys, …]`.
    fn score_gradients(
        &self,
        d_scores: &[f32],
        (q, k): (&[f32], &[f32]),
        (dq, dk): (&mut [f32], &mut [f32]),
        (batch, head): (usize, usize),
        (start, rows): (usize, usize),
    ) {
        let d = self.head_dim();
        let product = |shape, a, b, start| Product { shape, a, b, scale: self.scale(), start, threads: Threads::One };
        let d_scores = View::rows(d_scores, self.keys);
        product((rows, self.keys, d), d_scores, self.head(k, self.keys, batch, head, 0), Start::Zero)
            .into(&mut dq[start * d..], d);
        let queries = self.head(q, self.queries, batch, head, start);
        product((self.keys, rows, d), d_scores.transposed(), queries, Start::Output).into(dk, d);
    }

    /// Query blocks as (start, rows).
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let queries = self.queries;
        (0..queries).step_by(BLOCK).map(move |start| (start, BLOCK.min(queries - start)))
    }

    /// Calls `work(batch, start, rows of out)` for every block of queries; out is `[batch, queries, columns]`.
    fn for_each_block(&self, out: &mut [f32], columns: usize, work: impl Fn(usize, usize, &mut [f32]) + Sync) {
        out.par_chunks_mut(self.queries * columns).enumerate().for_each(|(batch, out)| {
            out.par_chunks_mut(BLOCK * columns).enumerate().for_each(|(block, out)| work(batch, block * BLOCK, out));
        });
    }

    /// Per-head results `[tokens, head_dim]` in (batch, head) order, put together as `[batch, tokens, width]`.
    fn join(&self, parts: &[Vec<f32>], tokens: usize) -> Result<Tensor> {
        let d = self.head_dim();
        let out = crate::ops::kernels::cpu::new_rows!(self.batch * tokens * self.width, self.width, |r, row| {
            let (batch, token) = (r / tokens, r % tokens);
            for (head, place) in row.chunks_exact_mut(d).enumerate() {
                place.copy_from_slice(&parts[batch * self.heads + head][token * d..][..d]);
            }
        });
        Tensor::from_vec(out, (self.batch, tokens, self.width), &Device::Cpu)
    }

    /// (batch, head) pairs in order.
    fn pairs(&self) -> Vec<(usize, usize)> {
        (0..self.batch).flat_map(|b| (0..self.heads).map(move |h| (b, h))).collect()
    }

    /// Softmax over all keys in candle's operations, handed to `use_scores` a chunk of queries at a time.
    fn composed(&self, q: &Tensor, k: &Tensor, use_scores: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let (q, k) = (self.split(q, self.queries)?, self.split(k, self.keys)?.t()?.contiguous()?);
        let chunk = (COMPOSED_SCORES / (self.batch * self.heads * self.keys)).clamp(1, self.queries);
        let mut bias = vec![0f32; self.keys];
        bias[self.keys - 1] = self.last_key_bias * LN_2;
        let bias = Tensor::from_vec(bias, self.keys, q.device())?;
        let mut parts = vec![];
        for start in (0..self.queries).step_by(chunk) {
            let q = q.narrow(2, start, chunk.min(self.queries - start))?.contiguous()?;
            let scores = (q.matmul(&k)?.to_dtype(DType::F32)? * f64::from(self.scale()))?.broadcast_add(&bias)?;
            let exp = scores.broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?.exp()?;
            let probability = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
            parts.push(use_scores(&probability)?);
        }
        Tensor::cat(&parts, 1)
    }

    /// `[batch, tokens, width]` to `[batch, heads, tokens, head_dim]`.
    fn split(&self, x: &Tensor, tokens: usize) -> Result<Tensor> {
        x.reshape((self.batch, tokens, self.heads, self.head_dim()))?.transpose(1, 2)?.contiguous()
    }
}

pub(super) struct Attention {
    heads: usize,
    last_key_count: usize,
    /// Logarithms to base 2 of the sums of exponentials `[batch, heads, queries]`, from the CPU's forward pass for its backward pass.
    log_sums: Mutex<Vec<f32>>,
}

impl Attention {
    pub(super) fn new(heads: usize, last_key_count: usize) -> Self {
        Self { heads, last_key_count, log_sums: Mutex::default() }
    }
}

impl Function for Attention {
    const NAME: &'static str = "attention";

    fn composed(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let sizes = Sizes::of(&inputs[0], &inputs[1], self.heads, self.last_key_count)?;
        let v = sizes.split(&inputs[2], sizes.keys)?;
        sizes.composed(&inputs[0], &inputs[1], |probability| {
            let out = probability.to_dtype(v.dtype())?.matmul(&v)?;
            out.transpose(1, 2)?.contiguous()?.flatten_from(2)
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, inputs: &[Tensor]) -> Result<Option<super::cuda::Forward>> {
        Sizes::of(&inputs[0], &inputs[1], self.heads, self.last_key_count)?;
        use super::cuda::attention::{Bounds, forward};
        forward(inputs, self.heads, self.last_key_count, Bounds::chosen())
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, of: &super::cuda::Backward) -> Result<super::cuda::Gradients> {
        use super::cuda::attention::{Bounds, backward};
        backward(of, self.heads, self.last_key_count, Bounds::chosen())
    }

    fn cpu_forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let sizes = Sizes::of(&inputs[0], &inputs[1], self.heads, self.last_key_count)?;
        let (q, k, v) = (Values::of(&inputs[0])?, Values::of(&inputs[1])?, Values::of(&inputs[2])?);
        let (q, k, v): (&[f32], &[f32], &[f32]) = (&q, &k, &v);
        let starts = (0..sizes.queries).step_by(TASK);
        let tasks: Vec<_> =
            sizes.pairs().into_iter().flat_map(|pair| starts.clone().map(move |at| (pair, at))).collect();
        let parts: Vec<(Vec<f32>, Vec<f32>)> = tasks
            .into_par_iter()
            .map_init(Scratch::default, |scratch, (pair, start)| {
                let queries = TASK.min(sizes.queries - start);
                let part = sizes.head(q, sizes.queries, pair.0, pair.1, start);
                Head { q: part, queries, ..sizes.whole_head((q, k, v), pair) }.forward(scratch)
            })
            .collect();
        if let Ok(mut log_sums) = self.log_sums.lock() {
            *log_sums = parts.iter().flat_map(|(_, log_sums)| log_sums).copied().collect();
        }
        let per_head = sizes.queries.div_ceil(TASK);
        let heads: Vec<Vec<f32>> = match per_head {
            1 => parts.into_iter().map(|(out, _)| out).collect(),
            _ => parts
                .chunks(per_head)
                .map(|parts| parts.iter().map(|(out, _)| &out[..]).collect::<Vec<_>>().concat())
                .collect(),
        };
        sizes.join(&heads, sizes.queries)
    }

    fn cpu_backward(
        &self,
        inputs: &[Tensor],
        output: &Tensor,
        grad: &Tensor,
        _: &[bool],
    ) -> Result<Vec<Option<Tensor>>> {
        let sizes = Sizes::of(&inputs[0], &inputs[1], self.heads, self.last_key_count)?;
        let (q, k, v) = (Values::of(&inputs[0])?, Values::of(&inputs[1])?, Values::of(&inputs[2])?);
        let (out, grad) = (Values::of(output)?, Values::of(grad)?);
        let [q, k, v, out, grad]: [&[f32]; 5] = [&q, &k, &v, &out, &grad];
        let log_sums = self.log_sums.lock().map(|mut kept| std::mem::take(&mut *kept)).unwrap_or_default();
        if log_sums.len() != sizes.batch * sizes.heads * sizes.queries {
            candle_core::bail!("{}: the forward pass kept nothing for the backward pass", Self::NAME);
        }
        let heads: Vec<[Vec<f32>; 3]> = sizes
            .pairs()
            .into_par_iter()
            .zip(log_sums.par_chunks_exact(sizes.queries))
            .map_init(Scratch::default, |scratch, (pair, log_sums)| {
                let of = |data| sizes.head(data, sizes.queries, pair.0, pair.1, 0);
                sizes.whole_head((q, k, v), pair).backward(Passed { out: of(out), grad: of(grad), log_sums }, scratch)
            })
            .collect();
        let mut parts = [vec![], vec![], vec![]];
        for head in heads {
            parts.iter_mut().zip(head).for_each(|(part, gradient)| part.push(gradient));
        }
        let tokens = [sizes.queries, sizes.keys, sizes.keys];
        parts.iter().zip(tokens).map(|(part, tokens)| sizes.join(part, tokens).map(Some)).collect()
    }
}

pub(super) struct Probability {
    pub(super) heads: usize,
    pub(super) range: Range<usize>,
    pub(super) last_key_count: usize,
}

impl Function for Probability {
    const NAME: &'static str = "attention-probability";

    fn composed(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let sizes = Sizes::of(&inputs[0], &inputs[1], self.heads, self.last_key_count)?;
        sizes.composed(&inputs[0], &inputs[1], |probability| {
            probability.narrow(3, self.range.start, self.range.len())?.mean(1)
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, inputs: &[Tensor]) -> Result<Option<super::cuda::Forward>> {
        Sizes::of(&inputs[0], &inputs[1], self.heads, self.last_key_count)?;
        super::cuda::attention::range_forward(inputs, self.heads, &self.range, self.last_key_count)
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, of: &super::cuda::Backward) -> Result<super::cuda::Gradients> {
        super::cuda::attention::range_backward(of, self.heads, &self.range, self.last_key_count)
    }

    fn cpu_forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let sizes = Sizes::of(&inputs[0], &inputs[1], self.heads, self.last_key_count)?;
        let (q, k) = (Values::of(&inputs[0])?, Values::of(&inputs[1])?);
        let columns = self.range.len();
        let mut out = vec![0f32; sizes.batch * sizes.queries * columns];
        sizes.for_each_block(&mut out, columns, |batch, start, out| {
            let rows = out.len() / columns;
            let mut scores = vec![0f32; rows * sizes.keys];
            for head in 0..sizes.heads {
                sizes.probabilities(&mut scores, &q, &k, (batch, head), (start, rows));
                for (out, scores) in out.chunks_exact_mut(columns).zip(scores.chunks_exact(sizes.keys)) {
                    for (out, p) in out.iter_mut().zip(&scores[self.range.clone()]) {
                        *out += p / sizes.heads as f32;
                    }
                }
            }
        });
        Tensor::from_vec(out, (sizes.batch, sizes.queries, columns), &Device::Cpu)
    }

    fn cpu_backward(&self, inputs: &[Tensor], _: &Tensor, grad: &Tensor, _: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let sizes = Sizes::of(&inputs[0], &inputs[1], self.heads, self.last_key_count)?;
        let (q, k, grad) = (Values::of(&inputs[0])?, Values::of(&inputs[1])?, Values::of(grad)?);
        let (q, k, grad): (&[f32], &[f32], &[f32]) = (&q, &k, &grad);
        let (d, keys, columns) = (sizes.head_dim(), sizes.keys, self.range.len());
        let heads: Vec<(Vec<f32>, Vec<f32>)> = sizes
            .pairs()
            .into_par_iter()
            .map(|(batch, head)| {
                let (mut dq, mut dk) = (vec![0.0; sizes.queries * d], vec![0.0; keys * d]);
                let mut scores = vec![0f32; BLOCK * keys];
                for (start, rows) in sizes.blocks() {
                    sizes.probabilities(&mut scores, q, k, (batch, head), (start, rows));
                    let grad = &grad[(batch * sizes.queries + start) * columns..];
                    for (p, g) in scores.chunks_exact_mut(keys).zip(grad.chunks_exact(columns)).take(rows) {
                        let in_range = &p[self.range.clone()];
                        let along = sum(columns, |i| in_range[i] * g[i]);
                        let before: Vec<f32> = in_range.to_vec();
                        for value in p.iter_mut() {
                            *value *= -along / sizes.heads as f32;
                        }
                        for (i, value) in p[self.range.clone()].iter_mut().enumerate() {
                            *value += before[i] * g[i] / sizes.heads as f32;
                        }
                    }
                    sizes.score_gradients(&scores, (q, k), (&mut dq, &mut dk), (batch, head), (start, rows));
                }
                (dq, dk)
            })
            .collect();
        let (dq, dk): (Vec<_>, Vec<_>) = heads.into_iter().unzip();
        Ok(vec![Some(sizes.join(&dq, sizes.queries)?), Some(sizes.join(&dk, keys)?)])
    }
}
