//! AdamW on one parameter.
use super::{Arg, Module, address, device_of, long, module};
use candle_core::{Result, Tensor};

static KERNELS: Module = module!("adamw");
const THREADS: usize = 256;

/// The numbers of one step, as `adamw.cu` wants them.
pub struct Step {
    /// What the gradient is multiplied with first.
    pub clip: f64,
    pub betas: [f64; 2],
    /// The learning rate over the first moment's bias correction.
    pub rate: f64,
    /// The root of the second moment's bias correction.
    pub spread: f64,
    pub eps: f64,
    /// What weight decay leaves of a value.
    pub keep: f64,
}

/// Changes a parameter and its moments in place; all contiguous and in f32.
pub fn step(parameter: &Tensor, gradient: &Tensor, first: &Tensor, second: &Tensor, step: &Step) -> Result<()> {
    let gradient = gradient.contiguous()?;
    let count = parameter.elem_count();
    let mut args = [parameter, &gradient, first, second].map(address).into_iter().collect::<Result<Vec<_>>>()?;
    args.push(long(count));
    for number in [step.clip, step.betas[0], step.betas[1], step.rate, step.spread, step.eps, step.keep] {
        args.push(Arg::Float(number as f32));
    }
    // SAFETY: four tensors of one shape.
    unsafe { KERNELS.launch(device_of(parameter)?, "adamw", [count.div_ceil(THREADS), 1, 1], THREADS, &args) }
}
