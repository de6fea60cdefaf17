//! A frozen linear layer that can carry an adapter.
use super::weights::Weights;
use crate::autograd::Variable;
use crate::ops::{self, FrozenLayer, Layer, LowRank};
use crate::system::error::{Error, Result};
use candle_core::{Result as TensorResult, Tensor};
use std::ops::Range;

/// `y = Wx + b`, plus its adapter's part if it has one. Gradients reach the adapter and x, never W or b.
pub struct Projection {
    frozen: FrozenLayer,
    adapter: Option<LowRank>,
}

impl Projection {
    /// Reads `NAME.weight` `[outer, inner]` and `NAME.bias` `[outer]`.
    pub fn load(weights: &Weights, name: &str, inner: usize, outer: usize) -> Result<Self> {
        let weight = weights.get(&format!("{name}.weight"), (outer, inner))?;
        Ok(Self::new(weight, Some(weights.get(&format!("{name}.bias"), outer)?)))
    }

    /// A layer from its tensors: weight `[outer, inner]`, bias `[outer]`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { frozen: FrozenLayer { weight, bias }, adapter: None }
    }

    /// (inputs, outputs).
    pub fn sizes(&self) -> (usize, usize) {
        (self.frozen.weight.dims()[1], self.frozen.weight.dims()[0])
    }

    /// Puts an adapter on the layer called `name`, in place of one it may have.
    pub fn attach(&mut self, name: &str, adapter: &LowRank) -> Result<()> {
        let (inner, outer) = self.sizes();
        let rank = adapter.down.dims().first().copied().unwrap_or(0);
        if adapter.down.dims() != [rank, inner] || adapter.up.dims() != [outer, rank] {
            return Err(Error::Failed(format!(
                "LoRA of {name}: shapes {:?} and {:?}, expected [{rank}, {inner}] and [{outer}, {rank}]",
                adapter.down.dims(),
                adapter.up.dims()
            )));
        }
        let device = self.frozen.weight.device();
        let LowRank { down, up, scale } = adapter;
        self.adapter = Some(LowRank { down: down.on(device)?, up: up.on(device)?, scale: *scale });
        Ok(())
    }

    /// Takes the adapter off the layer.
    pub fn detach(&mut self) {
        self.adapter = None;
    }

    /// Weight and bias alone; none where an adapter is on them.
    pub fn frozen(&self) -> Option<FrozenLayer> {
        self.adapter.is_none().then(|| self.frozen.clone())
    }

    /// Both, as operations take them.
    pub fn layer(&self) -> Layer<'_> {
        Layer { frozen: &self.frozen, low_rank: self.adapter.as_ref() }
    }

    /// x `[…, inner]` to `[…, outer]`.
    pub fn forward(&self, x: &Variable) -> TensorResult<Variable> {
        ops::linear(x, self.layer())
    }

    /// The tokens in `window` of x `[batch, tokens, inner]`, to `[batch, window, outer]`.
    pub fn forward_window(&self, x: &Variable, window: Range<usize>) -> TensorResult<Variable> {
        ops::linear_of_window(x, window, self.layer())
    }
}
