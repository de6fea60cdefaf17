//! The feed-forward all rows at a time, for weights that would have to be prepared anew for every block.
use super::arguments::Arguments;
use crate::kernels::cpu::{for_each_row, new_rows};
use crate::kernels::matrix::{Product, Start, Threads, View};
use crate::kernels::memory::Values;
use crate::ops::frozen_weight::FrozenWeight;
use crate::ops::norm::{add_norm_row_backward, modulate_row};
use crate::ops::pointwise::{gelu_derivative, gelu_value};
use candle_core::{DType, Result};

/// How much further apart rows of hidden values are than they are long: a width like 6144 would put the same places of all
/// rows into one set of the cache.
const APART: usize = 16;

/// `x·weightᵀ + bias`, weight `[outer, inner]`; the rows of x are `stride` apart.
fn layer((x, stride): (&[f32], usize), weight: &FrozenWeight, bias: &[f32]) -> Result<Vec<f32>> {
    let ((outer, inner), weight) = (weight.dims2()?, weight.in_type(DType::F32)?);
    let (weight, rows) = (Values::of(&weight)?, x.len() / stride);
    let product = Product::new((rows, inner, outer), View::rows(x, stride), View::rows(&weight, inner).transposed());
    Ok(Product { start: Start::Row(bias), threads: Threads::All, ..product }.values())
}

/// `grad·weight`, weight `[outer, inner]`.
fn layer_backward(grad: &[f32], weight: &FrozenWeight) -> Result<Vec<f32>> {
    let ((outer, inner), weight) = (weight.dims2()?, weight.in_type(DType::F32)?);
    let weight = Values::of(&weight)?;
    let product = Product::new((grad.len() / outer, outer, inner), View::rows(grad, outer), View::rows(&weight, inner));
    Ok(Product { threads: Threads::All, ..product }.values())
}

/// The output, and what goes into the GELU.
pub fn forward(of: &Arguments, x: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
    let normed = new_rows!(x.len(), of.width, |r, out| {
        modulate_row(of.row(x, r), of.entry(of.shift, r), of.entry(of.scale, r), out);
    });
    let before = layer((&normed, of.width), of.up, of.up_bias)?;
    let stride = of.hidden + APART;
    let after = new_rows!(before.len() / of.hidden * stride, stride, |r, after| {
        let before = &before[r * of.hidden..][..of.hidden];
        after.iter_mut().zip(before).for_each(|(after, before)| *after = gelu_value(*before));
    });
    let mut out = layer((&after, stride), of.down, of.down_bias)?;
    for_each_row!(&mut out, of.width, |r, out| {
        let (x, gate) = (of.row(x, r), of.entry(of.gate, r));
        for i in 0..out.len() {
            out[i] = x[i] + gate[i] * out[i];
        }
    });
    Ok((out, before))
}

/// Makes the output's gradient that of x, in place.
pub fn backward(of: &Arguments, x: &[f32], before: &[f32], gradient: &mut [f32]) -> Result<()> {
    let values: &[f32] = gradient;
    let d_out = new_rows!(values.len(), of.width, |r, d| {
        let (gradient, gate) = (of.row(values, r), of.entry(of.gate, r));
        for i in 0..d.len() {
            d[i] = gate[i] * gradient[i];
        }
    });
    let mut d_hidden = layer_backward(&d_out, of.down)?;
    for_each_row!(&mut d_hidden, of.hidden, |r, d| {
        d.iter_mut().zip(&before[r * of.hidden..]).for_each(|(d, before)| *d *= gelu_derivative(*before));
    });
    let d_normed = layer_backward(&d_hidden, of.up)?;
    for_each_row!(gradient, of.width, |r, dx| {
        add_norm_row_backward(of.row(x, r), of.row(&d_normed, r), of.entry(of.scale, r), dx);
    });
    Ok(())
}
