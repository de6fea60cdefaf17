//! Frozen projections with trainable low-rank adapters: of whole tensors, of a window of a joint sequence, and of several
//! sequences into one.
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reference;

use super::backend::{Backend, reference_backward};
use crate::autograd::{Gradients, Op, Variable, apply};
use candle_core::{D, Result, Tensor, bail};
use std::ops::Range;

/// Weight `[outer, inner]` and bias `[outer]` of a frozen layer.
#[derive(Clone)]
pub struct FrozenLayer {
    /// W: `[outer, inner]`.
    pub weight: Tensor,
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
struct Part {
    weight: Tensor,
    bias: Option<Tensor>,
    scale: f64,
    /// The number of x among the inputs; those of the adapter's down and up follow it.
    input: usize,
    is_adapted: bool,
    from: Window,
    to: Window,
}

impl Part {
    fn outer(&self) -> usize {
        self.weight.dims()[0]
    }

    fn inner(&self) -> usize {
        self.weight.dims()[1]
    }

    /// The weight in the type of the arithmetic. It is kept as it is stored: a converted copy would live as long as the
    /// graph.
    fn weight(&self, like: &Tensor) -> Result<Tensor> {
        self.weight.to_dtype(like.dtype())?.contiguous()
    }

    /// The adapter among tensors in the inputs' order.
    fn low_rank<'a>(&self, tensors: &'a [Option<Tensor>]) -> Option<(&'a Tensor, &'a Tensor)> {
        match &tensors[self.input + 1..] {
            [Some(down), Some(up), ..] if self.is_adapted => Some((down, up)),
            _ => None,
        }
    }
}

struct Linear {
    batch: usize,
    parts: Vec<Part>,
    shape: Vec<usize>,
}

impl Linear {
    fn run(given: &[(&Variable, Option<Range<usize>>, Layer)]) -> Result<Variable> {
        let Some((first, ..)) = given.first() else { bail!("a projection of nothing") };
        // A tensor of other than three dimensions is one batch entry.
        let as_tokens = |x: &Variable| match (x.dims(), given.len()) {
            (&[batch, tokens, _], _) => (batch, tokens),
            (dims, _) => (1, dims[..dims.len().saturating_sub(1)].iter().product()),
        };
        let (batch, _) = as_tokens(first);
        let window = |x: &Variable, window: &Option<Range<usize>>| {
            let (_, all) = as_tokens(x);
            window.as_ref().map_or(Window { start: 0, tokens: all, all }, |window| Window {
                start: window.start,
                tokens: window.len(),
                all,
            })
        };
        let all = given.iter().map(|(x, range, _)| window(x, range).tokens).sum();
        let (mut inputs, mut parts, mut start) = (vec![], vec![], 0);
        for (x, range, layer) in given {
            let from = window(x, range);
            let (outer, inner) = layer.frozen.weight.dims2()?;
            if x.tensor().dim(D::Minus1)? != inner || as_tokens(x).0 != batch || from.start + from.tokens > from.all {
                bail!("linear: x {:?}, weight {:?}, tokens {range:?}", x.dims(), layer.frozen.weight.dims());
            }
            parts.push(Part {
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
        let mut shape = first.dims().to_vec();
        if let [.., tokens, width] = &mut shape[..]
            && first.dims().len() == 3
        {
            (*tokens, *width) = (all, outer);
        } else if let Some(width) = shape.last_mut() {
            *width = outer;
        }
        apply(Self { batch, parts, shape }, &inputs)
    }

    /// Whether a wide enough adapter, or few enough values, make `W + scale·B·A` fewer operations than `x·Aᵀ` and what follows.
    fn is_worth_merging(&self, part: &Part) -> bool {
        part.inner() * part.outer() < self.batch * part.from.tokens * (part.inner() + part.outer())
    }

    /// x and the output as the inputs of the reference are: every part's x, then its adapter's two matrices.
    fn reference(&self, inputs: &[Tensor]) -> Result<Tensor> {
        reference::forward(self, inputs)
    }
}

/// What the backward pass needs: in the inputs' order, x where an adapter needs it, and adapters in x's type.
struct Saved {
    tensors: Vec<Option<Tensor>>,
    /// `scale·x·downᵀ` of every part, where the forward pass had it on a GPU.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code))]
    reduced: Vec<Option<Tensor>>,
    dtype: candle_core::DType,
    shapes: Vec<candle_core::Shape>,
}

impl Op for Linear {
    const NAME: &'static str = "linear";
    type Saved = Saved;

    fn forward(&self, inputs: &[&Tensor], needs: &[bool]) -> Result<(Tensor, Option<Saved>)> {
        let dtype = inputs[0].dtype();
        let of = inputs.iter().map(|input| input.to_dtype(dtype)?.contiguous()).collect::<Result<Vec<_>>>()?;
        let (y, reduced) = match Backend::of(&of.iter().collect::<Vec<_>>()) {
            Backend::Cpu => (cpu::forward(self, &of)?, vec![]),
            #[cfg(feature = "cuda")]
            Backend::Cuda => cuda::forward(self, &of)?,
            Backend::Reference => (self.reference(&of)?, vec![]),
        };
        if !needs.contains(&true) {
            return Ok((y, None));
        }
        let shapes = of.iter().map(|tensor| tensor.shape().clone()).collect();
        let mut tensors: Vec<Option<Tensor>> = of.into_iter().map(Some).collect();
        for part in self.parts.iter().filter(|part| !part.is_adapted) {
            tensors[part.input] = None;
        }
        Ok((y, Some(Saved { tensors, reduced, dtype, shapes })))
    }

    fn backward(&self, saved: Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let gradient = gradient.to_dtype(saved.dtype)?.contiguous()?;
        match Backend::of(&[&gradient]) {
            Backend::Cpu => cpu::backward(self, &saved, &gradient, gradients),
            #[cfg(feature = "cuda")]
            Backend::Cuda => cuda::backward(self, &saved, &gradient, gradients),
            Backend::Reference => {
                // A frozen layer's x does not matter to its gradient.
                let inputs = saved.tensors.iter().zip(&saved.shapes).map(|(tensor, shape)| match tensor {
                    Some(tensor) => Ok(tensor.clone()),
                    None => Tensor::zeros(shape, saved.dtype, gradient.device()),
                });
                let inputs = inputs.collect::<Result<Vec<_>>>()?;
                reference_backward(|inputs| self.reference(inputs), &inputs, &gradient, gradients)
            }
        }
    }
}
