//! The cost of taking a map for a mask, for every pair: only the costs go back to the host.
use crate::kernels::cuda::transfer::{Download, upload};
use crate::kernels::cuda::{Arg, Module, address, device_of, int, module, output};
use candle_core::{DType, Result, Tensor};

static KERNELS: Module = module!("match_cost");
const THREADS: usize = 128;
/// Masks of a word, a bit each.
const MASKS: usize = 32;

/// maps `[maps, positions]` on the GPU, masks `[masks][positions]`; out `[maps, masks]`, on its way to the host.
pub fn match_cost(
    maps: &Tensor,
    masks: &[&[f32]],
    (focal_weight, dice_weight): (f64, f64),
    raw_logit: bool,
) -> Result<Download> {
    let maps = maps.detach().to_dtype(DType::F32)?.contiguous()?;
    let (count, positions) = maps.dims2()?;
    let mut words = vec![0u32; masks.len().div_ceil(MASKS) * positions];
    for (chunk, words) in masks.chunks(MASKS).zip(words.chunks_exact_mut(positions)) {
        for (bit, mask) in chunk.iter().enumerate() {
            for (word, held) in words.iter_mut().zip(*mask) {
                *word |= u32::from(*held > 0.5) << bit;
            }
        }
    }
    let areas: Vec<f32> = masks.iter().map(|mask| mask.iter().sum()).collect();
    let device = device_of(&maps)?;
    let words = upload(&words, (masks.len().div_ceil(MASKS), positions), device)?;
    let areas = upload(&areas, masks.len(), device)?;
    let costs = output((count, masks.len()), DType::F32, &maps)?;
    let mut args = [&maps, &words, &areas, &costs].map(address).into_iter().collect::<Result<Vec<_>>>()?;
    args.extend([int(positions)?, int(masks.len())?, int(usize::from(raw_logit))?]);
    args.extend([Arg::Float(focal_weight as f32), Arg::Float(dice_weight as f32)]);
    let grid = [count, masks.len().div_ceil(MASKS), 1];
    // SAFETY: the tensors have the sizes given.
    unsafe { KERNELS.launch(device, "match_cost", grid, THREADS, &args)? }
    Download::start(&costs)
}
