//! Focal and dice loss of maps against masks of a larger size: the enlarged maps are never stored.
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub(super) mod reference;

use super::backend::{Backend, reference_backward};
use crate::autograd::{Gradients, Op, Variable, apply};
use candle_core::{Result, Tensor, bail};
pub(super) use cpu::soft;
use std::sync::Arc;

/// Focal loss: weight of pixels inside the mask (RetinaNet's α, with γ = 2).
pub const ALPHA: f32 = 0.25;

/// A binary mask, given row by row.
pub trait Target: Send + Sync {
    /// (height, width) in pixels.
    fn size(&self) -> (usize, usize);
    /// Row `y` as zeros and ones.
    fn row(&self, y: usize, out: &mut [f32]);
}

/// Focal loss (mean over pixels) and dice loss `1 − (2Σpt + 1)/(Σp + Σt + 1)` of each map with its mask.
///
/// maps `[pairs, h, w]`, enlarged bilinearly to the masks' size (the same for all); out `[2, pairs]`: focal, dice.
/// With `raw_logit`, focal's probability is the logit itself, as in Seg4Diff's released code.
///
/// # Errors
/// Masks that differ in size, or in number from the maps.
pub fn mask_loss(maps: &Variable, targets: Vec<Arc<dyn Target>>, raw_logit: bool) -> Result<Variable> {
    if maps.tensor().dim(0)? != targets.len() || targets.is_empty() {
        bail!("mask loss: maps {:?}, {} masks", maps.dims(), targets.len());
    }
    let size = targets[0].size();
    if targets.iter().any(|t| t.size() != size) {
        bail!("mask loss: masks differ in size");
    }
    apply(MaskLoss { targets, size, raw_logit }, &[maps])
}

pub(super) struct MaskLoss {
    pub(super) targets: Vec<Arc<dyn Target>>,
    pub(super) size: (usize, usize),
    pub(super) raw_logit: bool,
}

/// The maps, and what kernels left.
pub(super) struct Saved {
    maps: Tensor,
    /// The bits of the masks and the sums over them.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code))]
    of_kernels: Option<[Tensor; 2]>,
}

impl Op for MaskLoss {
    const NAME: &'static str = "mask-loss";
    type Saved = Saved;

    fn forward(&self, inputs: &[&Tensor], needs: &[bool]) -> Result<(Tensor, Option<Saved>)> {
        let maps = inputs[0].contiguous()?;
        let (losses, of_kernels) = match Backend::of(&[&maps]) {
            Backend::Cpu => (cpu::forward(self, &maps)?, None),
            #[cfg(feature = "cuda")]
            Backend::Cuda => match cuda::forward(self, &maps)? {
                Some((losses, kept)) => (losses, Some(kept)),
                None => (reference::forward(self, std::slice::from_ref(&maps))?, None),
            },
            Backend::Reference => (reference::forward(self, std::slice::from_ref(&maps))?, None),
        };
        Ok((losses, needs[0].then_some(Saved { maps, of_kernels })))
    }

    fn backward(&self, saved: Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let (maps, gradient) = (saved.maps, gradient.contiguous()?);
        #[cfg(feature = "cuda")]
        if let Some(kept) = &saved.of_kernels {
            return gradients.add(0, cuda::backward(self, &maps, kept, &gradient)?);
        }
        match Backend::of(&[&maps, &gradient]) {
            Backend::Cpu => gradients.add(0, cpu::backward(self, &maps, &gradient)?),
            _ => reference_backward(|inputs| reference::forward(self, inputs), &[maps], &gradient, gradients),
        }
    }
}
