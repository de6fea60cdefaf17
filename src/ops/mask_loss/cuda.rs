//! Focal and dice loss of maps against masks of a larger size, which go to the GPU as bits.
use super::{MaskLoss, Target};
use crate::kernels::cuda::transfer::upload;
use crate::kernels::cuda::{
    Arg::{self, Float, Int},
    Module, WARP, device_of, module, output, type_name,
};
use crate::ops::backend::{Cuda, Forward, Gradients, Saved};
use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

static KERNELS: Module = module!("mask_loss");
const THREADS: usize = 256;
/// As in `mask_loss.cu`: rows of a block.
const ROWS: usize = 8;

/// Masks as bits, `[masks, height, ceil(width / 32)]`.
fn bits(targets: &[Arc<dyn Target>], (height, width): (usize, usize), like: &Tensor) -> Result<Tensor> {
    let words = width.div_ceil(32);
    let mut bits = vec![0u32; targets.len() * height * words];
    bits.par_chunks_mut(height * words).zip(targets).for_each(|(bits, target)| {
        let mut row = vec![0f32; width];
        for (y, bits) in bits.chunks_exact_mut(words).enumerate() {
            target.row(y, &mut row);
            for (word, pixels) in bits.iter_mut().zip(row.chunks(32)) {
                *word = pixels.iter().rev().fold(0, |word, pixel| word << 1 | u32::from(*pixel > 0.5));
            }
        }
    });
    upload(&bits, (targets.len(), height, words), device_of(like)?)
}

/// Sizes as the kernels take them: `[h, w, height, width]` and whether focal's probability is the logit.
fn sizes(of: &MaskLoss, maps: &Tensor) -> Result<[Arg; 5]> {
    let (_, h, w) = maps.dims3()?;
    Ok([Int(h), Int(w), Int(of.size.0), Int(of.size.1), Int(of.raw_logit.into())])
}

impl Cuda for MaskLoss {
    fn forward_cuda(&self, inputs: &[Tensor]) -> Result<Option<Forward>> {
        let maps = &inputs[0];
        if type_name(&[maps]) != Some("f32") {
            return Ok(None);
        }
        let (pairs, blocks) = (self.targets.len(), self.size.0.div_ceil(ROWS));
        let targets = bits(&self.targets, self.size, maps)?;
        let parts = output((pairs, blocks, 4), DType::F32, maps)?;
        let sums = output((pairs, 4), DType::F32, maps)?;
        let losses = output((2, pairs), DType::F32, maps)?;
        let (grid, tensors) = ([blocks, pairs, 1], [maps, &targets, &parts]);
        // SAFETY: a block writes the four parts of its rows.
        unsafe { KERNELS.launch("mask_loss_sums", grid, THREADS, &tensors, &sizes(self, maps)?)? }
        let pixels = (self.size.0 * self.size.1) as f32;
        let (tensors, numbers) = ([&parts, &sums, &losses], [Int(blocks), Float(pixels)]);
        // SAFETY: a block reads the parts of its pair, and writes its four sums and two losses.
        unsafe { KERNELS.launch("mask_loss_finish", [pairs, 1, 1], WARP, &tensors, &numbers)? }
        Ok(Some((losses, vec![targets, sums])))
    }

    fn backward_cuda(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let (maps, [targets, sums]) = (saved.input(0)?, saved.kept()?);
        let d_maps = output(maps.shape(), DType::F32, maps)?;
        let tensors = [maps, targets, sums, &gradient, &d_maps];
        let numbers: Vec<Arg> = std::iter::once(Int(maps.dim(0)?)).chain(sizes(self, maps)?).collect();
        let grid = [maps.elem_count().div_ceil(THREADS / WARP), 1, 1];
        // SAFETY: the tensors are those of the forward pass; a warp writes one value of the maps' gradient.
        unsafe { KERNELS.launch("mask_loss_backward", grid, THREADS, &tensors, &numbers)? }
        gradients.add(0, d_maps)
    }
}
