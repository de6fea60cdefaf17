//! Whether a run trained anything: one that did not must not end as if it had.
use super::parameters::{Group, Parameters};
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::report::metrics::StepMetrics;

/// Whether the step counted: one without a finite loss and gradient changes nothing.
pub fn counted(step: &StepMetrics) -> bool {
    step.loss.is_finite() && step.grad_norm.is_finite()
}

/// Makes sure that the run moved the adapter away from `start`. `steps` are the run's, as far as they are known.
///
/// # Errors
/// The LoRA does what it did at the start; says why.
pub fn check(now: &Parameters, start: &Parameters, steps: &[StepMetrics], config: &RunConfig) -> Result<()> {
    if !same_effect(now, start)? {
        return Ok(());
    }
    let optim = &config.optim;
    let why = match steps.iter().filter(|step| counted(step)).all(|step| step.grad_norm == 0.0) {
        true => "every gradient was 0, no loss with a weight depends on it".to_string(),
        false => format!(
            "the steps were too small for f32 (optim.lr = {:e}, optim.lora_lr_scale = {:e}, optim.clip_norm = {:e})",
            optim.lr, optim.lora_lr_scale, optim.clip_norm
        ),
    };
    Err(Error::Failed(format!("nothing was trained: the adapter is as it was at the start; {why}")))
}

/// Whether the LoRA of both does the same: of a pair, `up` moves first, and as long as it is zero, `down` has no effect.
fn same_effect(now: &Parameters, start: &Parameters) -> Result<bool> {
    let ups = |parameters: &Parameters| {
        let ups = parameters.all.iter().filter(|p| p.group == Group::Lora && p.name.ends_with(".up"));
        ups.map(|p| p.var.flatten_all()?.to_vec1::<f32>()).collect::<candle_core::Result<Vec<_>>>()
    };
    Ok(ups(now)? == ups(start)?)
}
