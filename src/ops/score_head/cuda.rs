//! The score head's forward pass. Its backward pass, over the few matched maps, is by cuBLAS: [`super::products`].
use super::{CHANNELS, Precision, ScoreHead};
use crate::kernels::cuda::Arg::{Int, Long};
use crate::kernels::cuda::{Module, device_of, largest_shared_memory, module, output, type_name};
use crate::ops::backend::{Cuda, Forward, Gradients, Reference, Saved};
use candle_core::{DType, Result, Tensor};

static KERNELS: Module = module!("score_head");
/// As in `score_head.cu`.
const TAPS: usize = 9;
/// Pixels of a block's tile.
const TILE: (usize, usize) = (8, 32);
const THREADS: usize = 256;
/// Bytes of `Shared` in `score_head.cu`.
const fn shared(halves: usize) -> usize {
    let (rows, columns, stride) = (TILE.0 + 2, TILE.1 + 2, CHANNELS + 8);
    let hidden = halves * rows * columns * stride * 2;
    let weights = 2 * halves * CHANNELS * stride * 2;
    hidden + weights + TAPS * CHANNELS * 4 + (rows + 2) * (columns + 2) * 4
}
/// Values of the second layer's shares that are held at a time.
const HELD: usize = 1 << 24;

impl Cuda for ScoreHead {
    fn forward_cuda(&self, inputs: &[Tensor]) -> Result<Option<Forward>> {
        let (maps, parameters) = (&inputs[0], &inputs[1]);
        if type_name(&[maps, parameters]) != Some("f32") {
            return Ok(None);
        }
        let (count, h, w) = maps.dims3()?;
        let (kernel, shared) = match self.0 {
            Precision::F32 => ("score_head_shares_f32", shared(2)),
            Precision::Bf16 => ("score_head_shares_bf16", shared(1)),
        };
        if largest_shared_memory(device_of(maps)?)? < shared {
            return Ok(None);
        }
        let weights = output((TAPS, 2, CHANNELS, CHANNELS), DType::BF16, maps)?;
        let blocks = (TAPS * CHANNELS * CHANNELS).div_ceil(THREADS);
        // SAFETY: a thread splits one of the second layer's weights.
        unsafe { KERNELS.launch("score_head_prepare", [blocks, 1, 1], THREADS, &[parameters, &weights], &[])? }
        let out = output(maps.shape(), DType::F32, maps)?;
        let chunk = (HELD / (TAPS * h * w)).clamp(1, count.max(1));
        let shares = output((chunk, TAPS, h, w), DType::F32, maps)?;
        for first in (0..count).step_by(chunk) {
            let held = chunk.min(count - first);
            let (maps, out) = (maps.narrow(0, first, held)?, out.narrow(0, first, held)?);
            let grid = [held, w.div_ceil(TILE.1), h.div_ceil(TILE.0)];
            let tensors = [&maps, parameters, &weights, &shares];
            // SAFETY: a block writes the shares of its tile's pixels, of `held` maps.
            unsafe { KERNELS.launch_sharing(kernel, grid, THREADS, shared, &tensors, &[Int(h), Int(w)])? }
            let (tensors, count) = ([&maps, &shares, parameters, &out], maps.elem_count());
            let (grid, sizes) = ([count.div_ceil(THREADS), 1, 1], [Long(count), Int(h), Int(w)]);
            // SAFETY: a thread writes one value of `held` maps.
            unsafe { KERNELS.launch("score_head_gather", grid, THREADS, &tensors, &sizes)? }
        }
        Ok(Some((out, vec![])))
    }

    fn backward_cuda(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        self.reference_backward(&[saved.input(0)?.clone(), saved.input(1)?.clone()], &gradient, gradients)
    }
}
