//! The second half of a block's stream: products by cuBLASLt, which takes the first bias, GELU and its derivative along, or
//! by cuBLAS, after which kernels do; norm and gate take the modulation, the second bias and the residual along.
use super::FeedForward;
use crate::kernels::cuda::epilogue::Epilogue;
use crate::kernels::cuda::output;
use crate::kernels::cuda::product::{Matrix, Product};
use crate::ops::backend::{Cuda, Forward, Gradients, Saved};
use crate::ops::norm::cuda::{layer_norm_backward_into, layer_norm_forward};
use crate::ops::pointwise::cuda::{gated_backward, gated_forward, gelu_backward, gelu_forward};
use candle_core::{Result, Tensor, bail};

/// x `[batch, tokens, inner]` times a matrix `[inner, columns]`, and a tensor for the result.
fn project<'a>(x: &'a Tensor, b: Matrix<'a>, columns: usize) -> Result<(Product<'a>, Tensor)> {
    let (batch, tokens, inner) = x.dims3()?;
    let product = Product { shape: (batch * tokens, inner, columns), entries: 1, a: Matrix::of(x)?, b, scale: 1.0 };
    Ok((product, output((batch, tokens, columns), x.dtype(), x)?))
}

/// x times a weight `[columns, inner]`, transposed.
fn project_forward<'a>(x: &'a Tensor, weight: &'a Tensor) -> Result<(Product<'a>, Tensor)> {
    project(x, Matrix::of(weight)?.transposed(), weight.dim(0)?)
}

/// x times a weight `[inner, columns]`.
fn project_backward<'a>(x: &'a Tensor, weight: &'a Tensor) -> Result<(Product<'a>, Tensor)> {
    project(x, Matrix::of(weight)?, weight.dim(1)?)
}

impl Cuda for FeedForward {
    /// Leaves what goes into the GELU, `[batch, tokens, hidden]`, and the bias that has to be added to it first, if any.
    fn forward_cuda(&self, inputs: &[Tensor]) -> Result<Option<Forward>> {
        let (x, of) = (&inputs[0], self.in_type(inputs[0].dtype())?);
        let bias = of.up.bias.as_ref();
        let normed = layer_norm_forward(x, &of.shift, &of.scale)?;
        let up = of.up.weight.in_type(x.dtype())?;
        let (product, before) = project_forward(&normed, &up)?;
        let hidden = output(before.shape(), x.dtype(), x)?;
        let (hidden, left) = if product.write_with(Matrix::of(&hidden)?, Epilogue::Gelu { bias, kept: &before })? {
            (hidden, vec![before])
        } else {
            drop(hidden);
            product.write(Matrix::of(&before)?, false)?;
            (gelu_forward(&before, bias)?, [before].into_iter().chain(bias.cloned()).collect())
        };
        drop((normed, up));
        let down = of.down.weight.in_type(x.dtype())?;
        let (product, update) = project_forward(&hidden, &down)?;
        product.write(Matrix::of(&update)?, false)?;
        Ok(Some((gated_forward(x, &update, of.down.bias.as_ref(), &of.gate)?, left)))
    }

    fn backward_cuda(&self, saved: &Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let x = saved.input(0)?;
        let [before, bias @ ..] = &saved.kept[..] else { bail!("feed-forward: the forward pass left nothing") };
        let of = self.in_type(x.dtype())?;
        let d_update = gated_backward(&gradient, &of.gate)?;
        let down = of.down.weight.in_type(x.dtype())?;
        let (product, d_hidden) = project_backward(&d_update, &down)?;
        let to = Matrix::of(&d_hidden)?;
        if !bias.is_empty() || !product.write_with(to, Epilogue::GeluBackward { kept: before })? {
            product.write(to, false)?;
            gelu_backward(before, bias.first(), &d_hidden)?;
        }
        drop((d_update, down));
        let up = of.up.weight.in_type(x.dtype())?;
        let (product, d_normed) = project_backward(&d_hidden, &up)?;
        product.write(Matrix::of(&d_normed)?, false)?;
        layer_norm_backward_into(x, &of.scale, &d_normed, &gradient, true)?;
        gradients.add(0, gradient)
    }
}
