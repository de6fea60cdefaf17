//! Both norms in f32 in the host's memory, a row at a time.
use super::{EPSILON, LayerNormModulate, RmsNorm};
use crate::kernels::cpu::{new_rows, sum};
use crate::kernels::memory::Values;
use crate::ops::accumulate::add_rows;
use crate::ops::backend::{Cpu, Forward, Gradients, Saved};
use candle_core::{Device, Result, Tensor};

/// Mean and inverse standard deviation of a row.
#[inline(always)]
fn moments(row: &[f32]) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = sum(row.len(), |i| row[i]) / n;
    let variance = sum(row.len(), |i| (row[i] - mean) * (row[i] - mean)) / n;
    (mean, 1.0 / (variance + EPSILON as f32).sqrt())
}

/// `layer_norm(x)·(1 + scale) + shift` of one row.
#[inline(always)]
pub fn modulate_row(x: &[f32], shift: &[f32], scale: &[f32], out: &mut [f32]) {
    let (mean, inverse) = moments(x);
    for i in 0..out.len() {
        out[i] = (x[i] - mean) * inverse * (1.0 + scale[i]) + shift[i];
    }
}

/// Adds the gradient of a row's `x`, from that of its result, to `dx`.
#[inline(always)]
pub fn add_norm_row_backward(x: &[f32], dy: &[f32], scale: &[f32], dx: &mut [f32]) {
    let (width, n) = (x.len(), x.len() as f32);
    let (mean, inverse) = moments(x);
    let dnorm_mean = sum(width, |i| dy[i] * (1.0 + scale[i])) / n;
    let dnorm_norm_mean = sum(width, |i| dy[i] * (1.0 + scale[i]) * (x[i] - mean) * inverse) / n;
    for i in 0..dx.len() {
        dx[i] += inverse * (dy[i] * (1.0 + scale[i]) - dnorm_mean - (x[i] - mean) * inverse * dnorm_norm_mean);
    }
}

impl Cpu for LayerNormModulate {
    fn forward_cpu(&self, inputs: &[Tensor], _: &[bool]) -> Result<Forward> {
        let (_, tokens, width) = inputs[0].dims3()?;
        let (x, shift, scale) = (Values::of(&inputs[0])?, Values::of(&inputs[1])?, Values::of(&inputs[2])?);
        let y = new_rows!(x.len(), width, |r, out| {
            let entry = r / tokens * width;
            modulate_row(&x[r * width..][..width], &shift[entry..][..width], &scale[entry..][..width], out);
        });
        Ok((Tensor::from_vec(y, inputs[0].shape(), &Device::Cpu)?, vec![]))
    }

    fn backward_cpu(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let (_, tokens, width) = gradient.dims3()?;
        let (x, scale, dy) = (Values::of(saved.input(0)?)?, Values::of(saved.input(2)?)?, Values::of(&gradient)?);
        add_rows!(gradients, 0, gradient.shape(), width, |r, dx| {
            let scale = &scale[r / tokens * width..][..width];
            add_norm_row_backward(&x[r * width..][..width], &dy[r * width..][..width], scale, dx);
        })
    }
}

#[inline(always)]
fn inverse_rms(row: &[f32]) -> f32 {
    1.0 / (sum(row.len(), |i| row[i] * row[i]) / row.len() as f32 + EPSILON as f32).sqrt()
}

/// The weights of parts of the tokens, by row of `head_dim` values.
struct NormWeights<'a> {
    parts: Vec<(usize, Values<'a>)>,
    head_dim: usize,
    /// Rows of a token, and tokens of a batch entry.
    heads: usize,
    tokens: usize,
}

impl<'a> NormWeights<'a> {
    fn of(x: &Tensor, weights: &'a [(usize, Tensor)]) -> Result<Self> {
        let (_, tokens, width) = x.dims3()?;
        let head_dim = weights.first().map_or(width, |(_, weight)| weight.elem_count());
        let mut end = 0;
        let parts = weights.iter().map(|(tokens, weight)| {
            end += tokens;
            Ok((end, Values::of(weight)?))
        });
        Ok(Self { parts: parts.collect::<Result<_>>()?, head_dim, heads: width / head_dim, tokens })
    }

    #[inline(always)]
    fn row(&self, r: usize) -> &[f32] {
        let token = r / self.heads % self.tokens;
        let part = self.parts.iter().position(|(end, _)| token < *end).unwrap_or(0);
        &self.parts[part].1[..self.head_dim]
    }
}

impl Cpu for RmsNorm {
    fn forward_cpu(&self, inputs: &[Tensor], _: &[bool]) -> Result<Forward> {
        let weights = NormWeights::of(&inputs[0], &self.weights)?;
        let width = weights.head_dim;
        let x = Values::of(&inputs[0])?;
        let y = new_rows!(x.len(), width, |r, out| {
            let (row, weight) = (&x[r * width..][..width], weights.row(r));
            let inverse = inverse_rms(row);
            for i in 0..width {
                out[i] = row[i] * inverse * weight[i];
            }
        });
        Ok((Tensor::from_vec(y, inputs[0].shape(), &Device::Cpu)?, vec![]))
    }

    fn backward_cpu(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let weights = &NormWeights::of(saved.input(0)?, &self.weights)?;
        let width = weights.head_dim;
        let (x, dy) = (Values::of(saved.input(0)?)?, Values::of(&gradient)?);
        add_rows!(gradients, 0, gradient.shape(), width, |r, dx| {
            let (row, dy, weight) = (&x[r * width..][..width], &dy[r * width..][..width], weights.row(r));
            let inverse = inverse_rms(row);
            let projection = sum(width, |i| dy[i] * weight[i] * row[i]) / width as f32 * inverse * inverse;
            for i in 0..width {
                dx[i] += inverse * (dy[i] * weight[i] - row[i] * projection);
            }
        })
    }
}
