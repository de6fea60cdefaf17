//! The gradients of all parameters in one buffer, laid out as the parameters are.
use super::parameters::{Parameter, Parameters};
use crate::ops;
use crate::system::error::Result;
use candle_core::Tensor;

/// The gradients of all parameters.
#[derive(Clone, Debug)]
pub struct GradientBuffer {
    /// `[count]` in f32; zeros where there is no gradient.
    pub values: Tensor,
    /// Whether the loss depends on a parameter, one for each.
    pub present: Vec<bool>,
}

impl GradientBuffer {
    /// What backward passes that `run` makes leave in the parameters.
    pub fn of(parameters: &Parameters, run: impl FnOnce() -> candle_core::Result<()>) -> candle_core::Result<Self> {
        let values = parameters.buffer().zeros_like()?;
        for parameter in &parameters.all {
            parameter.leaf.write_gradient_to(parameter.view(&values)?);
        }
        let done = run();
        let present = parameters.all.iter().map(|parameter| parameter.leaf.take_gradient().is_some()).collect();
        done.map(|()| Self { values, present })
    }

    /// The gradient of each parameter, where there is one; they share the buffer's memory.
    pub fn by_parameter(&self, parameters: &Parameters) -> candle_core::Result<Vec<Option<Tensor>>> {
        let of = |(parameter, present): (&Parameter, &bool)| present.then(|| parameter.view(&self.values)).transpose();
        parameters.all.iter().zip(&self.present).map(of).collect()
    }

    /// Multiplies all gradients.
    pub fn scale(&mut self, factor: f64) -> Result<()> {
        if factor != 1.0 {
            self.values = (&self.values * factor)?;
        }
        Ok(())
    }

    /// The norm of all gradients together. The host waits for it.
    pub fn norm(&self, parameters: &Parameters) -> Result<f64> {
        let present = parameters.all.iter().zip(&self.present).filter(|(_, present)| **present);
        let gradients = present.map(|(parameter, _)| parameter.view(&self.values));
        Ok(ops::sum_of_squares(&gradients.collect::<candle_core::Result<Vec<_>>>()?)?.sqrt())
    }

    /// Scales gradients of norm `norm` so that it does not exceed `max_norm` (torch's `clip_grad_norm_`); 0 turns
    /// clipping off.
    pub fn clip(&mut self, norm: f64, max_norm: f64) -> Result<()> {
        self.scale(if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 })
    }
}
