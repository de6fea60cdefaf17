//! The cost of taking a map for a mask, for every pair: what Hungarian matching minimises. No gradients.
#[cfg(feature = "cuda")]
mod cuda;

use super::mask_loss::{ALPHA, soft};
use crate::kernels::cpu::{sigmoid, sum, vectorised};
use crate::kernels::matrix::{Product, View};
use crate::kernels::memory::Values;
use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

/// The costs of all pairs, `[maps][masks]`, which may still be on their way from a GPU.
pub enum Costs {
    /// Costs in host memory.
    Here(Vec<Vec<f32>>),
    /// Costs on their way from a GPU.
    #[cfg(feature = "cuda")]
    Coming {
        /// `[maps·masks]`
        costs: crate::kernels::cuda::transfer::Download,
        /// Masks of a map.
        masks: usize,
    },
}

impl Costs {
    /// The costs; waits for them, and for nothing that the GPU was given after them.
    pub fn wait(self) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Here(costs) => Ok(costs),
            #[cfg(feature = "cuda")]
            Self::Coming { costs, masks } => Ok(costs.values()?.chunks_exact(masks).map(<[f32]>::to_vec).collect()),
        }
    }
}

/// `focal_weight·focal + dice_weight·dice` between maps `[maps, positions]` (logits) and masks `[masks, positions]`
/// (zeros and ones on the CPU, one mask at least; MaskFormer's `HungarianMatcher`, without its class term).
///
/// With `raw_logit`, focal's probability is the logit itself, as in Seg4Diff's released code.
pub fn match_cost(
    maps: &Tensor,
    masks: &Tensor,
    (focal_weight, dice_weight): (f64, f64),
    raw_logit: bool,
) -> Result<Costs> {
    let (_, positions) = maps.dims2()?;
    let (masks_count, masks) = (masks.dim(0)?, Values::of(masks)?);
    let areas: Vec<f32> = masks.chunks_exact(positions).map(|mask| mask.iter().sum()).collect();
    #[cfg(feature = "cuda")]
    if maps.device().is_cuda() {
        let costs = cuda::match_cost(maps, &masks, &areas, (focal_weight, dice_weight), raw_logit)?;
        return Ok(Costs::Coming { costs, masks: masks_count });
    }
    let maps = maps.detach().to_dtype(DType::F32)?.to_device(&Device::Cpu)?.contiguous()?;
    let maps = Values::of(&maps)?;
    let costs = maps.par_chunks(positions * ROWS).flat_map_iter(|logits| {
        let rows = logits.len() / positions;
        // Focal splits into a sum over the mask and one over everything: neg + (pos − neg)·t.
        let (mut focal, mut probability) = (vec![0f32; logits.len()], vec![0f32; logits.len()]);
        let mut sums = vec![(0f32, 0f32); rows];
        let mut negative = vec![0f32; positions];
        vectorised!({
            for (row, sums) in sums.iter_mut().enumerate() {
                let start = row * positions;
                let (logits, focal) = (&logits[start..][..positions], &mut focal[start..][..positions]);
                let (probability, negative) = (&mut probability[start..][..positions], &mut negative[..positions]);
                for i in 0..positions {
                    let (inside, outside, p) = parts(logits[i], raw_logit);
                    negative[i] = outside;
                    focal[i] = inside - outside;
                    probability[i] = p;
                }
                *sums = (sum(positions, |i| negative[i]), sum(positions, |i| probability[i]));
            }
        });
        let masks = View::rows(&masks, positions).transposed();
        let product = |a| Product::new((rows, positions, masks_count), View::rows(a, positions), masks).values();
        let (focal, overlap, areas) = (product(&focal), product(&probability), &areas);
        sums.into_iter().enumerate().map(move |(row, (negatives, total))| {
            let of_mask = |mask: usize| {
                let at = row * masks_count + mask;
                let focal = f64::from(focal[at] + negatives) / positions as f64;
                let dice = 1.0 - f64::from((2.0 * overlap[at] + 1.0) / (total + areas[mask] + 1.0));
                (focal_weight * focal + dice_weight * dice) as f32
            };
            (0..masks_count).map(of_mask).collect()
        })
    });
    Ok(Costs::Here(costs.collect()))
}

/// Maps that a task takes.
const ROWS: usize = 16;

/// Focal cost of a logit inside and outside the mask, and its probability.
#[inline(always)]
fn parts(logit: f32, raw_logit: bool) -> (f32, f32, f32) {
    let soft = soft(logit);
    let probability = sigmoid(logit);
    let p = if raw_logit { logit } else { probability };
    let inside = ALPHA * (1.0 - p) * (1.0 - p) * ((-logit).max(0.0) + soft);
    let outside = (1.0 - ALPHA) * p * p * (logit.max(0.0) + soft);
    (inside, outside, probability)
}
