//! The gradients of all parameters in one buffer, laid out as the parameters are.
use super::parameters::Parameters;
use crate::ops;
use crate::system::error::Result;
use candle_core::Tensor;

/// The gradients of all parameters.
#[derive(Clone, Debug)]
pub struct GradientBuffer {
    /// `[count]` in f32; zeros where there is no gradient.
    values: Tensor,
    /// Whether the loss depends on a parameter, one for each.
    present: Vec<bool>,
}

impl GradientBuffer {
    /// Of a loss that depends on no parameter.
    pub fn zeros(parameters: &Parameters) -> Result<Self> {
        Ok(Self::from_parts(parameters.buffer().zeros_like()?, vec![false; parameters.all.len()]))
    }

    /// Copies what the backward pass found of each parameter.
    pub fn new(parameters: &Parameters, by_parameter: &[Option<Tensor>]) -> Result<Self> {
        let all = Self::zeros(parameters)?;
        for (parameter, gradient) in parameters.all.iter().zip(by_parameter) {
            if let Some(gradient) = gradient {
                parameter.view(&all.values)?.slice_set(&gradient.contiguous()?, 0, 0)?;
            }
        }
        Ok(Self { present: by_parameter.iter().map(Option::is_some).collect(), ..all })
    }

    /// From `values` `[count]`, of which those of parameters that are not `present` are zeros.
    pub fn from_parts(values: Tensor, present: Vec<bool>) -> Self {
        Self { values, present }
    }

    /// `[count]` in f32; zeros where there is no gradient.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// Whether there is a gradient, for each parameter.
    pub fn present(&self) -> &[bool] {
        &self.present
    }

    /// Adds the gradients of another micro-batch.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        self.values = (&self.values + &other.values)?;
        self.present.iter_mut().zip(&other.present).for_each(|(one, other)| *one |= other);
        Ok(())
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
