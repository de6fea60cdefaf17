//! Evaluation: which block is the expert, how well a model's attention segments, how good its drawn images are.
pub mod analysis;
pub mod blurring;
pub mod clip_score;
pub mod flow;
pub mod generation;
pub mod maps;
pub mod pca;
pub mod score_head;
pub mod segmentation;

/// As many images of `size`² pixels as make up a megapixel, at most 32: small ones are computed faster together, large
/// ones fill memory.
pub fn usual_batch(size: usize) -> usize {
    ((1 << 20) / (size * size).max(1)).clamp(1, 32)
}
