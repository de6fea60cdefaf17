//! The second half of a block's stream: products by cuBLAS; norm, GELU and gate take the biases and the residual along.
use super::norm::{layer_norm_backward, layer_norm_forward};
use super::pointwise::{gated_backward, gated_forward, gelu_backward, gelu_forward};
use super::{Backward, Forward, Gradients, type_name};
use crate::ops::feed_forward::{FeedForward, FrozenLayer};
use crate::ops::linear::{rows, with_width};
use candle_core::{Result, Tensor};

/// The constants of a call in the type of its arithmetic.
struct Constants {
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
    up: FrozenLayer,
    down: FrozenLayer,
}

impl Constants {
    /// None if there are no kernels for this type.
    fn of(function: &FeedForward, x: &Tensor) -> Result<Option<Self>> {
        if type_name(&[x]).is_none() {
            return Ok(None);
        }
        let of = |tensor: &Tensor| tensor.detach().to_dtype(x.dtype())?.contiguous();
        let layer = |layer: &FrozenLayer| {
            Result::Ok(FrozenLayer { weight: of(&layer.weight)?, bias: layer.bias.as_ref().map(of).transpose()? })
        };
        let FeedForward { shift, scale, gate, up, down, .. } = function;
        Ok(Some(Self { shift: of(shift)?, scale: of(scale)?, gate: of(gate)?, up: layer(up)?, down: layer(down)? }))
    }
}

/// `x·Wᵀ` of `x` `[…, in]`, without the bias.
fn project(x: &Tensor, layer: &FrozenLayer) -> Result<Tensor> {
    rows(x)?.matmul(&layer.weight.t()?)?.reshape(with_width(x, layer.weight.dim(0)?))
}

/// The gradient of `x` `[…, in]` from that of its projection.
fn project_backward(grad: &Tensor, layer: &FrozenLayer) -> Result<Tensor> {
    rows(grad)?.matmul(&layer.weight)?.reshape(with_width(grad, layer.weight.dim(1)?))
}

/// x `[batch, tokens, width]`. Keeps what goes into the GELU, before its bias: `[batch, tokens, hidden]`.
pub(in crate::ops) fn forward(function: &FeedForward, x: &Tensor) -> Result<Option<Forward>> {
    let Some(of) = Constants::of(function, x)? else { return Ok(None) };
    let Some((normed, _)) = layer_norm_forward(x, &of.shift, &of.scale)? else { return Ok(None) };
    let before = project(&normed, &of.up)?;
    drop(normed);
    let Some((hidden, _)) = gelu_forward(&before, of.up.bias.as_ref())? else { return Ok(None) };
    let update = project(&hidden, &of.down)?;
    let Some((out, _)) = gated_forward(x, &update, of.down.bias.as_ref(), &of.gate)? else { return Ok(None) };
    Ok(Some((out, vec![before])))
}

/// The gradient of x, after [`forward`].
pub(in crate::ops) fn backward(function: &FeedForward, given: &Backward) -> Result<Gradients> {
    let ([x], [before]) = (given.inputs, given.kept) else { return Ok(None) };
    let Some(of) = Constants::of(function, x)? else { return Ok(None) };
    let grad = given.grad.to_dtype(x.dtype())?;
    let Some(d_update) = gated_backward(&grad, &of.gate)? else { return Ok(None) };
    let d_hidden = project_backward(&d_update, &of.down)?;
    drop(d_update);
    let Some(d_before) = gelu_backward(before, of.up.bias.as_ref(), &d_hidden)? else { return Ok(None) };
    drop(d_hidden);
    let d_normed = project_backward(&d_before, &of.up)?;
    Ok(layer_norm_backward(x, &of.scale, &d_normed, Some(&grad))?.map(|dx| vec![Some(dx)]))
}
