//! A frozen linear layer that can carry an adapter.
use super::weights::Weights;
use crate::model::adapters::lora::Lora;
use crate::ops;
use crate::system::error::{Error, Result};
use candle_core::Tensor;

/// `y = Wx + b`, plus its adapter's part if it has one. Gradients reach the adapter and x, never W or b.
pub struct Projection {
    weight: Tensor,
    bias: Option<Tensor>,
    adapter: Option<Lora>,
}

impl Projection {
    /// Reads `NAME.weight` `[outer, inner]` and `NAME.bias` `[outer]`.
    pub fn load(weights: &Weights, name: &str, inner: usize, outer: usize) -> Result<Self> {
        Ok(Self {
            weight: weights.get(&format!("{name}.weight"), (outer, inner))?,
            bias: Some(weights.get(&format!("{name}.bias"), outer)?),
            adapter: None,
        })
    }

    /// A layer from its tensors: weight `[outer, inner]`, bias `[outer]`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias, adapter: None }
    }

    /// (inputs, outputs).
    pub fn sizes(&self) -> (usize, usize) {
        (self.weight.dims()[1], self.weight.dims()[0])
    }

    /// Puts an adapter on the layer called `name`, in place of one it may have.
    pub fn attach(&mut self, name: &str, adapter: Lora) -> Result<()> {
        let (inner, outer) = self.sizes();
        let rank = adapter.rank();
        if adapter.down.dims() != [rank, inner] || adapter.up.dims() != [outer, rank] {
            return Err(Error::Failed(format!(
                "LoRA of {name}: shapes {:?} and {:?}, expected [{rank}, {inner}] and [{outer}, {rank}]",
                adapter.down.dims(),
                adapter.up.dims()
            )));
        }
        let device = self.weight.device();
        self.adapter = Some(Lora {
            down: adapter.down.to_device(device)?,
            up: adapter.up.to_device(device)?,
            alpha: adapter.alpha,
        });
        Ok(())
    }

    /// Takes the adapter off the layer.
    pub fn detach(&mut self) {
        self.adapter = None;
    }

    /// Weight and bias alone; none where an adapter is on them.
    pub fn frozen(&self) -> Option<ops::FrozenLayer> {
        let Self { weight, bias, adapter } = self;
        adapter.is_none().then(|| ops::FrozenLayer { weight: weight.clone(), bias: bias.clone() })
    }

    /// x `[…, inner]` to `[…, outer]`.
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let adapter = self.adapter.as_ref().map(|lora| (&lora.down, &lora.up, lora.scale()));
        ops::linear(x, &self.weight, self.bias.as_ref(), adapter)
    }
}
