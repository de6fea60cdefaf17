//! Cross-entropy over classes at every pixel of a larger label map: the enlarged class maps are never stored.
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub(super) mod reference;

use super::backend::{Backend, reference_backward};
use crate::autograd::{Gradients, Op, Variable, apply};
use candle_core::{Result, Tensor, bail};

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

pub(super) struct PixelCrossEntropy {
    pub(super) labels: Vec<u8>,
    pub(super) size: (usize, usize),
    pub(super) weights: Vec<f32>,
    /// Sum of the weights of all pixels that count.
    pub(super) total: f64,
}

/// The maps, and what kernels left.
pub(super) struct Saved {
    maps: Tensor,
    /// Labels, weights and every pixel's log-sum-exp.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code))]
    of_kernels: Option<[Tensor; 3]>,
}

impl Op for PixelCrossEntropy {
    const NAME: &'static str = "pixel-cross-entropy";
    type Saved = Saved;

    fn forward(&self, inputs: &[&Tensor], needs: &[bool]) -> Result<(Tensor, Option<Saved>)> {
        let maps = inputs[0].contiguous()?;
        let (loss, of_kernels) = match Backend::of(&[&maps]) {
            Backend::Cpu => (cpu::forward(self, &maps)?, None),
            #[cfg(feature = "cuda")]
            Backend::Cuda => match cuda::forward(self, &maps)? {
                Some((loss, kept)) => (loss, Some(kept)),
                None => (reference::forward(self, std::slice::from_ref(&maps))?, None),
            },
            Backend::Reference => (reference::forward(self, std::slice::from_ref(&maps))?, None),
        };
        Ok((loss, needs[0].then_some(Saved { maps, of_kernels })))
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
