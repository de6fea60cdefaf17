//! The attention probability of a range of keys, a block of queries at a time.
use super::super::{Probability, Sizes};
use super::by_head::ByHead;
use crate::kernels::cpu::{softmax, sum, vectorised};
use crate::kernels::matrix::{Product, Start, View};
use crate::kernels::memory::Values;
use crate::ops::backend::{Cpu, Forward, Gradients, Saved};
use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;
use std::f32::consts::LOG2_E;

/// Queries whose scores are held at a time.
const BLOCK: usize = 128;

impl Sizes {
    /// Softmax scores of `rows` queries from `start` on, into `scores` `[rows, keys]`.
    fn probabilities(
        &self,
        scores: &mut [f32],
        q: &[f32],
        k: &[f32],
        pair: (usize, usize),
        (start, rows): (usize, usize),
    ) {
        let (q, k) = (self.head(q, self.queries, pair, start), self.head(k, self.keys, pair, 0).transposed());
        let product = Product::new((rows, self.head_dim(), self.keys), q, k);
        Product { scale: self.scale() * LOG2_E, ..product }.into(scores, self.keys);
        vectorised!({
            for row in scores[..rows * self.keys].chunks_exact_mut(self.keys) {
                row[self.keys - 1] += self.last_key_bias();
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
        pair: (usize, usize),
        (start, rows): (usize, usize),
    ) {
        let d = self.head_dim();
        let product = |shape, a, b, start| Product { scale: self.scale(), start, ..Product::new(shape, a, b) };
        let d_scores = View::rows(d_scores, self.keys);
        product((rows, self.keys, d), d_scores, self.head(k, self.keys, pair, 0), Start::Zero)
            .into(&mut dq[start * d..], d);
        let queries = self.head(q, self.queries, pair, start);
        product((self.keys, rows, d), d_scores.transposed(), queries, Start::Output).into(dk, d);
    }
}

impl Cpu for Probability {
    fn forward_cpu(&self, inputs: &[Tensor], _: &[bool]) -> Result<Forward> {
        let sizes = self.sizes;
        let (q, k) = (Values::of(&inputs[0])?, Values::of(&inputs[1])?);
        let columns = self.range.len();
        let mut out = vec![0f32; sizes.batch * sizes.queries * columns];
        let entries = out.par_chunks_mut(sizes.queries * columns).enumerate();
        let blocks = entries.flat_map(|(batch, out)| {
            out.par_chunks_mut(BLOCK * columns).enumerate().map(move |(block, out)| (batch, block * BLOCK, out))
        });
        blocks.for_each(|(batch, start, out)| {
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
        Ok((Tensor::from_vec(out, (sizes.batch, sizes.queries, columns), &Device::Cpu)?, vec![]))
    }

    fn backward_cpu(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let sizes = self.sizes;
        let (q, k, gradient) = (Values::of(saved.input(0)?)?, Values::of(saved.input(1)?)?, Values::of(&gradient)?);
        let (d, keys, columns) = (sizes.head_dim(), sizes.keys, self.range.len());
        let (all_dq, all_dk) = (ByHead::new(sizes, sizes.queries), ByHead::new(sizes, keys));
        sizes.pairs().into_par_iter().for_each(|pair| {
            let (mut dq, mut dk) = (vec![0.0; sizes.queries * d], vec![0.0; keys * d]);
            let mut scores = vec![0f32; BLOCK * keys];
            for start in (0..sizes.queries).step_by(BLOCK) {
                let rows = BLOCK.min(sizes.queries - start);
                sizes.probabilities(&mut scores, &q, &k, pair, (start, rows));
                let gradient = &gradient[(pair.0 * sizes.queries + start) * columns..];
                for (p, g) in scores.chunks_exact_mut(keys).zip(gradient.chunks_exact(columns)).take(rows) {
                    let before: Vec<f32> = p[self.range.clone()].to_vec();
                    let delta = sum(columns, |i| before[i] * g[i]);
                    for value in p.iter_mut() {
                        *value *= -delta / sizes.heads as f32;
                    }
                    for (i, value) in p[self.range.clone()].iter_mut().enumerate() {
                        *value += before[i] * g[i] / sizes.heads as f32;
                    }
                }
                sizes.score_gradients(&scores, (&q, &k), (&mut dq, &mut dk), pair, (start, rows));
            }
            for (part, all) in [(dq, &all_dq), (dk, &all_dk)] {
                // SAFETY: the head is this task's.
                unsafe { all.rows(pair, 0).write(&part) };
            }
        });
        // SAFETY: the tasks are all heads.
        let (dq, dk) = unsafe { (all_dq.into_tensor()?, all_dk.into_tensor()?) };
        gradients.add(0, dq)?;
        gradients.add(1, dk)
    }
}
