//! Attention of one head on the CPU: the scores of some queries at a time, or in the backward pass of some keys, are made,
//! used and forgotten. What the forward pass keeps is a number a query, the logarithm of its exponentials' sum. Scores are
//! in units of log 2, as a power of two takes fewer steps than one of e.
use super::super::Sizes;
use super::by_head::HeadRows;
use crate::kernels::cpu::{exp2, powers_of_two, sum, vectorised};
use crate::kernels::matrix::{Product, Start, Threads, View};
use crate::kernels::packed::{self, PackedA, PackedB, room};
use std::f32::consts::LOG2_E;

/// Queries whose matrices the backward pass prepares at a time.
const QUERIES: usize = 512;
/// Keys whose score gradients it holds; a multiple of the rows that go through together.
const KEYS: usize = 128;

fn rows_at_once() -> usize {
    packed::rows_at_once(KEYS)
}

/// Views of `[tokens, head_dim]`, rows together.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    pub q: View<'a>,
    pub k: View<'a>,
    pub v: View<'a>,
    /// As of all heads, but for the queries, which are those of `q`.
    pub sizes: Sizes,
}

/// What the backward pass needs besides: views of `[queries, head_dim]`.
#[derive(Clone, Copy)]
pub struct Passed<'a> {
    pub out: View<'a>,
    pub gradient: View<'a>,
    /// `[queries]`, in units of log 2.
    pub lse: &'a [f32],
}

fn row(view: View<'_>, index: usize, length: usize) -> &[f32] {
    &view.data[index * view.row_stride..][..length]
}

/// `from · factor`.
fn scale(from: &[f32], factor: f32, to: &mut [f32]) {
    vectorised!(to.iter_mut().zip(from).for_each(|(to, from)| *to = from * factor));
}

/// What a task works with, kept from one head to the next.
#[derive(Default)]
pub struct Scratch(Vec<Matrices>);

/// Matrices for one size of heads and, in the forward pass, one number of keys, in the backward pass of queries.
struct Matrices {
    head_dim: usize,
    tokens: usize,
    /// Rows of `head_dim` values.
    narrow: [PackedA; 2],
    /// Rows of `tokens` values.
    wide: [PackedA; 2],
    scaled: Vec<f32>,
    /// `[rows, room(tokens)]`
    scores: Vec<f32>,
    /// `[KEYS, room(tokens)]`
    d_scores: Vec<f32>,
    /// `[rows, room(head_dim)]`
    results: Vec<f32>,
}

impl Scratch {
    fn matrices(&mut self, head_dim: usize, tokens: usize) -> &mut Matrices {
        let place = self.0.iter().position(|of| (of.head_dim, of.tokens) == (head_dim, tokens));
        let place = place.unwrap_or_else(|| {
            self.0.push(Matrices::new(head_dim, tokens));
            self.0.len() - 1
        });
        &mut self.0[place]
    }
}

impl Matrices {
    fn new(head_dim: usize, tokens: usize) -> Self {
        let rows = |inner| std::array::from_fn(|_| PackedA::new(rows_at_once(), inner));
        Self {
            head_dim,
            tokens,
            narrow: rows(head_dim),
            wide: rows(tokens),
            scaled: vec![0.0; head_dim],
            scores: vec![0.0; rows_at_once() * room(tokens)],
            d_scores: vec![0.0; KEYS * room(tokens)],
            results: vec![0.0; rows_at_once() * room(head_dim)],
        }
    }
}

