//! Evaluation: how well a model's attention segments.
pub mod segmentation;
