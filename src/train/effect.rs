//! Whether a run trained anything: one that did not must not end as if it had.
use super::parameters::Parameters;
use crate::config::OptimConfig;
use crate::report::metrics::StepMetrics;
use crate::system::error::{Error, Result};

/// Whether the step counted: one without a finite loss and gradient changes nothing.
pub fn counted(step: &StepMetrics) -> bool {
    step.loss.is_finite() && step.grad_norm.is_finite()
}

/// What the adapters do when a run starts.
pub struct InitialValues {
    values: Vec<Vec<f32>>,
}

impl InitialValues {
    /// Of parameters as they are before the first step.
    pub fn of(parameters: &Parameters) -> Result<Self> {
        let values = parameters.effective().map(|p| p.values.force_contiguous()?.flatten_all()?.to_vec1());
        Ok(Self { values: values.collect::<candle_core::Result<_>>()? })
    }

    /// Makes sure that the parameters are others now. `steps` are the run's, as far as they are known.
    ///
    /// # Errors
    /// The adapters do what they did at the start; says why.
    pub fn check_moved(&self, now: &Parameters, steps: &[StepMetrics], optim: &OptimConfig) -> Result<()> {
        if Self::of(now)?.values != self.values {
            return Ok(());
        }
        let why = match steps.iter().filter(|step| counted(step)).all(|step| step.grad_norm == 0.0) {
            true => "every gradient was 0, no loss with a weight depends on it".to_string(),
            false => format!(
                "the steps were too small for f32 (optim.lr = {:e}, optim.lora_lr_scale = {:e}, optim.clip_norm = {:e})",
                optim.lr, optim.lora_lr_scale, optim.clip_norm
            ),
        };
        Err(Error::Failed(format!("nothing was trained: the adapter is as it was at the start; {why}")))
    }
}
