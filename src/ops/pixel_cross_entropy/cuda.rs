//! Cross-entropy over classes at every pixel of a larger label map.
use super::PixelCrossEntropy;
use crate::kernels::cuda::transfer::upload;
use crate::kernels::cuda::{
    Arg::{self, Float, Int},
    Module, WARP, device_of, module, output, type_name,
};
use crate::ops::backend::{Cuda, Forward, Gradients, Saved};
use candle_core::{DType, Result, Tensor};

static KERNELS: Module = module!("pixel_cross_entropy");
const THREADS: usize = 256;
/// As in `pixel_cross_entropy.cu`: pixels of a thread.
const PIXELS: usize = 4;

/// Sizes as the kernels take them: `[classes, h, w, height, width]`.
fn sizes(maps: &Tensor, (height, width): (usize, usize)) -> Result<[Arg; 5]> {
    let (classes, h, w) = maps.dims3()?;
    Ok([classes, h, w, height, width].map(Int))
}

impl Cuda for PixelCrossEntropy {
    fn forward_cuda(&self, inputs: &[Tensor]) -> Result<Option<Forward>> {
        let maps = &inputs[0];
        if type_name(&[maps]) != Some("f32") {
            return Ok(None);
        }
        let device = device_of(maps)?;
        let (height, width) = self.size;
        let labels = upload(&self.labels, (height, width), device)?;
        let weights = upload(&self.weights, self.weights.len(), device)?;
        let lse = output((height, width), DType::F32, maps)?;
        let blocks = (height * width).div_ceil(THREADS * PIXELS);
        let parts = output(blocks, DType::F32, maps)?;
        let loss = output(1, DType::F32, maps)?;
        let tensors = [maps, &labels, &weights, &lse, &parts];
        let sizes = sizes(maps, self.size)?;
        // SAFETY: a thread writes the sums of its pixels that have a class, a block its part.
        unsafe { KERNELS.launch("pixel_cross_entropy_parts", [blocks, 1, 1], THREADS, &tensors, &sizes)? }
        let numbers = [Int(blocks), Float(self.total.recip() as f32)];
        // SAFETY: the parts are as many as blocks.
        unsafe { KERNELS.launch("pixel_cross_entropy_finish", [1, 1, 1], WARP, &[&parts, &loss], &numbers)? }
        Ok(Some((loss, vec![labels, weights, lse])))
    }

    fn backward_cuda(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let (maps, [labels, weights, lse]) = (saved.input(0)?, saved.kept()?);
        let d_maps = output(maps.shape(), DType::F32, maps)?;
        let tensors = [maps, labels, weights, lse, &gradient, &d_maps];
        let numbers: Vec<Arg> = sizes(maps, self.size)?.into_iter().chain([Float(self.total.recip() as f32)]).collect();
        let grid = [maps.elem_count().div_ceil(THREADS / WARP), 1, 1];
        // SAFETY: the tensors are those of the forward pass; a warp writes one value of the maps' gradient.
        unsafe { KERNELS.launch("pixel_cross_entropy_backward", grid, THREADS, &tensors, &numbers)? }
        gradients.add(0, d_maps)
    }
}
