//! The feed-forward a block of rows at a time, for weights that stay in cache: what a row becomes is written as the next
//! product takes it.
use super::arguments::Arguments;
use crate::kernels::amx;
use crate::kernels::cpu::{vectorised, zeros};
use crate::kernels::matrix::{Threads, View};
use crate::kernels::memory::Values;
use crate::kernels::packed::{PackedA, PackedB, room};
use crate::ops::frozen_weight::FrozenWeight;
use crate::ops::norm::{add_norm_row_backward, modulate_row};
use crate::ops::pointwise::{gelu_derivative, gelu_value};
use candle_core::{DType, Result};
use rayon::prelude::*;

/// Rows of a block: more where the units need few instructions for them.
fn block_rows() -> usize {
    if amx::are_available() { 128 } else { 64 }
}

/// What a task works with.
struct Scratch {
    narrow: PackedA,
    wide: PackedA,
    row: Vec<f32>,
    hidden: Vec<f32>,
    results: Vec<f32>,
}

impl Scratch {
    fn new(of: &Arguments) -> Self {
        Self {
            narrow: PackedA::new(block_rows(), of.width),
            wide: PackedA::new(block_rows(), of.hidden),
            row: vec![0.0; of.width.max(of.hidden)],
            hidden: vec![0.0; block_rows() * room(of.hidden)],
            results: vec![0.0; block_rows() * room(of.width)],
        }
    }
}

/// A row with as many values as a row of results.
fn with_room(row: &[f32]) -> Vec<f32> {
    let mut row = row.to_vec();
    row.resize(room(row.len()), 0.0);
    row
}

/// A weight `[outer, inner]`, or its transpose, as a right matrix.
fn packed(weight: &FrozenWeight, is_transposed: bool) -> Result<PackedB> {
    let (outer, inner) = weight.dims2()?;
    let weight = weight.in_type(DType::F32)?;
    let (values, sizes) = (Values::of(&weight)?, if is_transposed { (inner, outer) } else { (outer, inner) });
    let rows = View::rows(&values, inner);
    Ok(PackedB::new(if is_transposed { rows.transposed() } else { rows }, sizes, Threads::All))
}

/// The output, and what goes into the GELU for [`backward`] where `keep`.
pub fn forward(of: &Arguments, x: &[f32], keep: bool) -> Result<(Vec<f32>, Vec<f32>)> {
    let &Arguments { width, hidden, .. } = of;
    let (up, down) = (packed(of.up, true)?, packed(of.down, true)?);
    let (up_bias, down_bias) = (with_room(of.up_bias), with_room(of.down_bias));
    let block = |index: usize, out: &mut [f32], scratch: &mut Scratch, kept: Option<&mut [f32]>| {
        let Scratch { narrow, wide, row, hidden: own, results } = scratch;
        let before = kept.unwrap_or(own);
        let (first, count) = (index * block_rows(), out.len() / width);
        vectorised!(for r in 0..count {
            let (shift, scale) = (of.entry(of.shift, first + r), of.entry(of.scale, first + r));
            modulate_row(of.row(x, first + r), shift, scale, &mut row[..width]);
            narrow.set(r, &row[..width]);
        });
        up.multiply(narrow, count, Some(&up_bias), before);
        vectorised!(for r in 0..count {
            let (before, after) = (&before[r * room(hidden)..][..hidden], &mut row[..hidden]);
            after.iter_mut().zip(before).for_each(|(after, before)| *after = gelu_value(*before));
            wide.set(r, after);
        });
        down.multiply(wide, count, Some(&down_bias), results);
        vectorised!(for (r, out) in out.chunks_exact_mut(width).enumerate() {
            let (x, gate) = (of.row(x, first + r), of.entry(of.gate, first + r));
            let update = &results[r * room(width)..][..width];
            for i in 0..width {
                out[i] = x[i] + gate[i] * update[i];
            }
        });
    };
    // Rows of memory are first touched by the task that fills them.
    let (mut out, mut kept) = (Vec::with_capacity(x.len()), Vec::new());
    let blocks = out.spare_capacity_mut()[..x.len()].par_chunks_mut(block_rows() * width).enumerate();
    let scratch = || Scratch::new(of);
    if keep {
        let length = (of.rows).next_multiple_of(block_rows()) * room(hidden);
        kept.reserve_exact(length);
        let chunks = kept.spare_capacity_mut()[..length].par_chunks_mut(block_rows() * room(hidden));
        blocks.zip(chunks).for_each_init(scratch, |scratch, ((index, out), kept)| {
            block(index, zeros(out), scratch, Some(zeros(kept)))
        });
        // SAFETY: the tasks have written all of it.
        unsafe { kept.set_len(length) };
    } else {
        blocks.for_each_init(scratch, |scratch, (index, out)| block(index, zeros(out), scratch, None));
    }
    // SAFETY: as above.
    unsafe { out.set_len(x.len()) };
    Ok((out, kept))
}

/// Makes the output's gradient that of x, in place.
pub fn backward(of: &Arguments, x: &[f32], before: &[f32], gradient: &mut [f32]) -> Result<()> {
    let &Arguments { width, hidden, .. } = of;
    let (up, down) = (packed(of.up, false)?, packed(of.down, false)?);
    gradient.par_chunks_mut(block_rows() * width).enumerate().for_each_init(
        || Scratch::new(of),
        |scratch, (index, gradient)| {
            let Scratch { narrow, wide, row, hidden: d_hidden, results } = scratch;
            let (first, count) = (index * block_rows(), gradient.len() / width);
            vectorised!(for r in 0..count {
                let (gradient, gate) = (of.row(gradient, r), of.entry(of.gate, first + r));
                for (i, d) in row[..width].iter_mut().enumerate() {
                    *d = gate[i] * gradient[i];
                }
                narrow.set(r, &row[..width]);
            });
            down.multiply(narrow, count, None, d_hidden);
            vectorised!(for r in 0..count {
                let before = &before[(first + r) * room(hidden)..][..hidden];
                let d = &mut d_hidden[r * room(hidden)..][..hidden];
                d.iter_mut().zip(before).for_each(|(d, before)| *d *= gelu_derivative(*before));
                wide.set(r, d);
            });
            up.multiply(wide, count, None, results);
            vectorised!(for (r, dx) in gradient.chunks_exact_mut(width).enumerate() {
                let d_normed = &results[r * room(width)..][..width];
                add_norm_row_backward(of.row(x, first + r), d_normed, of.entry(of.scale, first + r), dx);
            });
        },
    );
    Ok(())
}
