//! Cross-entropy over classes at every pixel of a larger label map.
use super::PixelCrossEntropy;
use crate::ops::kernels::cuda::transfer::upload;
use crate::ops::kernels::cuda::{Arg, Module, WARP, address, device_of, int, module, output, type_name};
use candle_core::{DType, Result, Tensor};

static KERNELS: Module = module!("pixel_cross_entropy");
const THREADS: usize = 256;
/// As in `pixel_cross_entropy.cu`: pixels of a thread.
const PIXELS: usize = 4;

/// Sizes as the kernels take them: `[classes, h, w, height, width]`.
fn sizes(maps: &Tensor, (height, width): (usize, usize)) -> Result<[Arg; 5]> {
    let (classes, h, w) = maps.dims3()?;
    Ok([int(classes)?, int(h)?, int(w)?, int(height)?, int(width)?])
}

/// maps `[classes, h, w]`; out `[1]`. With labels, weights and every pixel's log-sum-exp.
pub fn forward(of: &PixelCrossEntropy, maps: &Tensor) -> Result<Option<(Tensor, [Tensor; 3])>> {
    if type_name(&[maps]) != Some("f32") {
        return Ok(None);
    }
    let device = device_of(maps)?;
    let (height, width) = of.size;
    let labels = upload(&of.labels, (height, width), device)?;
    let weights = upload(&of.weights, of.weights.len(), device)?;
    let lse = output((height, width), DType::F32, maps)?;
    let blocks = (height * width).div_ceil(THREADS * PIXELS);
    let parts = output(blocks, DType::F32, maps)?;
    let loss = output(1, DType::F32, maps)?;
    let tensors = [maps, &labels, &weights, &lse, &parts];
    let mut args = tensors.map(address).into_iter().collect::<Result<Vec<_>>>()?;
    args.extend(sizes(maps, of.size)?);
    // SAFETY: a thread writes the sums of its pixels that have a class, a block its part.
    unsafe { KERNELS.launch(device, "pixel_cross_entropy_parts", [blocks, 1, 1], THREADS, &args)? }
    let args = [address(&parts)?, address(&loss)?, int(blocks)?, Arg::Float(of.total.recip() as f32)];
    // SAFETY: the parts are as many as blocks.
    unsafe { KERNELS.launch(device, "pixel_cross_entropy_finish", [1, 1, 1], WARP, &args)? }
    Ok(Some((loss, [labels, weights, lse])))
}

/// The gradient of the maps, from what [`forward`] left.
pub fn backward(
    of: &PixelCrossEntropy,
    maps: &Tensor,
    [labels, weights, lse]: &[Tensor; 3],
    gradient: &Tensor,
) -> Result<Tensor> {
    let d_maps = output(maps.shape(), DType::F32, maps)?;
    let tensors = [maps, labels, weights, lse, gradient, &d_maps];
    let mut args = tensors.map(address).into_iter().collect::<Result<Vec<_>>>()?;
    args.extend(sizes(maps, of.size)?);
    args.push(Arg::Float(of.total.recip() as f32));
    let grid = [maps.elem_count().div_ceil(THREADS / WARP), 1, 1];
    // SAFETY: the tensors are those of the forward pass; a warp writes one value of the maps' gradient.
    unsafe { KERNELS.launch(device_of(maps)?, "pixel_cross_entropy_backward", grid, THREADS, &args)? }
    Ok(d_maps)
}
