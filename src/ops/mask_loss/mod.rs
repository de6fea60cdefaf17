//! Focal and dice loss of maps against masks of a larger size: the enlarged maps are never stored.
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reference;

use super::backend::{Variable, apply};
use candle_core::{Result, bail};
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

/// Input: maps.
pub(super) struct MaskLoss {
    pub targets: Vec<Arc<dyn Target>>,
    pub size: (usize, usize),
    pub raw_logit: bool,
}
