//! What training minimises: flow matching, and the alignment of the expert's attention with masks.
mod alignment;
mod maps;
mod matching;

pub use alignment::{AlignmentLoss, MaskAlignment};
pub use matching::{Matching, assign};

use crate::autograd::Variable;
use crate::ops::{Target, mean_squared_error};
use candle_core::{DType, Result, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// Flow matching: the mean square of `velocity − (noise − latents)` over everything; all `[batch, channels, h, w]`.
pub fn flow_loss(velocity: &Variable, latents: &Tensor, noise: &Tensor) -> Result<Variable> {
    mean_squared_error(&velocity.to_dtype(DType::F32)?, &(noise - latents)?)
}

/// One mask to align attention with.
#[derive(Clone)]
pub struct MaskTarget {
    /// The mask at the size the loss compares at.
    pub pixels: Arc<dyn Target>,
    /// The mask shrunk (nearest) to the token grid, row by row, zeros and ones.
    pub grid: Vec<f32>,
    /// Pixels inside, at the loss's size.
    pub area: usize,
    /// Which of [`SampleTargets::spans`] it belongs to; none where masks have no classes.
    pub class: Option<usize>,
}

/// The masks of one image.
#[derive(Clone, Default)]
pub struct SampleTargets {
    /// The masks of one image.
    pub masks: Vec<MaskTarget>,
    /// For every class named in the prompt the word tokens of its name; none where the name did not fit.
    pub spans: Vec<Option<Range<usize>>>,
    /// The word tokens whose maps are matched with masks that have no classes; none: all.
    pub words: Option<Range<usize>>,
}

impl Target for crate::data::Mask {
    fn size(&self) -> (usize, usize) {
        (self.height(), self.width())
    }

    fn row(&self, y: usize, out: &mut [f32]) {
        for (x, out) in out.iter_mut().enumerate() {
            *out = f32::from(self.get(x, y));
        }
    }
}
