//! A frozen linear layer that can carry an adapter.
use super::weights::Weights;
use crate::autograd::Variable;
use crate::model::adapters::adapter::{Adapter, Attached, Function};
use crate::ops::{self, FrozenLayer, FrozenWeight, Layer, LowRank};
use crate::system::error::{Error, Result};
use candle_core::{Result as TensorResult, Tensor};
use std::ops::Range;

/// `y = Wx + b`, plus its adapter's part if it has one. Gradients reach the adapter and x, never W or b.
pub struct Projection {
    frozen: FrozenLayer,
    adapter: Option<Attached>,
}

/// [`Projection::load`], [`Projection::load_dense`] or one of them without a bias.
pub type LoadProjection = fn(&Weights, &str, usize, usize) -> Result<Projection>;

impl Projection {
    /// Reads `NAME.weight` `[outer, inner]` and `NAME.bias` `[outer]` of a block: the weight is quantised where that was asked
    /// for.
    pub fn load(weights: &Weights, name: &str, inner: usize, outer: usize) -> Result<Self> {
        let weight = weights.frozen(&format!("{name}.weight"), (outer, inner))?;
        Ok(Self::new(weight, Some(weights.get(&format!("{name}.bias"), outer)?)))
    }

    /// [`Self::load`] of a layer around the blocks, which is dense in any case: these layers are small, and what they lose
    /// all blocks lack.
    pub fn load_dense(weights: &Weights, name: &str, inner: usize, outer: usize) -> Result<Self> {
        let weight = weights.get(&format!("{name}.weight"), (outer, inner))?;
        Ok(Self::new(weight, Some(weights.get(&format!("{name}.bias"), outer)?)))
    }

    /// [`Self::load`] of a layer that has no bias.
    pub fn load_without_bias(weights: &Weights, name: &str, inner: usize, outer: usize) -> Result<Self> {
        Ok(Self::new(weights.frozen(&format!("{name}.weight"), (outer, inner))?, None))
    }

    /// [`Self::load_dense`] of a layer that has no bias.
    pub fn load_dense_without_bias(weights: &Weights, name: &str, inner: usize, outer: usize) -> Result<Self> {
        Ok(Self::new(weights.get(&format!("{name}.weight"), (outer, inner))?, None))
    }

    /// A layer from its tensors: weight `[outer, inner]`, bias `[outer]`.
    pub fn new(weight: impl Into<FrozenWeight>, bias: Option<Tensor>) -> Self {
        Self { frozen: FrozenLayer { weight: weight.into(), bias }, adapter: None }
    }

    /// (inputs, outputs).
    pub fn sizes(&self) -> (usize, usize) {
        (self.frozen.weight.dims()[1], self.frozen.weight.dims()[0])
    }

    /// `[outer, inner]`
    pub fn weight(&self) -> &FrozenWeight {
        &self.frozen.weight
    }

    /// Puts an adapter with these parameters on the layer called `name`, in place of one it may have.
    pub fn attach(&mut self, name: &str, adapter: &dyn Adapter, parameters: Vec<Variable>) -> Result<()> {
        adapter.check(self.sizes()).map_err(|problem| Error::Failed(format!("adapter of {name}: {problem}")))?;
        let device = self.frozen.weight.device();
        let parameters = parameters.iter().map(|parameter| parameter.on(&device));
        self.adapter = Some(adapter.attach(parameters.collect::<TensorResult<_>>()?)?);
        Ok(())
    }

    /// Takes the adapter off the layer.
    pub fn detach(&mut self) {
        self.adapter = None;
    }

    /// Whether an adapter is on the layer.
    pub fn is_adapted(&self) -> bool {
        self.adapter.is_some()
    }

    /// Weight and bias alone; none where an adapter is on them.
    pub fn frozen(&self) -> Option<FrozenLayer> {
        self.adapter.is_none().then(|| self.frozen.clone())
    }

    /// Both, as operations take them, or what an adapter does that is not low-rank.
    fn layer(&self) -> Result<Layer<'_>, &Function> {
        let low_rank = match &self.adapter {
            None => None,
            Some(Attached::LowRank(low_rank)) => Some(low_rank),
            Some(Attached::Function(function)) => return Err(function),
        };
        Ok(Layer { frozen: &self.frozen, low_rank })
    }

    /// x `[…, inner]` to `[…, outer]`.
    pub fn forward(&self, x: &Variable) -> TensorResult<Variable> {
        match self.layer() {
            Ok(layer) => ops::linear(x, layer),
            Err(function) => function(x, &self.frozen),
        }
    }

    /// The tokens in `window` of x `[batch, tokens, inner]`, to `[batch, window, outer]`.
    pub fn forward_window(&self, x: &Variable, window: Range<usize>) -> TensorResult<Variable> {
        match self.layer() {
            Ok(layer) => ops::linear_of_window(x, window, layer),
            Err(function) => function(&x.window(1, window)?, &self.frozen),
        }
    }

    /// Some of the outputs: x `[batch, tokens, inner]` to `[batch, tokens, outputs]`. Where an adapter is not low-rank, the
    /// others are computed, too.
    pub fn forward_outputs(&self, x: &Variable, outputs: Range<usize>) -> TensorResult<Variable> {
        let Layer { frozen, low_rank } = match self.layer() {
            Ok(layer) => layer,
            Err(function) => return function(x, &self.frozen)?.window(2, outputs),
        };
        let bias = frozen.bias.as_ref().map(|bias| bias.narrow(0, outputs.start, outputs.len())).transpose()?;
        let frozen = FrozenLayer { weight: frozen.weight.rows(outputs.clone())?, bias };
        let of_outputs = |of: &LowRank| TensorResult::Ok(LowRank { up: of.up.window(0, outputs)?, ..of.clone() });
        let low_rank = low_rank.map(of_outputs).transpose()?;
        ops::linear(x, Layer { frozen: &frozen, low_rank: low_rank.as_ref() })
    }

    /// Several sequences, each through a layer of its own, joined along the tokens: each x `[batch, tokens, inner]`, to
    /// `[batch, all tokens, outer]`.
    pub fn join(parts: &[(&Variable, &Self)]) -> TensorResult<Variable> {
        let layers: Result<Vec<_>, &Function> =
            parts.iter().map(|(x, projection)| Ok((*x, projection.layer()?))).collect();
        match layers {
            Ok(layers) => ops::joint_linear(&layers),
            Err(_) => {
                let parts = parts.iter().map(|(x, projection)| projection.forward(x));
                ops::cat(&parts.collect::<TensorResult<Vec<_>>>()?, 1)
            }
        }
    }
}
