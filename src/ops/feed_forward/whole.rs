//! The feed-forward all rows at a time, for weights that would have to be prepared anew for every block.
use super::arguments::Arguments;
use crate::ops::kernels::cpu::{Product, Start, Threads, View, for_each_row, new_rows};
use crate::ops::norm::{modulate_row, norm_row_backward};
use crate::ops::pointwise::{gelu_derivative, gelu_value};

/// How much further apart rows of hidden values are than they are long: a width like 6144 would put the same places of all
/// rows into one set of the cache.
const APART: usize = 16;

/// `x·weightᵀ + bias`, weight `[outer, inner]`; the rows of x are `stride` apart.
fn layer((x, stride): (&[f32], usize), weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let (outer, inner) = (bias.len(), weight.len() / bias.len());
    Product {
        shape: (x.len() / stride, inner, outer),
        a: View::rows(x, stride),
        b: View::rows(weight, inner).transposed(),
        scale: 1.0,
        start: Start::Row(bias),
        threads: Threads::All,
    }
    .values()
}

/// `grad·weight`, weight `[outer, inner]`.
fn layer_backward(grad: &[f32], weight: &[f32], inner: usize) -> Vec<f32> {
    let outer = weight.len() / inner;
    Product {
        shape: (grad.len() / outer, outer, inner),
        a: View::rows(grad, outer),
        b: View::rows(weight, inner),
        scale: 1.0,
        start: Start::Zero,
        threads: Threads::All,
    }
    .values()
}

/// The output, and what goes into the GELU.
pub fn forward(of: &Arguments) -> (Vec<f32>, Vec<f32>) {
    let normed = new_rows!(of.x.len(), of.width, |r, out| {
        modulate_row(of.row(of.x, r), of.of_batch(of.shift, r), of.of_batch(of.scale, r), out);
    });
    let before = layer((&normed, of.width), of.up, of.up_bias);
    let stride = of.hidden + APART;
    let after = new_rows!(before.len() / of.hidden * stride, stride, |r, after| {
        let before = &before[r * of.hidden..][..of.hidden];
        after.iter_mut().zip(before).for_each(|(after, before)| *after = gelu_value(*before));
    });
    let mut out = layer((&after, stride), of.down, of.down_bias);
    for_each_row!(&mut out, of.width, |r, out| {
        let (x, gate) = (of.row(of.x, r), of.of_batch(of.gate, r));
        for i in 0..out.len() {
            out[i] = x[i] + gate[i] * out[i];
        }
    });
    (out, before)
}

/// The gradient of x.
pub fn backward(of: &Arguments, before: &[f32], grad: &[f32]) -> Vec<f32> {
    let mut d_out = new_rows!(grad.len(), of.width, |r, d| {
        let (grad, gate) = (of.row(grad, r), of.of_batch(of.gate, r));
        for i in 0..d.len() {
            d[i] = gate[i] * grad[i];
        }
    });
    let mut d_hidden = layer_backward(&d_out, of.down, of.hidden);
    for_each_row!(&mut d_hidden, of.hidden, |r, d| {
        d.iter_mut().zip(&before[r * of.hidden..]).for_each(|(d, before)| *d *= gelu_derivative(*before));
    });
    let d_normed = layer_backward(&d_hidden, of.up, of.width);
    for_each_row!(&mut d_out, of.width, |r, dx| {
        norm_row_backward(of.row(of.x, r), of.row(&d_normed, r), of.of_batch(of.scale, r), dx);
        dx.iter_mut().zip(of.row(grad, r)).for_each(|(dx, grad)| *dx += grad);
    });
    d_out
}
