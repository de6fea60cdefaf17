//! A projection with its adapter: products by cuBLAS, what is between them in one pass.
use super::super::linear::{rows, with_width};
use super::pointwise::add_to_rows;
use super::{Backward, Forward, type_name};
use candle_core::{Result, Tensor};

/// `inputs` are x `[…, in]` and, with an adapter, A `[rank, in]` and B `[out, rank]`; weight `[out, in]`, bias
/// `[out]`. Keeps `scale·x·Aᵀ`.
pub fn forward(inputs: &[Tensor], weight: &Tensor, bias: Option<&Tensor>, scale: f64) -> Result<Option<Forward>> {
    let x = &rows(&inputs[0])?;
    if type_name(&inputs.iter().collect::<Vec<_>>()).is_none() {
        return Ok(None);
    }
    let y = x.matmul(&weight.t()?)?;
    let bias = bias.map(|bias| bias.to_dtype(x.dtype())).transpose()?;
    let (adapted, kept) = match inputs {
        [_, down, up] => {
            let reduced = (x.matmul(&down.t()?)? * scale)?;
            (Some(reduced.matmul(&up.t()?)?), vec![reduced])
        }
        _ => (None, vec![]),
    };
    add_to_rows(&y, adapted.as_ref(), bias.as_ref())?;
    Ok(Some((y.reshape(with_width(&inputs[0], weight.dim(0)?))?, kept)))
}

/// Gradients of the inputs, after [`forward`].
pub fn backward(of: &Backward, weight: &Tensor, scale: f64) -> Result<Vec<Option<Tensor>>> {
    let Backward { inputs, kept, needs, .. } = of;
    let (shape, grad) = (inputs[0].shape(), &rows(of.grad)?);
    let dx = if needs[0] { Some(grad.matmul(weight)?) } else { None };
    let shaped = |dx: Option<Tensor>| dx.map(|dx| dx.reshape(shape)).transpose();
    let ([x, down, up], [reduced]) = (inputs, kept) else { return Ok(vec![shaped(dx)?]) };
    let x = &rows(x)?;
    let d_reduced = (grad.matmul(up)? * scale)?;
    if let Some(dx) = &dx {
        add_to_rows(dx, Some(&d_reduced.matmul(down)?), None)?;
    }
    let d_down = if needs[1] { Some(d_reduced.t()?.matmul(x)?) } else { None };
    let d_up = if needs[2] { Some(grad.t()?.matmul(reduced)?) } else { None };
    Ok(vec![shaped(dx)?, d_down, d_up])
}
