//! The second half of a block's stream: products by cuBLAS; norm, GELU and gate take the biases and the residual along.
use super::{FeedForward, FrozenLayer};
use crate::autograd::Gradients;
use crate::ops::backend::{Cuda, Forward, Saved};
use crate::ops::norm::cuda::{layer_norm_backward_into, layer_norm_forward};
use crate::ops::pointwise::cuda::{gated_backward, gated_forward, gelu_backward, gelu_forward};
use candle_core::{Result, Tensor};

/// x `[batch, tokens, inner]` times a matrix `[inner, outer]`.
fn project(x: &Tensor, matrix: &Tensor) -> Result<Tensor> {
    let (batch, tokens, inner) = x.dims3()?;
    x.reshape((batch * tokens, inner))?.matmul(matrix)?.reshape((batch, tokens, matrix.dim(1)?))
}

/// `x·Wᵀ`, without the bias.
fn project_forward(x: &Tensor, layer: &FrozenLayer) -> Result<Tensor> {
    project(x, &layer.weight.t()?)
}

impl Cuda for FeedForward {
    /// Leaves what goes into the GELU, before its bias: `[batch, tokens, hidden]`.
    fn forward_cuda(&self, inputs: &[Tensor]) -> Result<Option<Forward>> {
        let (x, of) = (&inputs[0], self.in_type(inputs[0].dtype())?);
        let normed = layer_norm_forward(x, &of.shift, &of.scale)?;
        let before = project_forward(&normed, &of.up)?;
        drop(normed);
        let hidden = gelu_forward(&before, of.up.bias.as_ref())?;
        let update = project_forward(&hidden, &of.down)?;
        Ok(Some((gated_forward(x, &update, of.down.bias.as_ref(), &of.gate)?, vec![before])))
    }

    fn backward_cuda(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let (x, [before]) = (saved.input(0)?, saved.kept()?);
        let of = self.in_type(x.dtype())?;
        let d_update = gated_backward(&gradient, &of.gate)?;
        let d_hidden = project(&d_update, &of.down.weight)?;
        drop(d_update);
        gelu_backward(before, of.up.bias.as_ref(), &d_hidden)?;
        let d_normed = project(&d_hidden, &of.up.weight)?;
        layer_norm_backward_into(x, &of.scale, &d_normed, &gradient, true)?;
        gradients.add(0, gradient)
    }
}
