//! A frozen projection with its trainable low-rank adapter, in one node.
use super::cpu::{Product, Start, Threads, View};
use super::function::{Function, Values, apply};
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

impl Linear {
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
    fn cuda_backward(
        &self,
        inputs: &[Tensor],
        _: &Tensor,
        kept: &[Tensor],
        grad: &Tensor,
        needs: &[bool],
    ) -> Result<Option<Vec<Option<Tensor>>>> {
        super::cuda::linear::backward(inputs, kept, &self.weight(grad)?, self.scale, grad, needs).map(Some)
    }

    fn cpu_forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (outer, inner) = self.weight.dims2()?;
        let rows = inputs[0].elem_count() / inner;
        let x = Values::of(&inputs[0])?;
        let weight = self.weight(&inputs[0])?;
        let weight = Values::of(&weight)?;
        let bias = self.bias.as_ref().map(|bias| bias.to_dtype(DType::F32)?.contiguous()).transpose()?;
        let bias = bias.as_ref().map(Values::of).transpose()?;
        let mut y = Product {
            shape: (rows, inner, outer),
            a: View::rows(&x, inner),
            b: View::rows(&weight, inner).transposed(),
            scale: 1.0,
            start: bias.as_ref().map_or(Start::Zero, |bias| Start::Row(bias)),
            threads: Threads::All,
        }
        .values();
        if let [_, down, up] = inputs {
            let rank = down.dim(0)?;
            let (down, up) = (Values::of(down)?, Values::of(up)?);
            let reduced = Product {
                shape: (rows, inner, rank),
                a: View::rows(&x, inner),
                b: View::rows(&down, inner).transposed(),
                scale: 1.0,
                start: Start::Zero,
                threads: Threads::All,
            }
            .values();
            Product {
                shape: (rows, rank, outer),
                a: View::rows(&reduced, rank),
                b: View::rows(&up, rank).transposed(),
                scale: self.scale as f32,
                start: Start::Output,
                threads: Threads::All,
            }
            .into(&mut y, outer);
        }
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
        let product = |shape: (usize, usize, usize), a, b, scale| Product {
            shape,
            a,
            b,
            scale,
            start: Start::Zero,
            threads: Threads::All,
        };
        let mut dx = vec![];
        if needs[0] {
            dx = product((rows, outer, inner), View::rows(&grad, outer), View::rows(&weight, inner), 1.0).values();
        }
        let mut gradients = vec![];
        if let [x, down, up] = inputs {
            let rank = down.dim(0)?;
            let (x, down, up) = (Values::of(x)?, Values::of(down)?, Values::of(up)?);
            let scale = self.scale as f32;
            // The gradient of x·Aᵀ.
            let reduced = product((rows, outer, rank), View::rows(&grad, outer), View::rows(&up, rank), scale).values();
            if needs[0] {
                let part = product((rows, rank, inner), View::rows(&reduced, rank), View::rows(&down, inner), 1.0);
                Product { start: Start::Output, ..part }.into(&mut dx, inner);
            }
            let (mut d_down, mut d_up) = (vec![], vec![]);
            if needs[1] {
                let reduced = View::rows(&reduced, rank).transposed();
                d_down = product((rank, rows, inner), reduced, View::rows(&x, inner), 1.0).values();
            }
            if needs[2] {
                let down = View::rows(&down, inner).transposed();
                let low = product((rows, inner, rank), View::rows(&x, inner), down, 1.0).values();
                let grad = View::rows(&grad, outer).transposed();
                d_up = product((outer, rows, rank), grad, View::rows(&low, rank), scale).values();
            }
            gradients = vec![(needs[1], d_down, vec![rank, inner]), (needs[2], d_up, vec![outer, rank])];
        }
        gradients.insert(0, (needs[0], dx, inputs[0].dims().to_vec()));
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
