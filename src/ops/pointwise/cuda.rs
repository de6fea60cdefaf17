//! GELU, SwiGLU, the gated residual, and rows that begin as a bias.
use super::{GatedResidual, Gelu, SwiGlu};
use crate::kernels::cuda::{Arg, Module, module, output, type_name, vector_width, widest};
use crate::ops::backend::{Cuda, Forward, Gradients, Saved};
use candle_core::{D, Result, Tensor, bail};
use std::ops::Range;

static KERNELS: Module = module!("pointwise");
const THREADS: usize = 256;

/// Launches a kernel on `count` values, in pieces that do not cross the end of a row of `width`: the tensors (absent ones are
/// null), the number of values, `sizes`.
fn launch(kernel: &str, tensors: &[Option<&Tensor>], count: usize, width: usize, sizes: &[usize]) -> Result<()> {
    let present: Vec<&Tensor> = tensors.iter().copied().flatten().collect();
    let (Some(type_name), Some(first)) = (type_name(&present), present.first()) else {
        bail!("{kernel} on {:?}", present.iter().map(|tensor| tensor.dtype()).collect::<Vec<_>>());
    };
    let vector = vector_width(&[widest(first)], width, &present)?;
    let (name, grid) = (format!("{kernel}_{type_name}_{vector}"), [count.div_ceil(THREADS * vector), 1, 1]);
    let sizes: Vec<Arg> = std::iter::once(Arg::Long(count)).chain(sizes.iter().copied().map(Arg::Int)).collect();
    // SAFETY: kernels take tensors of `count` values, or of one row for each batch entry or for all, and these sizes.
    unsafe { KERNELS.launch(&name, grid, THREADS, tensors, &sizes) }
}

/// GELU of `x + bias`: x `[…, width]`, bias `[width]` or none.
pub fn gelu_forward(x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    let y = output(x.shape(), x.dtype(), x)?;
    launch("gelu_forward", &[Some(x), bias, Some(&y)], x.elem_count(), width, &[width])?;
    Ok(y)
}

/// The gradient of x, from `gradient` of its GELU, over which it is written: nobody else may hold that.
pub fn gelu_backward(x: &Tensor, bias: Option<&Tensor>, gradient: &Tensor) -> Result<()> {
    let width = x.dim(D::Minus1)?;
    launch("gelu_backward", &[Some(x), bias, Some(gradient)], x.elem_count(), width, &[width])
}

/// `x + gate·(y + bias)`: x and y `[batch, tokens, width]`, bias `[width]` or none, gate `[batch, width]`.
pub fn gated_forward(x: &Tensor, y: &Tensor, bias: Option<&Tensor>, gate: &Tensor) -> Result<Tensor> {
    let (_, tokens, width) = x.dims3()?;
    let out = output(x.shape(), x.dtype(), x)?;
    let tensors = [Some(x), Some(y), bias, Some(gate), Some(&out)];
    launch("gated", &tensors, x.elem_count(), width, &[tokens, width])?;
    Ok(out)
}

/// The gradient of y.
pub fn gated_backward(gradient: &Tensor, gate: &Tensor) -> Result<Tensor> {
    let (_, tokens, width) = gradient.dims3()?;
    let dy = output(gradient.shape(), gradient.dtype(), gradient)?;
    let tensors = [None, Some(gradient), None, Some(gate), Some(&dy)];
    launch("gated", &tensors, gradient.elem_count(), width, &[tokens, width])?;
    Ok(dy)
}

/// Writes `bias` `[width]` to some rows of every batch entry of y `[batch, all, width]`.
pub fn fill_rows(y: &Tensor, bias: &Tensor, (batch, rows, all): (usize, Range<usize>, usize)) -> Result<()> {
    let width = bias.elem_count();
    if batch * all * width != y.elem_count() || rows.end > all {
        bail!("rows {rows:?} of {all} of {:?}", y.dims());
    }
    let count = batch * rows.len() * width;
    launch("fill_rows", &[Some(y), Some(bias)], count, width, &[width, rows.len(), rows.start, all])
}

impl Cuda for Gelu {
    fn forward_cuda(&self, inputs: &[Tensor]) -> Result<Option<Forward>> {
        Ok(Some((gelu_forward(&inputs[0], None)?, vec![])))
    }

    fn backward_cuda(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        gelu_backward(saved.input(0)?, None, &gradient)?;
        gradients.add(0, gradient)
    }
}

impl Cuda for SwiGlu {
    fn forward_cuda(&self, inputs: &[Tensor]) -> Result<Option<Forward>> {
        let (x, (shape, width)) = (&inputs[0], Self::output(&inputs[0]));
        let y = output(shape, x.dtype(), x)?;
        launch("swiglu_forward", &[Some(x), Some(&y)], y.elem_count(), width, &[width])?;
        Ok(Some((y, vec![])))
    }

    fn backward_cuda(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let x = saved.input(0)?;
        let (_, width) = Self::output(x);
        let dx = output(x.shape(), x.dtype(), x)?;
        launch("swiglu_backward", &[Some(x), Some(&gradient), Some(&dx)], gradient.elem_count(), width, &[width])?;
        gradients.add(0, dx)
    }
}

impl Cuda for GatedResidual {
    fn forward_cuda(&self, inputs: &[Tensor]) -> Result<Option<Forward>> {
        Ok(Some((gated_forward(&inputs[0], &inputs[1], None, &inputs[2])?, vec![])))
    }

    fn backward_cuda(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        gradients.add_with(1, || gated_backward(&gradient, saved.input(2)?))?;
        gradients.add(0, gradient)
    }
}
