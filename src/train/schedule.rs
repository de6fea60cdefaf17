//! The learning rate over a run.
use crate::config::OptimConfig;

/// A schedule: the learning rate of optimizer step `step` (from 0) of `steps`.
pub type LearningRateSchedule = fn(config: &OptimConfig, step: u64, steps: u64) -> f64;

/// From `warmup_factor·lr` linearly to `lr` over `warmup_steps`, then a cosine to 0 at the end (torch's `LinearLR` followed
/// by `CosineAnnealingLR`).
pub fn warmup_cosine(config: &OptimConfig, step: u64, steps: u64) -> f64 {
    let warmup = config.warmup_steps;
    if step < warmup {
        let done = step as f64 / warmup as f64;
        return config.lr * (config.warmup_factor + (1.0 - config.warmup_factor) * done);
    }
    let done = (step - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
    config.lr * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
}
