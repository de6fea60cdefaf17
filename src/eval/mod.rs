//! Evaluation: expert block analysis, segmentation by attention, quality of generated images.
pub mod analysis;
pub(crate) mod blurring;
pub mod clip_score;
pub(crate) mod flow;
pub mod generation;
pub mod maps;
pub mod pca;
mod read_ahead;
pub mod score_head;
pub mod segmentation;
pub mod turns;

use crate::model::pipeline::Pipeline;
use crate::sample::scheduler::Scheduler;
use turns::Turns;

/// A model that is evaluated, and the processes that take turns at it.
#[derive(Clone, Copy)]
pub struct EvaluatedModel<'a> {
    /// Its networks.
    pub pipeline: &'a Pipeline,
    /// Its noise levels.
    pub scheduler: &'a Scheduler,
    /// The processes.
    pub turns: &'a Turns<'a>,
}

/// Default batch size for images of `size`² pixels: one megapixel in total, at most 32 images. Small images are faster
/// in batches; large ones fill memory.
pub fn usual_batch(size: usize) -> usize {
    ((1 << 20) / (size * size).max(1)).clamp(1, 32)
}
