//! A frozen projection with its trainable low-rank adapter, in one node.
use super::cpu::{Product, Threads, View};
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
        let mut y = match &self.bias {
            Some(bias) => Values::of(&bias.to_dtype(DType::F32)?)?.repeat(rows),
            None => vec![0.0; rows * outer],
        };
        Product {
            shape: (rows, inner, outer),
            a: View::rows(&x, inner),
            b: View::rows(&weight, inner).transposed(),
            scale: 1.0,
            accumulate: true,
            threads: Threads::All,
        }
        .into(&mut y, outer);
        if let [_, down, up] = inputs {
            let rank = down.dim(0)?;
            let (down, up) = (Values::of(down)?, Values::of(up)?);
            let mut reduced = vec![0.0; rows * rank];
            Product {
                shape: (rows, inner, rank),
                a: View::rows(&x, inner),
                b: View::rows(&down, inner).transposed(),
                scale: 1.0,
                accumulate: false,
                threads: Threads::All,
            }
            .into(&mut reduced, rank);
            Product {
                shape: (rows, rank, outer),
                a: View::rows(&reduced, rank),
                b: View::rows(&up, rank).transposed(),
                scale: self.scale as f32,
                accumulate: true,
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
        let product = |shape: (usize, usize, usize), a, b, scale, out: &mut Vec<f32>| {
            // What is there already is added to.
            let accumulate = !out.is_empty();
            out.resize(shape.0 * shape.2, 0.0);
            Product { shape, a, b, scale, accumulate, threads: Threads::All }.into(out, shape.2);
        };
        let mut dx = vec![];
        if needs[0] {
            product((rows, outer, inner), View::rows(&grad, outer), View::rows(&weight, inner), 1.0, &mut dx);
        }
        let mut gradients = vec![];
        if let [x, down, up] = inputs {
            let rank = down.dim(0)?;
            let (x, down, up) = (Values::of(x)?, Values::of(down)?, Values::of(up)?);
            let scale = self.scale as f32;
            // The gradient of x·Aᵀ.
            let mut reduced = vec![];
            product((rows, outer, rank), View::rows(&grad, outer), View::rows(&up, rank), scale, &mut reduced);
            if needs[0] {
                product((rows, rank, inner), View::rows(&reduced, rank), View::rows(&down, inner), 1.0, &mut dx);
            }
            let (mut d_down, mut d_up) = (vec![], vec![]);
            if needs[1] {
                let reduced = View::rows(&reduced, rank).transposed();
                product((rank, rows, inner), reduced, View::rows(&x, inner), 1.0, &mut d_down);
            }
            if needs[2] {
                let mut low = vec![];
                product(
                    (rows, inner, rank),
                    View::rows(&x, inner),
                    View::rows(&down, inner).transposed(),
                    1.0,
                    &mut low,
                );
                let grad = View::rows(&grad, outer).transposed();
                product((outer, rows, rank), grad, View::rows(&low, rank), scale, &mut d_up);
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
