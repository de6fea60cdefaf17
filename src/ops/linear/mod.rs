//! Frozen projections with trainable low-rank adapters: of whole tensors, of a window of a joint sequence, and of several
//! sequences into one.
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reference;

use super::backend::{Saved, Variable, apply};
use super::frozen_weight::FrozenWeight;
use candle_core::{D, Result, Tensor, bail};
use std::ops::Range;

/// Weight `[outer, inner]` and bias `[outer]` of a frozen layer.
#[derive(Clone)]
pub struct FrozenLayer {
    /// W: `[outer, inner]`.
    pub weight: FrozenWeight,
    /// b: `[outer]`.
    pub bias: Option<Tensor>,
}

/// A low-rank adapter on a layer: `scale·(x·downᵀ)·upᵀ` is added to its output (PEFT's `lora.Linear`).
#[derive(Clone)]
pub struct LowRank {
    /// A: `[rank, inner]`, f32.
    pub down: Variable,
    /// B: `[outer, rank]`, f32.
    pub up: Variable,
    /// alpha / rank.
    pub scale: f64,
}

/// A layer with its adapter.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// The frozen layer.
    pub frozen: &'a FrozenLayer,
    /// Its adapter.
    pub low_rank: Option<&'a LowRank>,
}

/// `y = x·Wᵀ + b`, plus the adapter's part: x `[…, inner]`, y `[…, outer]`. Gradients reach x and the adapter, never W or b.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear(x: &Variable, layer: Layer) -> Result<Variable> {
    Linear::run(&[(x, None, layer)])
}

/// [`linear`] of some tokens: x `[batch, tokens, inner]`, y `[batch, window, outer]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear_of_window(x: &Variable, window: Range<usize>, layer: Layer) -> Result<Variable> {
    Linear::run(&[(x, Some(window), layer)])
}

/// [`linear`] of several sequences, each by a layer of its own, joined along the tokens: each x `[batch, tokens, inner]`, y
/// `[batch, all tokens, outer]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn joint_linear(parts: &[(&Variable, Layer)]) -> Result<Variable> {
    let parts: Vec<_> = parts.iter().map(|(x, layer)| (*x, None, *layer)).collect();
    Linear::run(&parts)
}

/// Tokens that a part reads or writes, of all in a batch entry.
#[derive(Clone, Copy)]
struct Window {
    start: usize,
    tokens: usize,
    all: usize,
}

impl Window {
    fn is_whole(&self) -> bool {
        self.tokens == self.all
    }
}

/// One layer's share of the work.
struct LayerPart {
    weight: FrozenWeight,
    bias: Option<Tensor>,
    scale: f64,
    /// The number of x among the inputs; those of the adapter's down and up follow it.
    input: usize,
    is_adapted: bool,
    from: Window,
    to: Window,
}

impl LayerPart {
    fn outer(&self) -> usize {
        self.weight.dims()[0]
    }

    fn inner(&self) -> usize {
        self.weight.dims()[1]
    }

    /// The weight in the type of the arithmetic.
    fn weight(&self, like: &Tensor) -> Result<Tensor> {
        self.weight.in_type(like.dtype())
    }

    /// Its x and its adapter, if it has one.
    fn adapted<'a>(&self, saved: &'a Saved) -> Result<Option<[&'a Tensor; 3]>> {
        let input = |number: usize| saved.input(self.input + number);
        if self.is_adapted { Ok(Some([input(0)?, input(1)?, input(2)?])) } else { Ok(None) }
    }

    /// Its tokens, and nothing else.
    fn alone(&self) -> Window {
        Window { start: 0, tokens: self.from.tokens, all: self.from.tokens }
    }
}

/// Inputs: of every part x, and its adapter's down and up.
struct Linear {
    batch: usize,
    parts: Vec<LayerPart>,
    shape: Vec<usize>,
}

impl Linear {
    /// How many blocks of how many rows two windows are: one block, where all their rows follow each other.
    fn blocks(&self, a: Window, b: Window) -> (usize, usize) {
        if a.is_whole() && b.is_whole() { (1, self.batch * a.tokens) } else { (self.batch, a.tokens) }
    }

    fn run(given: &[(&Variable, Option<Range<usize>>, Layer)]) -> Result<Variable> {
        let Some((first, ..)) = given.first() else { bail!("a projection of nothing") };
        // A tensor of other than three dimensions is one batch entry.
        let as_tokens = |x: &Variable| match x.dims() {
            &[batch, tokens, _] => (batch, tokens),
            dims => (1, dims[..dims.len().saturating_sub(1)].iter().product()),
        };
        let (batch, _) = as_tokens(first);
        let window = |x: &Variable, range: &Option<Range<usize>>| {
            let (_, all) = as_tokens(x);
            let range = range.clone().unwrap_or(0..all);
            Window { start: range.start, tokens: range.len(), all }
        };
        let all = given.iter().map(|(x, range, _)| window(x, range).tokens).sum();
        let (mut inputs, mut parts, mut start) = (vec![], vec![], 0);
        for (x, range, layer) in given {
            let from = window(x, range);
            let (outer, inner) = layer.frozen.weight.dims2()?;
            if x.tensor().dim(D::Minus1)? != inner || as_tokens(x).0 != batch || from.start + from.tokens > from.all {
                bail!("linear: x {:?}, weight {:?}, tokens {range:?}", x.dims(), layer.frozen.weight.dims());
            }
            parts.push(LayerPart {
                weight: layer.frozen.weight.clone(),
                bias: layer.frozen.bias.clone(),
                scale: layer.low_rank.map_or(0.0, |low_rank| low_rank.scale),
                input: inputs.len(),
                is_adapted: layer.low_rank.is_some(),
                from,
                to: Window { start, tokens: from.tokens, all },
            });
            start += from.tokens;
            inputs.push(*x);
            if let Some(LowRank { down, up, .. }) = layer.low_rank {
                let rank = down.dims().first().copied().unwrap_or(0);
                if down.dims() != [rank, inner] || up.dims() != [outer, rank] {
                    bail!("linear: an adapter {:?}, {:?} on a weight [{outer}, {inner}]", down.dims(), up.dims());
                }
                inputs.extend([down, up]);
            }
        }
        let outer = parts[0].outer();
        if parts.iter().any(|part| part.outer() != outer) {
            bail!("linear: layers of different widths are joined");
        }
        let shape = match first.dims() {
            &[batch, _, _] => vec![batch, all, outer],
            dims => [&dims[..dims.len() - 1], &[outer]].concat(),
        };
        apply(Self { batch, parts, shape }, &inputs)
    }
}