impl Head<'_> {
    /// Writes the output's rows; returns the log-sum-exp of every query's scores in units of log 2.
    ///
    /// # Safety
    /// `out` are rows for all queries, which nobody else uses.
    pub unsafe fn forward(&self, out: HeadRows, scratch: &mut Scratch) -> Vec<f32> {
        let (Sizes { queries, keys, .. }, head_dim) = (self.sizes, self.sizes.head_dim());
        let (score_scale, last_key_bias) = (self.sizes.scale() * LOG2_E, self.sizes.last_key_bias());
        let right_keys = PackedB::new(self.k.transposed(), (head_dim, keys), Threads::One);
        let right_values = PackedB::new(self.v, (keys, head_dim), Threads::One);
        let Matrices { narrow: [left_queries, _], wide: [left_weights, _], scaled, scores, results, .. } =
            scratch.matrices(head_dim, keys);
        let mut sums = [0f32; KEYS];
        let mut lse = vec![0f32; queries];
        for start in (0..queries).step_by(rows_at_once()) {
            let count = rows_at_once().min(queries - start);
            for r in 0..count {
                scale(row(self.q, start + r, head_dim), score_scale, scaled);
                left_queries.set(r, scaled);
            }
            right_keys.multiply(left_queries, count, None, scores);
            vectorised!({
                for (r, scores) in scores.chunks_exact_mut(room(keys)).take(count).enumerate() {
                    let scores = &mut scores[..keys];
                    scores[keys - 1] += last_key_bias;
                    let (largest, sum) = powers_of_two(scores);
                    left_weights.set(r, scores);
                    lse[start + r] = largest + sum.log2();
                    sums[r] = sum;
                }
            });
            right_values.multiply(left_weights, count, None, results);
            for (r, results) in results.chunks_exact(room(head_dim)).take(count).enumerate() {
                // SAFETY: the caller's promise.
                scale(results, 1.0 / sums[r], unsafe { out.row(start + r) });
            }
        }
        lse
    }

    /// Writes the rows of the gradients of q, k and v.
    ///
    /// # Safety
    /// `out` are rows for all queries, keys and values, which nobody else uses.
    pub unsafe fn backward(&self, passed: Passed, out: [HeadRows; 3], scratch: &mut Scratch) {
        let (Sizes { queries, keys, .. }, head_dim) = (self.sizes, self.sizes.head_dim());
        let mut gradients = [queries, keys, keys].map(|tokens| vec![0f32; tokens * head_dim]);
        for start in (0..queries).step_by(QUERIES) {
            let end = queries.min(start + QUERIES);
            let sizes = Sizes { queries: end - start, ..self.sizes };
            let head = Self { q: self.q.skip_rows(start), sizes, ..*self };
            let passed = Passed {
                out: passed.out.skip_rows(start),
                gradient: passed.gradient.skip_rows(start),
                lse: &passed.lse[start..end],
            };
            let [dq, dk, dv] = &mut gradients;
            head.add_gradients(passed, scratch, &mut dq[start * head_dim..end * head_dim], dk, dv);
        }
        for (gradient, out) in gradients.iter().zip(out) {
            // SAFETY: the caller's promise.
            unsafe { out.write(gradient) };
        }
    }

    /// Adds these queries' part. Scores are made the other way round, keys by queries: the rows of their gradients are
    /// then what the products for k and v take.
    fn add_gradients(&self, passed: Passed, scratch: &mut Scratch, dq: &mut [f32], dk: &mut [f32], dv: &mut [f32]) {
        let (Sizes { queries, keys, .. }, head_dim) = (self.sizes, self.sizes.head_dim());
        let (factor, last_key_bias) = (self.sizes.scale(), self.sizes.last_key_bias());
        let Passed { out, gradient, lse } = passed;
        let lse = &lse[..queries];
        let right_queries = PackedB::new(self.q, (queries, head_dim), Threads::One);
        let right_gradient = PackedB::new(gradient, (queries, head_dim), Threads::One);
        let right_queries_transposed = PackedB::new(self.q.transposed(), (head_dim, queries), Threads::One);
        let right_gradient_transposed = PackedB::new(gradient.transposed(), (head_dim, queries), Threads::One);
        // FlashAttention's Δ = rowsum(dO∘O).
        let delta: Vec<f32> = (0..queries)
            .map(|i| {
                let (out, gradient) = (row(out, i, head_dim), row(gradient, i, head_dim));
                vectorised!(sum(head_dim, |j| out[j] * gradient[j]))
            })
            .collect();
        let Matrices { narrow, wide, scaled, scores: weights, d_scores, results, .. } =
            scratch.matrices(head_dim, queries);
        let ([left_keys, left_values], [left_weights, left_d_scores]) = (narrow, wide);
        for start in (0..keys).step_by(rows_at_once()) {
            let count = rows_at_once().min(keys - start);
            for r in 0..count {
                scale(row(self.k, start + r, head_dim), factor * LOG2_E, scaled);
                left_keys.set(r, scaled);
                left_values.set(r, row(self.v, start + r, head_dim));
            }
            right_queries_transposed.multiply(left_keys, count, None, weights);
            let d_scores_here = &mut d_scores[start % KEYS * room(queries)..][..rows_at_once() * room(queries)];
            right_gradient_transposed.multiply(left_values, count, None, d_scores_here);
            let delta = &delta[..queries];
            vectorised!({
                let rows = weights.chunks_exact_mut(room(queries)).zip(d_scores_here.chunks_exact_mut(room(queries)));
                for (r, (weights, d_scores)) in rows.take(count).enumerate() {
                    let (weights, d_scores) = (&mut weights[..queries], &mut d_scores[..queries]);
                    let bias = if start + r + 1 == keys { last_key_bias } else { 0.0 };
                    for i in 0..queries {
                        weights[i] = exp2(weights[i] + bias - lse[i]);
                        d_scores[i] = weights[i] * (d_scores[i] - delta[i]);
                    }
                    left_weights.set(r, weights);
                    left_d_scores.set(r, d_scores);
                }
            });
            let mut add = |right: &PackedB, left: &PackedA, factor: f32, to: &mut [f32]| {
                right.multiply(left, count, None, results);
                let rows = results.chunks_exact(room(head_dim)).zip(to[start * head_dim..].chunks_exact_mut(head_dim));
                vectorised!({
                    for (from, to) in rows.take(count) {
                        to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
                    }
                });
            };
            add(&right_gradient, left_weights, 1.0, dv);
            add(&right_queries, left_d_scores, factor, dk);
            let end = start + count;
            if end % KEYS == 0 || end == keys {
                let first = (end - 1) / KEYS * KEYS;
                let d_scores = View::rows(d_scores, room(queries)).transposed();
                let product = Product::new((queries, end - first, head_dim), d_scores, self.k.skip_rows(first));
                Product { scale: factor, start: Start::Output, ..product }.into(dq, head_dim);
            }
        }
    }
}
