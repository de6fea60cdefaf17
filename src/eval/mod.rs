//! Evaluation: how well a model's attention segments, how good its drawn images are.
pub mod generation;
pub mod segmentation;
