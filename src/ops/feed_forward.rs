//! The second half of a block's stream in one node: norm, modulation, MLP, gate and residual.
//!
//! Apart, these are five nodes, whose results and gradients go through memory each; here a block of rows goes through
//! them all, and the backward pass needs what goes into the GELU alone.
use super::cpu::{Product, Start, Threads, View, for_each_row, new_rows};
use super::function::{Function, Values, apply};
use super::norm::{layer_norm_modulate, modulate_row, norm_row_backward};
use super::pointwise::{gated_residual, gelu, gelu_derivative, gelu_value};
use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;
use std::sync::Mutex;

/// Rows that go through together where the weights stay in cache.
const ROWS: usize = 128;
/// Values of a weight that does.
const CACHED_WEIGHT: usize = 1 << 18;

/// Weight `[outer, inner]` and bias `[outer]` of a frozen layer.
#[derive(Clone)]
pub struct FrozenLayer {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
}

/// `x + gate·down(gelu(up(layer_norm(x)·(1 + scale) + shift)))` with frozen `up` and `down` (the MLP of diffusers'
/// `JointTransformerBlock`).
///
/// x `[batch, tokens, width]`; shift, scale and gate `[batch, width]`.
pub fn feed_forward(
    x: &Tensor,
    [shift, scale, gate]: [&Tensor; 3],
    up: FrozenLayer,
    down: FrozenLayer,
) -> Result<Tensor> {
    let kept = x.track_op().then(Mutex::default);
    let function = FeedForward { shift: shift.clone(), scale: scale.clone(), gate: gate.clone(), up, down, kept };
    // Elsewhere, and where an adapter sits on the modulation, the parts have gradients of their own.
    if !x.device().is_cpu() || [shift, scale, gate].iter().any(|constant| constant.track_op()) {
        return function.composed(std::slice::from_ref(x));
    }
    apply(function, &[x])
}

pub(super) struct FeedForward {
    pub(super) shift: Tensor,
    pub(super) scale: Tensor,
    pub(super) gate: Tensor,
    pub(super) up: FrozenLayer,
    pub(super) down: FrozenLayer,
    /// What goes into the GELU, `[rows, hidden]`, kept for the backward pass where there will be one.
    pub(super) kept: Option<Mutex<Vec<f32>>>,
}

/// The weights and modulation of a call in f32.
struct Constants {
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
    up: (Tensor, Tensor),
    down: (Tensor, Tensor),
}

/// How the rows of a call are cut.
struct Cut {
    tokens: usize,
    width: usize,
    hidden: usize,
    rows: usize,
    threads: Threads,
}

impl FrozenLayer {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        super::linear(x, &self.weight, self.bias.as_ref(), None)
    }

    /// Weight and bias in f32.
    fn values(&self) -> Result<(Tensor, Tensor)> {
        let bias = match &self.bias {
            Some(bias) => bias.to_dtype(DType::F32)?,
            None => Tensor::zeros(self.weight.dim(0)?, DType::F32, self.weight.device())?,
        };
        Ok((self.weight.to_dtype(DType::F32)?.contiguous()?, bias.contiguous()?))
    }
}

impl FeedForward {
    fn constants(&self) -> Result<Constants> {
        let of = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.contiguous();
        Ok(Constants {
            shift: of(&self.shift)?,
            scale: of(&self.scale)?,
            gate: of(&self.gate)?,
            up: self.up.values()?,
            down: self.down.values()?,
        })
    }

    fn cut(&self, x: &Tensor) -> Result<Cut> {
        let (batch, tokens, width) = x.dims3()?;
        let hidden = self.up.weight.dim(0)?;
        // Every block packs the weights anew, which pays only where they are small.
        let (rows, threads) = match width * hidden <= CACHED_WEIGHT {
            true => (ROWS, Threads::One),
            false => (batch * tokens, Threads::All),
        };
        Ok(Cut { tokens, width, hidden, rows, threads })
    }
}

impl Cut {
    /// `out = x·weightᵀ + bias`, weight `[outer, inner]`.
    fn layer(&self, x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
        let (outer, inner) = (bias.len(), weight.len() / bias.len());
        Product {
            shape: (out.len() / outer, inner, outer),
            a: View::rows(x, inner),
            b: View::rows(weight, inner).transposed(),
            scale: 1.0,
            start: Start::Row(bias),
            threads: self.threads,
        }
        .into(out, outer);
    }

    /// `grad·weight`, weight `[outer, inner]`.
    fn layer_backward(&self, grad: &[f32], weight: &[f32], inner: usize) -> Vec<f32> {
        let outer = weight.len() / inner;
        let rows = grad.len() / outer;
        Product {
            shape: (rows, outer, inner),
            a: View::rows(grad, outer),
            b: View::rows(weight, inner),
            scale: 1.0,
            start: Start::Zero,
            threads: self.threads,
        }
        .values()
    }

    /// The values of the batch entry that row `row` belongs to, in data `[batch, width]`.
    fn of_batch<'a>(&self, data: &'a [f32], row: usize) -> &'a [f32] {
        &data[row / self.tokens * self.width..][..self.width]
    }
}

impl Function for FeedForward {
    const NAME: &'static str = "feed-forward";

