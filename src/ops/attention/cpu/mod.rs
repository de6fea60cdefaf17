//! Attention in f32 in the host's memory: a head, or some queries of one, is a task.
mod head;
mod probability;

use super::Sizes;
use crate::ops::kernels::cpu::View;
use crate::ops::kernels::memory::Values;
use candle_core::{Device, Result, Tensor};
use head::{Head, Passed, Scratch};
pub use probability::{probability, probability_backward};
use rayon::prelude::*;

/// Queries of a head that are one task.
const TASK: usize = 1024;

impl Sizes {
    /// Added to the last key's score, in units of log 2: equal keys are one key whose exponential counts as often.
    fn last_key_bias(&self) -> f32 {
        (self.last_key_count as f32).log2()
    }

    /// The rows from `start` on of one batch entry and head, in `data` `[batch, tokens, width]`.
    fn head<'a>(&self, data: &'a [f32], tokens: usize, (batch, head): (usize, usize), start: usize) -> View<'a> {
        let offset = (batch * tokens + start) * self.width + head * self.head_dim();
        View { data: &data[offset..], row_stride: self.width, column_stride: 1 }
    }

    /// One batch entry's and head's part of q, k and v.
    fn whole_head<'a>(&self, [q, k, v]: [&'a [f32]; 3], pair: (usize, usize)) -> Head<'a> {
        Head {
            q: self.head(q, self.queries, pair, 0),
            k: self.head(k, self.keys, pair, 0),
            v: self.head(v, self.keys, pair, 0),
            queries: self.queries,
            keys: self.keys,
            head_dim: self.head_dim(),
            scale: self.scale(),
            last_key_bias: self.last_key_bias(),
        }
    }

    /// (batch entry, head) pairs in order.
    fn pairs(&self) -> Vec<(usize, usize)> {
        (0..self.batch).flat_map(|batch| (0..self.heads).map(move |head| (batch, head))).collect()
    }
}

/// A tensor `[batch, tokens, width]` whose heads are written by different tasks.
struct ByHead {
    values: Vec<f32>,
    tokens: usize,
    sizes: Sizes,
}

/// The place of one head's rows.
#[derive(Clone, Copy)]
struct HeadRows {
    first: *mut f32,
    width: usize,
    head_dim: usize,
}

// SAFETY: each head's rows are written by one task.
unsafe impl Send for HeadRows {}
// SAFETY: as above.
unsafe impl Sync for HeadRows {}

impl HeadRows {
    /// The rows of a batch entry of so many tokens and a head, from `start` on.
    fn of(self, (batch, head): (usize, usize), tokens: usize, start: usize) -> Self {
        let offset = (batch * tokens + start) * self.width + head * self.head_dim;
        Self { first: self.first.wrapping_add(offset), ..self }
    }

    /// # Safety
    /// The row is one of the head's, which one task has.
    unsafe fn row<'a>(self, row: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(row * self.width), self.head_dim) }
    }
}

impl ByHead {
    fn new(sizes: Sizes, tokens: usize) -> Self {
        Self { values: Vec::with_capacity(sizes.batch * tokens * sizes.width), tokens, sizes }
    }

    /// The rows of a batch entry and head, from `start` on.
    fn rows(&mut self) -> impl Fn((usize, usize), usize) -> HeadRows + Sync + use<> {
        let base =
            HeadRows { first: self.values.as_mut_ptr(), width: self.sizes.width, head_dim: self.sizes.head_dim() };
        let tokens = self.tokens;
        move |pair, start| base.of(pair, tokens, start)
    }

    /// # Safety
    /// All heads' rows have been written.
    unsafe fn into_tensor(mut self) -> Result<Tensor> {
        let shape = (self.sizes.batch, self.tokens, self.sizes.width);
        // SAFETY: the caller's promise.
        unsafe { self.values.set_len(self.sizes.batch * self.tokens * self.sizes.width) };
        Tensor::from_vec(self.values, shape, &Device::Cpu)
    }
}

/// The output, and the log-sum-exp of every query's scores in units of log 2, `[batch, heads, queries]`.
pub fn forward(sizes: Sizes, [q, k, v]: [&Tensor; 3]) -> Result<(Tensor, Option<Tensor>)> {
    let (q, k, v) = (Values::of(q)?, Values::of(k)?, Values::of(v)?);
    let inputs: [&[f32]; 3] = [&q, &k, &v];
    let starts = (0..sizes.queries).step_by(TASK);
    let tasks: Vec<_> = sizes.pairs().into_iter().flat_map(|pair| starts.clone().map(move |at| (pair, at))).collect();
    let mut out = ByHead::new(sizes, sizes.queries);
    let rows = out.rows();
    let lse: Vec<Vec<f32>> = tasks
        .into_par_iter()
        .map_init(Scratch::default, |scratch, (pair, start)| {
            let queries = TASK.min(sizes.queries - start);
            let part = sizes.head(inputs[0], sizes.queries, pair, start);
            // SAFETY: the rows are this task's.
            unsafe { Head { q: part, queries, ..sizes.whole_head(inputs, pair) }.forward(rows(pair, start), scratch) }
        })
        .collect();
    let lse = Tensor::from_vec(lse.concat(), (sizes.batch, sizes.heads, sizes.queries), &Device::Cpu)?;
    // SAFETY: the tasks are all heads and queries.
    Ok((unsafe { out.into_tensor()? }, Some(lse)))
}

/// Gradients of q, k and v, from the output, its log-sum-exp and its gradient.
pub fn backward(
    sizes: Sizes,
    [q, k, v]: [&Tensor; 3],
    (out, lse, gradient): (&Tensor, &Tensor, &Tensor),
) -> Result<[Tensor; 3]> {
    let (q, k, v) = (Values::of(q)?, Values::of(k)?, Values::of(v)?);
    let (out, lse, gradient) = (Values::of(out)?, Values::of(lse)?, Values::of(gradient)?);
    let [q, k, v, out, lse, gradient]: [&[f32]; 6] = [&q, &k, &v, &out, &lse, &gradient];
    let [mut dq, mut dk, mut dv] =
        [ByHead::new(sizes, sizes.queries), ByHead::new(sizes, sizes.keys), ByHead::new(sizes, sizes.keys)];
    let (dq_rows, dk_rows, dv_rows) = (dq.rows(), dk.rows(), dv.rows());
    sizes.pairs().into_par_iter().zip(lse.par_chunks_exact(sizes.queries)).for_each_init(
        Scratch::default,
        |scratch, (pair, lse)| {
            let of = |data| sizes.head(data, sizes.queries, pair, 0);
            let passed = Passed { out: of(out), gradient: of(gradient), lse };
            let rows = [dq_rows(pair, 0), dk_rows(pair, 0), dv_rows(pair, 0)];
            // SAFETY: the rows are this task's.
            unsafe { sizes.whole_head([q, k, v], pair).backward(passed, rows, scratch) };
        },
    );
    // SAFETY: the tasks are all heads.
    unsafe { Ok([dq.into_tensor()?, dk.into_tensor()?, dv.into_tensor()?]) }
}
