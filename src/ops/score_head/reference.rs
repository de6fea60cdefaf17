//! The score head in candle's operations.
use super::{CHANNELS, Precision, ScoreHead, products, tensors};
use crate::ops::backend::{Gradients, Reference};
use candle_core::{DType, Result, Tensor};

/// Values that convolutions hold at a time.
const VALUES: usize = 1 << 28;

impl Reference for ScoreHead {
    fn reference(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (count, height, width) = inputs[0].dims3()?;
        let parameters = tensors(&inputs[1])?;
        // candle unfolds a convolution's input: nine times the hidden layers of a chunk of maps is what is held.
        let chunk = (VALUES / (9 * CHANNELS * height * width)).max(1);
        let mut parts = vec![];
        for first in (0..count).step_by(chunk) {
            let maps = inputs[0].narrow(0, first, chunk.min(count - first))?;
            let mut x = maps.unsqueeze(1)?;
            for (layer, pair) in parameters.chunks_exact(2).enumerate() {
                let hidden = if layer == 0 { x } else { x.relu()? };
                let rounded = |factor: &Tensor| match (self.0, layer) {
                    (Precision::Bf16, 1) => factor.to_dtype(DType::BF16)?.to_dtype(factor.dtype()),
                    _ => Ok(factor.clone()),
                };
                let product = rounded(&hidden)?.conv2d(&rounded(&pair[0])?, 1, 1, 1, 1)?;
                x = product.broadcast_add(&pair[1].reshape((1, (), 1, 1))?)?;
            }
            parts.push((maps + x.squeeze(1)?)?);
        }
        Tensor::cat(&parts, 0)
    }

    fn reference_backward(&self, inputs: &[Tensor], gradient: &Tensor, gradients: &mut Gradients) -> Result<()> {
        let (d_maps, d_parameters) = products::backward(&inputs[0], &inputs[1], gradient)?;
        gradients.add(0, d_maps)?;
        gradients.add(1, d_parameters)
    }
}
