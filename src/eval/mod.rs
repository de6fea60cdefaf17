//! Evaluation: segmentation, generation.
