//! Projections in candle's operations.
use super::Linear;
use crate::ops::backend::Reference;
use candle_core::{Result, Tensor};

impl Reference for Linear {
    fn reference(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let mut joined = vec![];
        for part in &self.parts {
            let (inner, outer) = (part.inner(), part.outer());
            let x = inputs[part.input].reshape((self.batch, part.from.all, inner))?;
            let x = x.narrow(1, part.from.start, part.from.tokens)?.contiguous()?.reshape(((), inner))?;
            let mut y = x.matmul(&part.weight(&x)?.t()?)?;
            if let Some(bias) = &part.bias {
                y = y.broadcast_add(&bias.to_dtype(y.dtype())?)?;
            }
            if part.is_adapted {
                let (down, up) = (&inputs[part.input + 1], &inputs[part.input + 2]);
                y = (y + (x.matmul(&down.t()?)?.matmul(&up.t()?)? * part.scale)?)?;
            }
            joined.push(y.reshape((self.batch, part.to.tokens, outer))?);
        }
        Tensor::cat(&joined, 1)?.reshape(&self.shape[..])
    }

    /// In x's type: adapters are f32 whatever the arithmetic is in.
    fn arguments(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        inputs.iter().map(|input| input.to_dtype(inputs[0].dtype())?.contiguous()).collect()
    }

    /// A frozen layer's x does not matter to its gradient.
    fn saves(&self, input: usize, _: &[bool]) -> bool {
        self.parts.iter().all(|part| part.is_adapted || part.input != input)
    }
}
