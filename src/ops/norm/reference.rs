//! Both norms in candle's operations.
use super::{EPSILON, LayerNormModulate, RmsNorm};
use crate::ops::backend::Reference;
use candle_core::{D, DType, Result, Tensor};

impl Reference for LayerNormModulate {
    fn reference(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let dtype = inputs[0].dtype();
        let x = inputs[0].to_dtype(DType::F32)?;
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred.broadcast_div(&(variance + EPSILON)?.sqrt()?)?;
        let shift = inputs[1].to_dtype(DType::F32)?.unsqueeze(1)?;
        let scale = (inputs[2].to_dtype(DType::F32)?.unsqueeze(1)? + 1.0)?;
        normed.broadcast_mul(&scale)?.broadcast_add(&shift)?.to_dtype(dtype)
    }

    fn saves(&self, input: usize, needs: &[bool]) -> bool {
        input != 1 || !self.has_backward(needs)
    }

    /// Modulation needs gradients only where an adapter sits on it: too rare to have a loop of its own.
    fn has_backward(&self, needs: &[bool]) -> bool {
        !needs[1] && !needs[2]
    }
}

impl Reference for RmsNorm {
    fn reference(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let x = &inputs[0];
        let (batch, _, width) = x.dims3()?;
        let mut first = 0;
        let mut parts = vec![];
        for (tokens, weight) in &self.weights {
            let head_dim = weight.elem_count();
            let part = x.narrow(1, first, *tokens)?.reshape((batch, *tokens, width / head_dim, head_dim))?;
            first += tokens;
            let part = part.to_dtype(DType::F32)?;
            let rms = (part.sqr()?.mean_keepdim(D::Minus1)? + EPSILON)?.sqrt()?;
            let normed = part.broadcast_div(&rms)?.broadcast_mul(&weight.to_dtype(DType::F32)?)?;
            parts.push(normed.reshape((batch, *tokens, width))?.to_dtype(x.dtype())?);
        }
        Tensor::cat(&parts, 1)
    }
}
