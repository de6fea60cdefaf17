//! A frozen projection with its trainable low-rank adapter, in one node.
use super::function::{Function, Values, apply};
use crate::ops::kernels::cpu::{Product, Start, Threads, View};
use candle_core::{D, DType, Device, Result, Tensor};

/// `y = x·Wᵀ + b`, and `+ scale·(x·Aᵀ)·Bᵀ` with an adapter (PEFT's `lora.Linear`).
///
/// x `[…, in]`, weight `[out, in]`, bias `[out]`; the adapter is (A `[rank, in]`, B `[out, rank]`, scale), both in
/// f32. Gradients reach x, A and B, never weight or bias.
pub fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    adapter: Option<(&Tensor, &Tensor, f64)>,
) -> Result<Tensor> {
    let scale = adapter.map_or(0.0, |(_, _, scale)| scale);
    let function = Linear { weight: weight.clone(), bias: bias.cloned(), scale };
    match adapter {
        None => apply(function, &[x]),
        Some((down, up, _)) => apply(function, &[x, &down.to_dtype(x.dtype())?, &up.to_dtype(x.dtype())?]),
    }
}

/// `x` `[…, width]` as `[rows, width]`.
pub(super) fn rows(x: &Tensor) -> Result<Tensor> {
    x.reshape(((), x.dim(D::Minus1)?))
}

/// The shape of `x` with `width` in its last place.
pub(super) fn with_width(x: &Tensor, width: usize) -> Vec<usize> {
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    shape
}

pub(super) struct Linear {
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
    pub(super) scale: f64,
}

fn product<'a>(shape: (usize, usize, usize), a: View<'a>, b: View<'a>, scale: f32) -> Product<'a> {
    Product { shape, a, b, scale, start: Start::Zero, threads: Threads::All }
}

/// Whether `W + scale·B·A` takes fewer operations than `x·Aᵀ` and what follows.
fn is_worth_merging(rows: usize, inner: usize, outer: usize) -> bool {
    inner * outer < rows * (inner + outer)
}

impl Linear {
    /// `W + scale·B·A`, `[outer, inner]`.
    fn merged(&self, weight: &[f32], down: &[f32], up: &[f32]) -> Vec<f32> {
        let (outer, inner) = (self.weight.dims()[0], self.weight.dims()[1]);
        let rank = up.len() / outer;
        let mut merged = weight.to_vec();
        let part = product((outer, rank, inner), View::rows(up, rank), View::rows(down, inner), self.scale as f32);
        Product { start: Start::Output, ..part }.into(&mut merged, inner);
        merged
    }

    /// The weight in the type of the arithmetic. It is kept as it is stored: a converted copy would live as long as
    /// the graph.
    fn weight(&self, like: &Tensor) -> Result<Tensor> {
        self.weight.to_dtype(like.dtype())
    }
}

impl Function for Linear {
    const NAME: &'static str = "linear";

