//! The cost of taking a map for a mask, for every pair: only the costs go back to the host.
use crate::kernels::cuda::transfer::{Download, upload};
use crate::kernels::cuda::{
    Arg::{Float, Int},
    Module, device_of, module, output,
};
use candle_core::{DType, Result, Tensor};

static KERNELS: Module = module!("match_cost");
const THREADS: usize = 128;
/// Masks of a word, a bit each.
const MASKS: usize = 32;

/// maps `[maps, positions]` on the GPU, masks `[masks, positions]` and their areas; out `[maps, masks]`, on its way to the host.
pub fn match_cost(
    maps: &Tensor,
    masks: &[f32],
    areas: &[f32],
    (focal_weight, dice_weight): (f64, f64),
    raw_logit: bool,
) -> Result<Download> {
    let maps = maps.detach().to_dtype(DType::F32)?.contiguous()?;
    let (count, positions) = maps.dims2()?;
    let chunks = areas.len().div_ceil(MASKS);
    let mut words = vec![0u32; chunks * positions];
    for (chunk, words) in masks.chunks(MASKS * positions).zip(words.chunks_exact_mut(positions)) {
        for (bit, mask) in chunk.chunks_exact(positions).enumerate() {
            for (word, held) in words.iter_mut().zip(mask) {
                *word |= u32::from(*held > 0.5) << bit;
            }
        }
    }
    let device = device_of(&maps)?;
    let words = upload(&words, (chunks, positions), device)?;
    let on_gpu = upload(areas, areas.len(), device)?;
    let costs = output((count, areas.len()), DType::F32, &maps)?;
    let tensors = [&maps, &words, &on_gpu, &costs];
    let mut numbers = vec![Int(positions), Int(areas.len()), Int(raw_logit.into())];
    numbers.extend([Float(focal_weight as f32), Float(dice_weight as f32)]);
    // SAFETY: the tensors have the sizes given.
    unsafe { KERNELS.launch("match_cost", [count, chunks, 1], THREADS, &tensors, &numbers)? }
    Download::start(&costs)
}
