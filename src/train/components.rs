//! The components of a run that can be exchanged: tests put others in their place.
use super::optimizers::Optimizer;
use super::optimizers::adamw::AdamW;
use super::parameters::Parameters;
use super::schedule::{LearningRateSchedule, warmup_cosine};
use crate::config::OptimConfig;
use crate::distributed::{Collective, SingleProcess};
use crate::system::error::Result;

/// The components of a run that its config does not name.
pub struct Components<'a> {
    /// Makes the optimizer of fresh parameters.
    pub optimizer: fn(&OptimConfig, &Parameters) -> Result<Box<dyn Optimizer>>,
    /// The learning rate of each step.
    pub schedule: LearningRateSchedule,
    /// The processes that train together.
    pub collective: &'a dyn Collective,
}

impl Default for Components<'_> {
    /// AdamW, a warm-up before a cosine, and one process.
    fn default() -> Self {
        Self {
            optimizer: |config, parameters| Ok(Box::new(AdamW::new(config, parameters)?)),
            schedule: warmup_cosine,
            collective: &SingleProcess,
        }
    }
}
