//! A frozen linear layer that can carry an adapter.
use super::weights::Weights;
use crate::model::adapters::adapter::Adapter;
use crate::ops;
use crate::system::error::{Error, Result};
use candle_core::Tensor;

/// `y = Wx + b`, plus its adapter's part if it has one. Gradients reach the adapter and x, never W or b.
pub struct Projection {
    weight: Tensor,
    bias: Option<Tensor>,
    adapter: Option<Box<dyn Adapter>>,
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

    /// `[outer, inner]`
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Puts an adapter on the layer called `name`, in place of one it may have.
    pub fn attach(&mut self, name: &str, adapter: &dyn Adapter) -> Result<()> {
        adapter.check(self.sizes()).map_err(|problem| Error::Failed(format!("adapter of {name}: {problem}")))?;
        let parameters = adapter.parameters().into_iter().map(|tensor| tensor.to_device(self.weight.device()));
        self.adapter = Some(adapter.with_parameters(parameters.collect::<candle_core::Result<_>>()?)?);
        Ok(())
    }

    /// Takes the adapter off the layer.
    pub fn detach(&mut self) {
        self.adapter = None;
    }

    /// Weight and bias alone; none where an adapter is on them.
    pub fn frozen(&self) -> Option<ops::FrozenLayer> {
        self.adapter.is_none().then(|| self.layer())
    }

    fn layer(&self) -> ops::FrozenLayer {
        ops::FrozenLayer { weight: self.weight.clone(), bias: self.bias.clone() }
    }

    /// x `[…, inner]` to `[…, outer]`.
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match &self.adapter {
            Some(adapter) => adapter.forward(x, self.layer()),
            None => ops::linear(x, &self.weight, self.bias.as_ref(), None),
        }
    }
}
