//! A projection with its adapter: products by cuBLAS, what is between them in one pass.
use super::super::linear::{rows, with_width};
use super::pointwise::add_to_rows;
use super::{Backward, Forward, device_of, start, type_name};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublas::{result::gemm_strided_batched_ex, sys};
use candle_core::{DType, Result, Tensor, bail};

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
        add_product(dx, &d_reduced, down)?;
    }
    let d_down = if needs[1] { Some(d_reduced.t()?.matmul(x)?) } else { None };
    let d_up = if needs[2] { Some(grad.t()?.matmul(reduced)?) } else { None };
    Ok(vec![shaped(dx)?, d_down, d_up])
}

/// `y += a·b` in place, rounded once: y `[rows, outer]`, a `[rows, inner]`, b `[inner, outer]`, contiguous and of one
/// type. Nobody else may hold y.
fn add_product(y: &Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
    let ((rows, inner), (b_rows, outer)) = (a.dims2()?, b.dims2()?);
    if b_rows != inner || y.dims() != [rows, outer] || type_name(&[y, a, b]).is_none() {
        bail!("{:?} += {:?} · {:?} in {:?}, {:?} and {:?}", y, a.dims(), b.dims(), y.dtype(), a.dtype(), b.dtype());
    }
    let kind = match y.dtype() {
        DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
        _ => sys::cudaDataType::CUDA_R_32F,
    };
    let device = device_of(y)?;
    device.cuda_stream().context().bind_to_thread().w()?;
    let blas = device.cublas_handle();
    let (rows, inner, outer) = (size(rows)?, size(inner)?, size(outer)?);
    let (plain, one) = (sys::cublasOperation_t::CUBLAS_OP_N, 1f32);
    let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
    let algorithm = sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP;
    // A matrix by rows is its transpose by columns, which cuBLAS's are: yᵀ += bᵀ·aᵀ.
    // SAFETY: three matrices of these sizes, on the GPU whose stream the handle has; memory is freed in its order.
    unsafe {
        let (one, y) = ((&raw const one).cast(), start(y)? as *mut _);
        let (a, b) = (start(a)? as *const _, start(b)? as *const _);
        gemm_strided_batched_ex(
            *blas.handle(),
            plain,
            plain,
            outer,
            rows,
            inner,
            one,
            b,
            kind,
            outer,
            0,
            a,
            kind,
            inner,
            0,
            one,
            y,
            kind,
            outer,
            0,
            1,
            compute,
            algorithm,
        )
    }
    .w()
}

/// A size as cuBLAS takes it.
fn size(value: usize) -> Result<i32> {
    i32::try_from(value).map_err(|_| candle_core::Error::msg(format!("{value} is too large for cuBLAS")))
}
