//! GELU, the gated residual, and sums in place.
use super::{
    Arg, Forward, Module, NULL, address, device_of, int, long, module, output, type_name, vector_width, widest,
};
use candle_core::{D, Result, Tensor, bail};

static KERNELS: Module = module!("pointwise");
const THREADS: usize = 256;

/// Launches a kernel on the values of `tensors[0]`, in pieces that do not cross the end of a row of `width`: the
/// tensors (absent ones are null), the number of values, `sizes`. False if there is no kernel for their type.
fn launch(kernel: &str, tensors: &[Option<&Tensor>], width: usize, sizes: &[usize]) -> Result<bool> {
    let present: Vec<&Tensor> = tensors.iter().copied().flatten().collect();
    let (Some(type_name), Some(first)) = (type_name(&present), present.first()) else { return Ok(false) };
    let count = first.elem_count();
    let vector = vector_width(&[widest(first)], width, &present)?;
    let mut args: Vec<Arg> = tensors.iter().map(|tensor| tensor.map_or(Ok(NULL), address)).collect::<Result<_>>()?;
    args.push(long(count));
    for size in sizes {
        args.push(int(*size)?);
    }
    let name = format!("{kernel}_{type_name}_{vector}");
    // SAFETY: kernels take tensors of `count` values, or of one row for each batch entry or for all, and these sizes.
    unsafe { KERNELS.launch(device_of(first)?, &name, [count.div_ceil(THREADS * vector), 1, 1], THREADS, &args)? }
    Ok(true)
}

/// GELU of `x + bias`: x `[…, width]`, bias `[width]` or none.
pub fn gelu_forward(x: &Tensor, bias: Option<&Tensor>) -> Result<Option<Forward>> {
    let width = x.dim(D::Minus1)?;
    let y = output(x.shape(), x.dtype(), x)?;
    let done = launch("gelu_forward", &[Some(x), bias, Some(&y)], width, &[width])?;
    Ok(done.then(|| (y, vec![])))
}

/// The gradient of x.
pub fn gelu_backward(x: &Tensor, bias: Option<&Tensor>, grad: &Tensor) -> Result<Option<Tensor>> {
    let width = x.dim(D::Minus1)?;
    let dx = output(x.shape(), x.dtype(), x)?;
    let done = launch("gelu_backward", &[Some(x), bias, Some(grad), Some(&dx)], width, &[width])?;
    Ok(done.then_some(dx))
}

/// `x + gate·(y + bias)`: x and y `[batch, tokens, width]`, bias `[width]` or none, gate `[batch, width]`.
pub fn gated_forward(x: &Tensor, y: &Tensor, bias: Option<&Tensor>, gate: &Tensor) -> Result<Option<Forward>> {
    let (_, tokens, width) = x.dims3()?;
    let out = output(x.shape(), x.dtype(), x)?;
    let tensors = [Some(x), Some(y), bias, Some(gate), Some(&out)];
    let done = launch("gated", &tensors, width, &[tokens, width])?;
    Ok(done.then(|| (out, vec![])))
}

/// The gradient of y.
pub fn gated_backward(grad: &Tensor, gate: &Tensor) -> Result<Option<Tensor>> {
    let (_, tokens, width) = grad.dims3()?;
    let dy = output(grad.shape(), grad.dtype(), grad)?;
    let done = launch("gated", &[None, Some(grad), None, Some(gate), Some(&dy)], width, &[tokens, width])?;
    Ok(done.then_some(dy))
}

/// `y += more + bias` in place: y and more `[rows, width]`, bias `[width]`. Nobody else may hold y.
pub fn add_to_rows(y: &Tensor, more: Option<&Tensor>, bias: Option<&Tensor>) -> Result<()> {
    let (_, width) = y.dims2()?;
    if more.is_none() && bias.is_none() {
        return Ok(());
    }
    if !launch("add_to_rows", &[Some(y), more, bias], width, &[width])? {
        bail!("no kernel adds to rows of {:?}", y.dtype());
    }
    Ok(())
}
