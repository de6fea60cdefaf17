//! A frozen projection with its trainable low-rank adapter, in one node.
use super::cpu::{Product, Threads, View};
use super::function::{Function, Values, apply};
use candle_core::{DType, Device, Result, Tensor};

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
    let (rows, inner) = (x.elem_count() / x.dim(candle_core::D::Minus1)?, x.dim(candle_core::D::Minus1)?);
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = weight.dim(0)?;
    }
    let scale = adapter.map_or(0.0, |(_, _, scale)| scale);
    let function = Linear { weight: weight.clone(), bias: bias.cloned(), scale };
    let x = x.reshape((rows, inner))?;
    match adapter {
        None => apply(function, &[&x]),
        Some((down, up, _)) => apply(function, &[&x, &down.to_dtype(x.dtype())?, &up.to_dtype(x.dtype())?]),
    }?
    .reshape(shape)
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

    /// Gradients by tensor products, on any device; those of weight and bias are never formed.
    fn backward(&self, inputs: &[Tensor], grad: &Tensor, needs: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let mut dx = if needs[0] { Some(grad.matmul(&self.weight(grad)?)?) } else { None };
        let [x, down, up] = inputs else { return Ok(vec![dx]) };
        let reduced = (grad.matmul(up)? * self.scale)?;
        if let Some(dx) = &mut dx {
            *dx = (&*dx + reduced.matmul(down)?)?;
        }
        let d_down = if needs[1] { Some(reduced.t()?.matmul(x)?) } else { None };
        let d_up = if needs[2] { Some((grad.t()?.matmul(&x.matmul(&down.t()?)?)? * self.scale)?) } else { None };
        Ok(vec![dx, d_down, d_up])
    }
}

impl Function for Linear {
    const NAME: &'static str = "linear";

    fn composed(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let mut y = inputs[0].matmul(&self.weight(&inputs[0])?.t()?)?;
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(&bias.to_dtype(y.dtype())?)?;
        }
        match inputs {
            [x, down, up] => y + (x.matmul(&down.t()?)?.matmul(&up.t()?)? * self.scale)?,
            _ => Ok(y),
        }
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
        let (rows, inner) = inputs[0].dims2()?;
        let outer = self.weight.dim(0)?;
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
        Tensor::from_vec(y, (rows, outer), &Device::Cpu)
    }

    fn cpu_backward(
        &self,
        inputs: &[Tensor],
        _: &Tensor,
        grad: &Tensor,
        needs: &[bool],
    ) -> Result<Vec<Option<Tensor>>> {
        self.backward(inputs, grad, needs)
    }

    fn other_backward(&self, inputs: &[Tensor], grad: &Tensor, needs: &[bool]) -> Result<Vec<Option<Tensor>>> {
        self.backward(inputs, grad, needs)
    }
}
