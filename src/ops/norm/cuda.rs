//! Layer norm with modulation and RMS norm, forward and backward.
use super::{LayerNormModulate, RmsNorm};
use crate::kernels::cuda::{Arg, Module, WARP, module, output, type_name, vector_width, widest};
use crate::ops::accumulate::accumulate;
use crate::ops::backend::{Cuda, Forward, Gradients, Saved};
use candle_core::{D, Result, Tensor, bail};

static KERNELS: Module = module!("norm");
/// As in `norm.cu`: rows of a block.
const WARPS: usize = 8;

/// Launches a kernel on `rows` rows of `width` values: its tensors (absent ones are null), `sizes`, and the width.
fn launch(kernel: &str, (rows, width): (usize, usize), tensors: &[Option<&Tensor>], sizes: &[usize]) -> Result<()> {
    let present: Vec<&Tensor> = tensors.iter().copied().flatten().collect();
    let (Some(type_name), Some(first)) = (type_name(&present), present.first()) else {
        bail!("{kernel} on {:?}", present.iter().map(|tensor| tensor.dtype()).collect::<Vec<_>>());
    };
    // Narrow rows are read in smaller pieces, so that all lanes have one.
    let widths = if width >= WARP * widest(first) { [widest(first), 2] } else { [2, 2] };
    let name = format!("{kernel}_{type_name}_{}", vector_width(&widths, width, &present)?);
    let sizes: Vec<Arg> = [&[rows], sizes, &[width]].concat().into_iter().map(Arg::Int).collect();
    // SAFETY: kernels take tensors that have these rows, or one for each batch entry or for all, and these sizes.
    unsafe { KERNELS.launch(&name, [rows.div_ceil(WARPS), 1, 1], WARPS * WARP, tensors, &sizes) }
}

/// Rows of x's last dimension, and their width.
fn rows(x: &Tensor) -> Result<(usize, usize)> {
    let width = x.dim(D::Minus1)?;
    Ok((x.elem_count() / width.max(1), width))
}

/// x `[batch, tokens, width]`, shift and scale `[batch, width]`.
pub fn layer_norm_forward(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let y = output(x.shape(), x.dtype(), x)?;
    launch("layer_norm_forward", rows(x)?, &[Some(x), Some(shift), Some(scale), Some(&y)], &[x.dim(1)?])?;
    Ok(y)
}

impl Cuda for LayerNormModulate {
    fn forward_cuda(&self, inputs: &[Tensor]) -> Result<Option<Forward>> {
        Ok(Some((layer_norm_forward(&inputs[0], &inputs[1], &inputs[2])?, vec![])))
    }

    fn backward_cuda(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let (x, scale) = (saved.input(0)?, saved.input(2)?);
        accumulate(gradients, 0, (x.shape(), x.dtype(), x), |dx, adds| {
            layer_norm_backward_into(x, scale, &gradient, dx, adds)
        })
    }
}

/// Writes the gradient of x over `dx`, or adds it to what is there. Nobody else may hold `dx`.
pub fn layer_norm_backward_into(x: &Tensor, scale: &Tensor, gradient: &Tensor, dx: &Tensor, adds: bool) -> Result<()> {
    let tensors = [Some(x), Some(scale), Some(gradient), adds.then_some(dx), Some(dx)];
    launch("layer_norm_backward", rows(x)?, &tensors, &[x.dim(1)?])
}

/// Launches a kernel on the heads of each part of the tokens of x `[batch, tokens, heads·head_dim]`: `tensors(weight)`, the
/// number of rows, and which rows of a batch entry they are.
fn launch_parts<'a>(
    kernel: &str,
    x: &Tensor,
    weights: &'a [(usize, Tensor)],
    tensors: impl Fn(&'a Tensor) -> Vec<Option<&'a Tensor>>,
) -> Result<()> {
    let (batch, all, width) = x.dims3()?;
    let mut first = 0;
    for (tokens, weight) in weights {
        let heads = width / weight.elem_count();
        let sizes = [tokens * heads, first * heads, all * heads];
        launch(kernel, (batch * tokens * heads, weight.elem_count()), &tensors(weight), &sizes)?;
        first += tokens;
    }
    Ok(())
}

impl Cuda for RmsNorm {
    fn forward_cuda(&self, inputs: &[Tensor]) -> Result<Option<Forward>> {
        let x = &inputs[0];
        let y = output(x.shape(), x.dtype(), x)?;
        launch_parts("rms_norm_forward", x, &self.weights, |weight| vec![Some(x), Some(weight), Some(&y)])?;
        Ok(Some((y, vec![])))
    }

    fn backward_cuda(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let x = saved.input(0)?;
        accumulate(gradients, 0, (x.shape(), x.dtype(), x), |dx, adds| {
            launch_parts("rms_norm_backward", x, &self.weights, |weight| {
                vec![Some(x), Some(weight), Some(&gradient), adds.then_some(dx), Some(dx)]
            })
        })
    }
}
