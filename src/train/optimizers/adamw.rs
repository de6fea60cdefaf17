//! AdamW (torch's `AdamW`).
use super::Optimizer;
use crate::config::OptimConfig;
use crate::ops::{self, AdamWBuffers, AdamWRange, AdamWSettings};
use crate::system::error::{Error, Result};
use crate::train::gradient_buffer::GradientBuffer;
use crate::train::parameters::{ALIGNMENT, Group, Parameter, Parameters};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

/// AdamW. A checkpoint has its state as `NAME.first` (torch's `exp_avg`), `NAME.second` (`exp_avg_sq`) and `NAME.steps`
/// (`step`, one number) of every parameter that ever had a gradient.
pub struct AdamW {
    settings: AdamWSettings,
    /// `[count]`, laid out as the parameters are.
    exp_avg: Tensor,
    /// As `exp_avg`.
    exp_avg_sq: Tensor,
    /// Steps in which a parameter had a gradient, one for each.
    steps: Vec<u64>,
}

impl AdamW {
    /// Without any step so far.
    ///
    /// # Errors
    /// The device has no memory for it.
    pub fn new(config: &OptimConfig, parameters: &Parameters) -> Result<Self> {
        let OptimConfig { betas, eps, weight_decay, .. } = *config;
        Ok(Self {
            settings: AdamWSettings { betas, eps, weight_decay },
            exp_avg: parameters.buffer().zeros_like()?,
            exp_avg_sq: parameters.buffer().zeros_like()?,
            steps: vec![0; parameters.all.len()],
        })
    }
}

impl Optimizer for AdamW {
    fn step(
        &mut self,
        parameters: &Parameters,
        gradients: &GradientBuffer,
        learning_rate: &dyn Fn(Group) -> f64,
    ) -> Result<()> {
        let mut ranges: Vec<AdamWRange> = vec![];
        let present = parameters.all.iter().zip(&mut self.steps).zip(&gradients.present);
        for ((parameter, step), _) in present.filter(|(_, present)| **present) {
            *step += 1;
            let new = AdamWRange { range: parameter.range.clone(), lr: learning_rate(parameter.group), step: *step };
            match ranges.last_mut().filter(|last| (last.lr, last.step) == (new.lr, new.step)) {
                // The zeros between them stay zeros.
                Some(last) if last.range.end.next_multiple_of(ALIGNMENT) == new.range.start => {
                    last.range.end = new.range.end
                }
                _ => ranges.push(new),
            }
        }
        let (exp_avg, exp_avg_sq) = (&self.exp_avg, &self.exp_avg_sq);
        let (parameters, gradients) = (parameters.buffer(), &gradients.values);
        Ok(ops::adamw(&AdamWBuffers { parameters, gradients, exp_avg, exp_avg_sq }, &ranges, &self.settings)?)
    }

    fn state_dict(&self, parameters: &Parameters) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        let moments = parameters.split(&self.exp_avg)?.into_iter().zip(parameters.split(&self.exp_avg_sq)?);
        let all = parameters.all.iter().zip(&self.steps).zip(moments);
        for ((Parameter { name, .. }, steps), (first, second)) in all.filter(|((_, steps), _)| **steps > 0) {
            state.insert(format!("{name}.first"), first);
            state.insert(format!("{name}.second"), second);
            // Exact in f32 up to 2^24 steps.
            state.insert(format!("{name}.steps"), Tensor::new(&[*steps as f32], &Device::Cpu)?);
        }
        Ok(state)
    }

    fn load_state_dict(&mut self, parameters: &Parameters, state: &BTreeMap<String, Tensor>) -> Result<()> {
        for (parameter, step) in parameters.all.iter().zip(&mut self.steps) {
            let get = |suffix: &str| state.get(&format!("{}.{suffix}", parameter.name));
            let Parameter { name, values, .. } = parameter;
            *step = match (get("first"), get("second"), get("steps")) {
                (None, None, None) => 0,
                (Some(first), Some(second), Some(steps))
                    if [first, second].iter().all(|t| t.dims() == values.dims()) =>
                {
                    for (moments, saved) in [(&self.exp_avg, first), (&self.exp_avg_sq, second)] {
                        parameter.view(moments)?.slice_set(&saved.to_device(values.device())?, 0, 0)?;
                    }
                    steps.to_vec1::<f32>()?.first().copied().unwrap_or(0.0) as u64
                }
                _ => {
                    let problem = format!("optimizer state of {name} is incomplete or misshapen");
                    return Err(Error::Failed(format!("checkpoint: {problem}")));
                }
            };
        }
        Ok(())
    }
}
