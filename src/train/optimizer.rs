//! AdamW over the trained parameters, with two learning rates and a bound on the gradient's norm (torch's `AdamW` and
//! `clip_grad_norm_`).
use super::parameters::Parameters;
use crate::config::OptimConfig;
#[cfg(feature = "cuda")]
use crate::ops::cuda::adamw as cuda;
use crate::system::error::{Error, Result};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

pub struct AdamW {
    /// First and second moments and the number of steps, for each parameter; absent until its first gradient.
    moments: Vec<Option<Moments>>,
}

struct Moments {
    first: Tensor,
    second: Tensor,
    steps: u64,
}

impl AdamW {
    pub fn new(parameters: &Parameters) -> Self {
        Self { moments: parameters.all.iter().map(|_| None).collect() }
    }

    /// One step. Parameters without gradient stay as they are, weight decay included. Gradients are first scaled by
    /// `clip` (see [`clip_factor`]); `lr` is the score head's.
    pub fn step(
        &mut self,
        parameters: &Parameters,
        gradients: &[Option<Tensor>],
        clip: f64,
        lr: f64,
        config: &OptimConfig,
    ) -> candle_core::Result<()> {
        #[cfg(feature = "cuda")]
        if parameters.all.iter().any(|parameter| parameter.var.device().is_cuda()) {
            return self.step_on_gpu(parameters, gradients, clip, lr, config);
        }
        let [beta1, beta2] = config.betas;
        for ((parameter, gradient), moments) in parameters.all.iter().zip(gradients).zip(&mut self.moments) {
            let Some(gradient) = gradient else { continue };
            let lr = parameter.group.learning_rate(lr, config);
            let gradient = (gradient * clip)?;
            let (first, second, steps) = match moments.take() {
                None => ((&gradient * (1.0 - beta1))?, (gradient.sqr()? * (1.0 - beta2))?, 1),
                Some(m) => (
                    ((m.first * beta1)? + (&gradient * (1.0 - beta1))?)?,
                    ((m.second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?,
                    m.steps + 1,
                ),
            };
            let steps_f = steps as f64;
            let denominator = ((second.sqrt()? / (1.0 - beta2.powf(steps_f)).sqrt())? + config.eps)?;
            let update = ((&first / denominator)? * (lr / (1.0 - beta1.powf(steps_f))))?;
            let decayed = (parameter.var.as_detached_tensor() * (1.0 - lr * config.weight_decay))?;
            parameter.var.set(&(decayed - update)?)?;
            *moments = Some(Moments { first, second, steps });
        }
        Ok(())
    }

    /// The same by one kernel for all parameters.
    #[cfg(feature = "cuda")]
    fn step_on_gpu(
        &mut self,
        parameters: &Parameters,
        gradients: &[Option<Tensor>],
        clip: f64,
        lr: f64,
        config: &OptimConfig,
    ) -> candle_core::Result<()> {
        let gradients = gradients.iter().map(|gradient| gradient.as_ref().map(Tensor::contiguous).transpose());
        let gradients = gradients.collect::<candle_core::Result<Vec<_>>>()?;
        let mut updates = vec![];
        for ((parameter, gradient), moments) in parameters.all.iter().zip(&gradients).zip(&mut self.moments) {
            let Some(gradient) = gradient else { continue };
            let parameter_lr = parameter.group.learning_rate(lr, config);
            let parameter = parameter.var.as_tensor();
            let zeros = || parameter.detach().zeros_like();
            let moments = match moments {
                Some(moments) => moments,
                None => moments.insert(Moments { first: zeros()?, second: zeros()?, steps: 0 }),
            };
            moments.steps += 1;
            let correction = config.betas.map(|beta| 1.0 - beta.powf(moments.steps as f64));
            updates.push(cuda::Update {
                parameter,
                gradient,
                first: &moments.first,
                second: &moments.second,
                rate: parameter_lr / correction[0],
                spread: correction[1].sqrt(),
                keep: 1.0 - parameter_lr * config.weight_decay,
            });
        }
        cuda::step(&updates, &cuda::Settings { clip, betas: config.betas, eps: config.eps })
    }

    /// The state by parameter name: `NAME.first`, `NAME.second` and `NAME.steps` (one number).
    pub fn tensors(&self, parameters: &Parameters) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        for (parameter, moments) in parameters.all.iter().zip(&self.moments) {
            let Some(moments) = moments else { continue };
            let name = &parameter.name;
            tensors.insert(format!("{name}.first"), moments.first.to_device(&Device::Cpu)?);
            tensors.insert(format!("{name}.second"), moments.second.to_device(&Device::Cpu)?);
            // Exact in f32 up to 2^24 steps.
            tensors.insert(format!("{name}.steps"), Tensor::new(&[moments.steps as f32], &Device::Cpu)?);
        }
        Ok(tensors)
    }

    /// Takes up a state written by [`Self::tensors`].
    pub fn load(&mut self, parameters: &Parameters, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        for (parameter, moments) in parameters.all.iter().zip(&mut self.moments) {
            let get = |suffix: &str| tensors.get(&format!("{}.{suffix}", parameter.name));
            *moments = match (get("first"), get("second"), get("steps")) {
                (None, None, None) => None,
                (Some(first), Some(second), Some(steps))
                    if first.shape() == parameter.var.shape() && second.shape() == parameter.var.shape() =>
                {
                    let device = parameter.var.device();
                    let steps = steps.to_vec1::<f32>()?.first().copied().unwrap_or(0.0) as u64;
                    Some(Moments { first: first.to_device(device)?, second: second.to_device(device)?, steps })
                }
                _ => {
                    return Err(Error::Failed(format!(
                        "checkpoint: optimizer state of {} is incomplete or misshapen",
                        parameter.name
                    )));
                }
            };
        }
        Ok(())
    }
}

/// The norm of all gradients together. The host waits for it.
pub fn gradient_norm(gradients: &[Option<Tensor>]) -> candle_core::Result<f64> {
    #[cfg(feature = "cuda")]
    if gradients.iter().flatten().any(|gradient| gradient.device().is_cuda()) {
        let gradients = gradients.iter().flatten().map(Tensor::contiguous);
        let gradients = gradients.collect::<candle_core::Result<Vec<_>>>()?;
        return Ok(cuda::sum_of_squares(&gradients.iter().collect::<Vec<_>>())?.sqrt());
    }
    let squares = gradients.iter().flatten().map(|gradient| gradient.sqr()?.sum_all()?.to_scalar::<f32>());
    let squares = squares.collect::<candle_core::Result<Vec<_>>>()?;
    Ok(squares.into_iter().map(f64::from).sum::<f64>().sqrt())
}

/// What gradients of norm `norm` are multiplied with so that it does not exceed `largest`; 0 turns clipping off.
pub fn clip_factor(norm: f64, largest: f64) -> f64 {
    if largest > 0.0 { (largest / (norm + 1e-6)).min(1.0) } else { 1.0 }
}
