//! Cross-entropy over classes at every pixel of a larger label map: the enlarged class maps are never stored.
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reference;

use super::backend::{Variable, apply};
use candle_core::{Result, bail};

/// Label of pixels that do not count.
pub const NO_CLASS: u8 = u8::MAX;

/// The weighted mean over pixels of `−log softmax(maps)[label]` (torch's `cross_entropy` with `weight` and
/// `ignore_index`): maps `[classes, h, w]`, enlarged bilinearly to `labels` `[height·width]`; out `[1]`.
///
/// `weights` has one for each class.
///
/// # Errors
/// Labels that are neither below `classes` nor [`NO_CLASS`], or none that is a class.
pub fn pixel_cross_entropy(
    maps: &Variable,
    labels: Vec<u8>,
    (height, width): (usize, usize),
    weights: Vec<f32>,
) -> Result<Variable> {
    let classes = maps.tensor().dim(0)?;
    let total: f64 = labels.iter().filter_map(|l| weights.get(usize::from(*l))).map(|w| f64::from(*w)).sum();
    let known = labels.iter().all(|l| *l == NO_CLASS || usize::from(*l) < classes);
    if weights.len() != classes || classes >= usize::from(NO_CLASS) || !known || labels.len() != height * width {
        bail!("pixel cross-entropy: {} labels do not fit maps {:?}", labels.len(), maps.dims());
    }
    if total <= 0.0 {
        bail!("pixel cross-entropy: no pixel has a class");
    }
    apply(PixelCrossEntropy { labels, size: (height, width), weights, total }, &[maps])
}

/// Input: maps.
pub(super) struct PixelCrossEntropy {
    pub labels: Vec<u8>,
    pub size: (usize, usize),
    pub weights: Vec<f32>,
    /// Sum of the weights of all pixels that count.
    pub total: f64,
}
