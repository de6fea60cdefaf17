//! AdamW on flat buffers, and the sum of squares that the gradient's norm is made of.
use crate::kernels::cpu::{TASK, vectorised};
#[cfg(feature = "cuda")]
use crate::kernels::cuda::adamw as cuda;
use crate::kernels::memory::{Values, with_values_mut};
use candle_core::{Result, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// What a step reads and changes, each `[count]` in f32.
pub struct AdamWBuffers<'a> {
    /// Changed.
    pub parameters: &'a Tensor,
    /// Their gradients.
    pub gradients: &'a Tensor,
    /// The running mean of gradients; changed.
    pub exp_avg: &'a Tensor,
    /// The running mean of their squares; changed.
    pub exp_avg_sq: &'a Tensor,
}

/// Parameters that lie side by side and are treated alike.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamWRange {
    /// Where they lie in the buffers.
    pub range: Range<usize>,
    /// Their learning rate.
    pub lr: f64,
    /// Steps that the moments have in them, this one included.
    pub step: u64,
}

/// What all parameters have in common; as the arguments of torch's `AdamW`.
#[derive(Clone, Copy, Debug)]
pub struct AdamWSettings {
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f64,
}

/// What a step does in one range: the learning rate over the bias correction of `exp_avg`, the root of that of `exp_avg_sq`, and
/// what weight decay leaves of a value.
fn coefficients(range: &AdamWRange, settings: &AdamWSettings) -> [f64; 3] {
    let [first, second] = settings.betas.map(|beta| 1.0 - beta.powf(range.step as f64));
    [range.lr / first, second.sqrt(), 1.0 - range.lr * settings.weight_decay]
}

/// One step of torch's `AdamW` in `ranges`; the rest of the buffers is not touched.
///
/// # Errors
/// The buffers are not contiguous, in f32 and on one device.
pub fn adamw(buffers: &AdamWBuffers, ranges: &[AdamWRange], settings: &AdamWSettings) -> Result<()> {
    #[cfg(feature = "cuda")]
    if buffers.parameters.device().is_cuda() {
        return on_gpu(buffers, ranges, settings);
    }
    let gradients = Values::of(buffers.gradients)?;
    with_values_mut(buffers.parameters, |parameters| {
        with_values_mut(buffers.exp_avg, |exp_avg| {
            with_values_mut(buffers.exp_avg_sq, |exp_avg_sq| {
                for range in ranges {
                    let within = range.range.clone();
                    let values =
                        [&mut *parameters, &mut *exp_avg, &mut *exp_avg_sq].map(|all| &mut all[within.clone()]);
                    step_range(values, &gradients[within], coefficients(range, settings), settings);
                }
            })
        })
    })??
}

/// Every operation is rounded by itself, as in torch.
fn step_range(
    [parameters, exp_avg, exp_avg_sq]: [&mut [f32]; 3],
    gradients: &[f32],
    [step_size, correction, decay]: [f64; 3],
    settings: &AdamWSettings,
) {
    let [beta1, beta2] = settings.betas.map(|beta| beta as f32);
    let [rest1, rest2] = settings.betas.map(|beta| (1.0 - beta) as f32);
    let inverse_correction = (1.0 / correction) as f32;
    let [decay, step_size, eps] = [decay, step_size, settings.eps].map(|number| number as f32);
    let chunks = parameters.par_chunks_mut(TASK).zip(gradients.par_chunks(TASK));
    let chunks = chunks.zip(exp_avg.par_chunks_mut(TASK)).zip(exp_avg_sq.par_chunks_mut(TASK));
    chunks.for_each(|(((parameters, gradients), exp_avg), exp_avg_sq)| {
        vectorised!({
            for (((p, g), m), v) in
                parameters.iter_mut().zip(gradients).zip(exp_avg.iter_mut()).zip(exp_avg_sq.iter_mut())
            {
                *m = *m * beta1 + g * rest1;
                *v = *v * beta2 + g * g * rest2;
                *p = *p * decay - *m / (v.sqrt() * inverse_correction + eps) * step_size;
            }
        })
    });
}

#[cfg(feature = "cuda")]
fn on_gpu(buffers: &AdamWBuffers, ranges: &[AdamWRange], settings: &AdamWSettings) -> Result<()> {
    let AdamWBuffers { parameters, gradients, exp_avg, exp_avg_sq } = *buffers;
    let update = |range: &AdamWRange| {
        let view = |all: &Tensor| all.narrow(0, range.range.start, range.range.len());
        let tensors = [view(parameters)?, view(gradients)?, view(exp_avg)?, view(exp_avg_sq)?];
        Ok(cuda::Update { tensors, factors: coefficients(range, settings) })
    };
    let updates = ranges.iter().map(update).collect::<Result<Vec<_>>>()?;
    cuda::step(&updates, settings.betas, settings.eps)
}

/// The sum of the squares of all values of all `tensors`, f32 and contiguous. Of each tensor it is rounded to f32, over
/// them summed in f64. The host waits for it.
pub fn sum_of_squares(tensors: &[Tensor]) -> Result<f64> {
    #[cfg(feature = "cuda")]
    if tensors.iter().any(|tensor| tensor.device().is_cuda()) {
        return cuda::sum_of_squares(tensors);
    }
    let squares = tensors.iter().map(|tensor| tensor.sqr()?.sum_all()?.to_scalar::<f32>().map(f64::from));
    squares.sum()
}
