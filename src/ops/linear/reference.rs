//! Projections in candle's operations.
use super::Linear;
use candle_core::{Result, Tensor};

/// `inputs` in the operation's order.
pub fn forward(op: &Linear, inputs: &[Tensor]) -> Result<Tensor> {
    let mut joined = vec![];
    for part in &op.parts {
        let (inner, outer) = (part.inner(), part.outer());
        let x = inputs[part.input].reshape((op.batch, part.from.all, inner))?;
        let x = x.narrow(1, part.from.start, part.from.tokens)?.contiguous()?.reshape(((), inner))?;
        let mut y = x.matmul(&part.weight(&x)?.t()?)?;
        if let Some(bias) = &part.bias {
            y = y.broadcast_add(&bias.to_dtype(y.dtype())?)?;
        }
        if part.is_adapted {
            let (down, up) = (&inputs[part.input + 1], &inputs[part.input + 2]);
            y = (y + (x.matmul(&down.t()?)?.matmul(&up.t()?)? * part.scale)?)?;
        }
        joined.push(y.reshape((op.batch, part.to.tokens, outer))?);
    }
    Tensor::cat(&joined, 1)?.reshape(&op.shape[..])
}
