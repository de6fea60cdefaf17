//! The MLP with its norm and residual in candle's operations.
use super::FeedForward;
use crate::ops::linear::FrozenLayer;
use crate::ops::{norm, pointwise};
use candle_core::{Result, Tensor};

/// x `[batch, tokens, width]`.
pub fn forward(of: &FeedForward, x: &Tensor) -> Result<Tensor> {
    let project = |x: &Tensor, layer: &FrozenLayer| {
        let y = x.broadcast_matmul(&layer.weight.t()?)?;
        match &layer.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    };
    let normed = norm::reference::layer_norm_modulate(&[x.clone(), of.shift.clone(), of.scale.clone()])?;
    let hidden = project(&normed, &of.up)?.gelu()?;
    let update = project(&hidden, &of.down)?;
    pointwise::reference::gated_residual(&[x.clone(), update, of.gate.clone()])
}
