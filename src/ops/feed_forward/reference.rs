//! The MLP with its norm and residual in candle's operations.
use super::FeedForward;
use crate::ops::backend::Reference;
use crate::ops::linear::FrozenLayer;
use crate::ops::norm::LayerNormModulate;
use crate::ops::pointwise::GatedResidual;
use candle_core::{Result, Tensor};

impl Reference for FeedForward {
    fn reference(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let x = &inputs[0];
        let of = self.in_type(x.dtype())?;
        let project = |x: &Tensor, layer: &FrozenLayer| {
            let y = x.broadcast_matmul(&layer.weight.in_type(x.dtype())?.t()?)?;
            match &layer.bias {
                Some(bias) => y.broadcast_add(bias),
                None => Ok(y),
            }
        };
        let normed = LayerNormModulate.reference(&[x.clone(), of.shift, of.scale])?;
        let hidden = project(&normed, &of.up)?.gelu()?;
        let update = project(&hidden, &of.down)?;
        GatedResidual.reference(&[x.clone(), update, of.gate])
    }
}
