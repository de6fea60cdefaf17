//! GELU and the gated residual in candle's operations.
use candle_core::{Result, Tensor};

/// inputs: x.
pub fn gelu(inputs: &[Tensor]) -> Result<Tensor> {
    inputs[0].gelu()
}

/// inputs: x and y `[batch, tokens, width]`, gate `[batch, width]`.
pub fn gated_residual(inputs: &[Tensor]) -> Result<Tensor> {
    &inputs[0] + inputs[1].broadcast_mul(&inputs[2].unsqueeze(1)?)?
}