    fn composed(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let x = rows(&inputs[0])?;
        let mut y = x.matmul(&self.weight(&x)?.t()?)?;
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(&bias.to_dtype(y.dtype())?)?;
        }
        if let [_, down, up] = inputs {
            y = (y + (x.matmul(&down.t()?)?.matmul(&up.t()?)? * self.scale)?)?;
        }
        let outer = y.dim(1)?;
        y.reshape(with_width(&inputs[0], outer))
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, inputs: &[Tensor]) -> Result<Option<super::cuda::Forward>> {
        super::cuda::linear::forward(inputs, &self.weight(&inputs[0])?, self.bias.as_ref(), self.scale)
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, of: &super::cuda::Backward) -> Result<super::cuda::Gradients> {
        super::cuda::linear::backward(of, &self.weight(of.grad)?, self.scale).map(Some)
    }

    fn cpu_forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (outer, inner) = self.weight.dims2()?;
        let rows = inputs[0].elem_count() / inner;
        let x = Values::of(&inputs[0])?;
        let weight = self.weight(&inputs[0])?;
        let weight = Values::of(&weight)?;
        let bias = self.bias.as_ref().map(|bias| bias.to_dtype(DType::F32)?.contiguous()).transpose()?;
        let bias = bias.as_ref().map(Values::of).transpose()?;
        let start = bias.as_ref().map_or(Start::Zero, |bias| Start::Row(bias));
        let x = View::rows(&x, inner);
        let projected = |weight: &[f32]| {
            let weight = View::rows(weight, inner).transposed();
            Product { start, ..product((rows, inner, outer), x, weight, 1.0) }.values()
        };
        let y = match inputs {
            [_, down, up] => {
                let (down, up) = (Values::of(down)?, Values::of(up)?);
                if is_worth_merging(rows, inner, outer) {
                    projected(&self.merged(&weight, &down, &up))
                } else {
                    let mut y = projected(&weight);
                    let rank = down.len() / inner;
                    let down = View::rows(&down, inner).transposed();
                    let reduced = product((rows, inner, rank), x, down, 1.0).values();
                    let (reduced, up) = (View::rows(&reduced, rank), View::rows(&up, rank).transposed());
                    let part = product((rows, rank, outer), reduced, up, self.scale as f32);
                    Product { start: Start::Output, ..part }.into(&mut y, outer);
                    y
                }
            }
            _ => projected(&weight),
        };
        Tensor::from_vec(y, with_width(&inputs[0], outer), &Device::Cpu)
    }

    fn cpu_backward(
        &self,
        inputs: &[Tensor],
        _: &Tensor,
        grad: &Tensor,
        needs: &[bool],
    ) -> Result<Vec<Option<Tensor>>> {
        let (outer, inner) = self.weight.dims2()?;
        let rows = inputs[0].elem_count() / inner;
        let weight = self.weight(&inputs[0])?.contiguous()?;
        let (grad, weight) = (Values::of(grad)?, Values::of(&weight)?);
        let grad = View::rows(&grad, outer);
        let through = |weight: &[f32]| product((rows, outer, inner), grad, View::rows(weight, inner), 1.0).values();
        let shape = inputs[0].dims().to_vec();
        let gradients = if let [x, down, up] = inputs {
            let rank = down.dim(0)?;
            let (x, down, up) = (Values::of(x)?, Values::of(down)?, Values::of(up)?);
            let (mut dx, mut d_down, mut d_up) = (vec![], vec![], vec![]);
            // The gradient of x·Aᵀ.
            let reduced = product((rows, outer, rank), grad, View::rows(&up, rank), self.scale as f32).values();
            let reduced = View::rows(&reduced, rank);
            if needs[0] && is_worth_merging(rows, inner, outer) {
                dx = through(&self.merged(&weight, &down, &up));
            } else if needs[0] {
                dx = through(&weight);
                let part = product((rows, rank, inner), reduced, View::rows(&down, inner), 1.0);
                Product { start: Start::Output, ..part }.into(&mut dx, inner);
            }
            let x = View::rows(&x, inner);
            if needs[1] {
                d_down = product((rank, rows, inner), reduced.transposed(), x, 1.0).values();
            }
            if needs[2] {
                let down = View::rows(&down, inner).transposed();
                let low = product((rows, inner, rank), x, down, 1.0).values();
                // The transposed product reads the gradient where it lies.
                let low = View::rows(&low, rank).transposed();
                let turned = product((rank, rows, outer), low, grad, self.scale as f32).values();
                d_up = (0..outer)
                    .flat_map(|o| (0..rank).map(move |r| (o, r)))
                    .map(|(o, r)| turned[r * outer + o])
                    .collect();
            }
            vec![(needs[0], dx, shape), (needs[1], d_down, vec![rank, inner]), (needs[2], d_up, vec![outer, rank])]
        } else {
            vec![(needs[0], through(&weight), shape)]
        };
        let tensor = |(needed, values, shape)| match needed {
            true => Tensor::from_vec(values, shape, &Device::Cpu).map(Some),
            false => Ok(None),
        };
        gradients.into_iter().map(tensor).collect()
    }

    /// By tensor products; gradients of weight and bias are never formed.
    fn other_backward(&self, inputs: &[Tensor], grad: &Tensor, needs: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let (shape, grad) = (inputs[0].shape(), &rows(grad)?);
        let dx = if needs[0] { Some(grad.matmul(&self.weight(grad)?)?) } else { None };
        let [x, down, up] = inputs else { return Ok(vec![dx.map(|dx| dx.reshape(shape)).transpose()?]) };
        let x = &rows(x)?;
        let reduced = (grad.matmul(up)? * self.scale)?;
        let dx = dx.map(|dx| (dx + reduced.matmul(down)?)?.reshape(shape)).transpose()?;
        let d_down = if needs[1] { Some(reduced.t()?.matmul(x)?) } else { None };
        let d_up = if needs[2] { Some((grad.t()?.matmul(&x.matmul(&down.t()?)?)? * self.scale)?) } else { None };
        Ok(vec![dx, d_down, d_up])
    }
}