    fn composed(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let x = &inputs[0];
        let normed = layer_norm_modulate(x, &self.shift, &self.scale)?;
        let update = self.down.apply(&gelu(&self.up.apply(&normed)?)?)?;
        gated_residual(x, &update, &self.gate)
    }

    fn cpu_forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (cut, constants) = (self.cut(&inputs[0])?, self.constants()?);
        let (shift, scale, gate) =
            (Values::of(&constants.shift)?, Values::of(&constants.scale)?, Values::of(&constants.gate)?);
        let (up, up_bias) = (Values::of(&constants.up.0)?, Values::of(&constants.up.1)?);
        let (down, down_bias) = (Values::of(&constants.down.0)?, Values::of(&constants.down.1)?);
        let x = Values::of(&inputs[0])?;
        let (x, shift, scale, gate): (&[f32], &[f32], &[f32], &[f32]) = (&x, &shift, &scale, &gate);
        let (up, up_bias, down, down_bias): (&[f32], &[f32], &[f32], &[f32]) = (&up, &up_bias, &down, &down_bias);
        let Cut { width, hidden, rows, .. } = cut;
        let mut out = vec![0f32; x.len()];
        let block = |first: usize, before: &mut [f32], out: &mut [f32]| {
            let x = &x[first * width..][..out.len()];
            for_each_row!(out, width, |r, out| {
                let (shift, scale) = (cut.of_batch(shift, first + r), cut.of_batch(scale, first + r));
                modulate_row(&x[r * width..][..width], shift, scale, out);
            });
            cut.layer(out, up, up_bias, before);
            let after = new_rows!(before.len(), hidden, |r, after| {
                after.iter_mut().zip(&before[r * hidden..]).for_each(|(after, before)| *after = gelu_value(*before));
            });
            cut.layer(&after, down, down_bias, out);
            for_each_row!(out, width, |r, out| {
                let (x, gate) = (&x[r * width..][..width], cut.of_batch(gate, first + r));
                for i in 0..width {
                    out[i] = x[i] + gate[i] * out[i];
                }
            });
        };
        let blocks = out.par_chunks_mut(rows * width).enumerate();
        match &self.kept {
            Some(kept) => {
                let mut before = vec![0f32; x.len() / width * hidden];
                let blocks = blocks.zip(before.par_chunks_mut(rows * hidden));
                blocks.for_each(|((index, out), before)| block(index * rows, before, out));
                if let Ok(mut kept) = kept.lock() {
                    *kept = before;
                }
            }
            None => {
                blocks.for_each(|(index, out)| block(index * rows, &mut vec![0f32; out.len() / width * hidden], out))
            }
        }
        Tensor::from_vec(out, inputs[0].shape(), &Device::Cpu)
    }

    fn cpu_backward(&self, inputs: &[Tensor], _: &Tensor, grad: &Tensor, _: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let (cut, constants) = (self.cut(&inputs[0])?, self.constants()?);
        let (x, grad) = (Values::of(&inputs[0])?, Values::of(grad)?);
        let (scale, gate) = (Values::of(&constants.scale)?, Values::of(&constants.gate)?);
        let (up, down) = (Values::of(&constants.up.0)?, Values::of(&constants.down.0)?);
        let (x, grad, scale, gate): (&[f32], &[f32], &[f32], &[f32]) = (&x, &grad, &scale, &gate);
        let (up, down): (&[f32], &[f32]) = (&up, &down);
        let kept = self.kept.as_ref().and_then(|kept| kept.lock().ok().map(|mut kept| std::mem::take(&mut *kept)));
        let before = kept.unwrap_or_default();
        let Cut { width, hidden, rows, .. } = cut;
        if before.len() != x.len() / width * hidden {
            candle_core::bail!("{}: the forward pass kept nothing for the backward pass", Self::NAME);
        }
        let mut dx = vec![0f32; x.len()];
        dx.par_chunks_mut(rows * width).enumerate().for_each(|(index, dx)| {
            let first = index * rows;
            let (x, grad) = (&x[first * width..][..dx.len()], &grad[first * width..][..dx.len()]);
            for_each_row!(dx, width, |r, dy| {
                let (grad, gate) = (&grad[r * width..][..width], cut.of_batch(gate, first + r));
                for i in 0..width {
                    dy[i] = gate[i] * grad[i];
                }
            });
            let mut d_hidden = cut.layer_backward(dx, down, hidden);
            let before = &before[first * hidden..][..d_hidden.len()];
            for_each_row!(&mut d_hidden, hidden, |r, d| {
                d.iter_mut().zip(&before[r * hidden..]).for_each(|(d, before)| *d *= gelu_derivative(*before));
            });
            let d_normed = cut.layer_backward(&d_hidden, up, width);
            for_each_row!(dx, width, |r, dx| {
                let row = r * width..(r + 1) * width;
                norm_row_backward(&x[row.clone()], &d_normed[row.clone()], cut.of_batch(scale, first + r), dx);
                dx.iter_mut().zip(&grad[row]).for_each(|(dx, grad)| *dx += grad);
            });
        });
        Ok(vec![Some(Tensor::from_vec(dx, inputs[0].shape(), &Device::Cpu)?)])
    }
}
