//! Layer norm with modulation and RMS norm, forward and backward.
use super::{
    Arg, Forward, Module, NULL, WARP, address, device_of, int, module, output, type_name, vector_width, widest,
};
use candle_core::{D, Result, Tensor};

static KERNELS: Module = module!("norm");
/// As in `norm.cu`: rows of a block.
const WARPS: usize = 8;

/// Launches a kernel on rows of x's last dimension: its tensors (absent ones are null), the number of rows, `sizes`, the
/// width. False if there is no kernel for their type.
fn launch(kernel: &str, x: &Tensor, tensors: &[Option<&Tensor>], sizes: &[usize]) -> Result<bool> {
    let present: Vec<&Tensor> = tensors.iter().copied().flatten().collect();
    let Some(type_name) = type_name(&present) else { return Ok(false) };
    let width = x.dim(D::Minus1)?;
    let rows = x.elem_count() / width;
    // Narrow rows are read in smaller pieces, so that all lanes have one.
    let widths = if width >= WARP * widest(x) { [widest(x), 2] } else { [2, 2] };
    let name = format!("{kernel}_{type_name}_{}", vector_width(&widths, width, &present)?);
    let mut args: Vec<Arg> = tensors.iter().map(|tensor| tensor.map_or(Ok(NULL), address)).collect::<Result<_>>()?;
    for size in [&[rows], sizes, &[width]].concat() {
        args.push(int(size)?);
    }
    // SAFETY: kernels take tensors of `rows` rows, or of one for each batch entry or for all, and these sizes.
    unsafe { KERNELS.launch(device_of(x)?, &name, [rows.div_ceil(WARPS), 1, 1], WARPS * WARP, &args)? }
    Ok(true)
}

/// x `[batch, tokens, width]`, shift and scale `[batch, width]`.
pub fn layer_norm_forward(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Option<Forward>> {
    let y = output(x.shape(), x.dtype(), x)?;
    let done = launch("layer_norm_forward", x, &[Some(x), Some(shift), Some(scale), Some(&y)], &[x.dim(1)?])?;
    Ok(done.then(|| (y, vec![])))
}

/// The gradient of x, and `more` added to it.
pub fn layer_norm_backward(x: &Tensor, scale: &Tensor, grad: &Tensor, more: Option<&Tensor>) -> Result<Option<Tensor>> {
    let dx = output(x.shape(), x.dtype(), x)?;
    let tensors = [Some(x), Some(scale), Some(grad), more, Some(&dx)];
    let done = launch("layer_norm_backward", x, &tensors, &[x.dim(1)?])?;
    Ok(done.then_some(dx))
}

/// x `[…, width]`, weight `[width]`.
pub fn rms_norm_forward(x: &Tensor, weight: &Tensor) -> Result<Option<Forward>> {
    let weight = weight.to_dtype(x.dtype())?;
    let y = output(x.shape(), x.dtype(), x)?;
    let done = launch("rms_norm_forward", x, &[Some(x), Some(&weight), Some(&y)], &[])?;
    Ok(done.then(|| (y, vec![])))
}

/// The gradient of x.
pub fn rms_norm_backward(x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
    let weight = weight.to_dtype(x.dtype())?;
    let dx = output(x.shape(), x.dtype(), x)?;
    let done = launch("rms_norm_backward", x, &[Some(x), Some(&weight), Some(grad), Some(&dx)], &[])?;
    Ok(done.then_some(dx))
}
