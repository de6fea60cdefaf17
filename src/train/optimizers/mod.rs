//! Optimizers.
pub mod adamw;

use super::gradient_buffer::GradientBuffer;
use super::parameters::{Group, Parameters};
use crate::system::error::Result;
use candle_core::Tensor;
use std::collections::BTreeMap;

/// An optimizer over the trained parameters (torch's `Optimizer`).
pub trait Optimizer {
    /// One step. Parameters without gradient stay as they are, weight decay included.
    ///
    /// # Errors
    /// The device fails.
    fn step(
        &mut self,
        parameters: &Parameters,
        gradients: &GradientBuffer,
        learning_rate: &dyn Fn(Group) -> f64,
    ) -> Result<()>;

    /// The state tensors by name, in f32 on the CPU: all that the next step depends on besides the parameters.
    ///
    /// # Errors
    /// The device fails.
    fn state_dict(&self, parameters: &Parameters) -> Result<BTreeMap<String, Tensor>>;

    /// Restores a state that [`Self::state_dict`] gave.
    ///
    /// # Errors
    /// The state is of other parameters.
    fn load_state_dict(&mut self, parameters: &Parameters, state: &BTreeMap<String, Tensor>) -> Result<()>;
}
