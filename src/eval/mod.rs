//! Evaluation: segmentation, generation.
pub mod generation;
