//! Layer norm with AdaLN modulation, and the RMS norm of queries and keys.
use super::function::{Function, Values, apply, composed_backward};
use crate::ops::kernels::cpu::{new_rows, sum};
use candle_core::{D, DType, Device, Result, Tensor};

/// Epsilon of every norm in SD3's transformer (diffusers: `eps=1e-6`).
const EPSILON: f64 = 1e-6;

/// `layer_norm(x)·(1 + scale) + shift` without affine weights (diffusers' `AdaLayerNormZero`).
///
/// x `[batch, tokens, width]`, shift and scale `[batch, width]`.
pub fn layer_norm_modulate(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    apply(LayerNormModulate, &[x, shift, scale])
}

/// `x / rms(x) · weight` over the last dimension (diffusers' `RMSNorm`); the weight is frozen.
pub fn rms_norm(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let weight = weight.to_dtype(x.dtype())?;
    apply(RmsNorm { weight }, &[x])
}

pub(super) struct LayerNormModulate;

/// Mean and inverse standard deviation of a row.
#[inline(always)]
fn moments(row: &[f32]) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = sum(row.len(), |i| row[i]) / n;
    let variance = sum(row.len(), |i| (row[i] - mean) * (row[i] - mean)) / n;
    (mean, 1.0 / (variance + EPSILON as f32).sqrt())
}

/// `layer_norm(x)·(1 + scale) + shift` of one row.
#[inline(always)]
pub(super) fn modulate_row(x: &[f32], shift: &[f32], scale: &[f32], out: &mut [f32]) {
    let (mean, inverse) = moments(x);
    for i in 0..out.len() {
        out[i] = (x[i] - mean) * inverse * (1.0 + scale[i]) + shift[i];
    }
}

/// The gradient of a row's `x` from that of its result, `dy`.
#[inline(always)]
pub(super) fn norm_row_backward(x: &[f32], dy: &[f32], scale: &[f32], dx: &mut [f32]) {
    let (width, n) = (x.len(), x.len() as f32);
    let (mean, inverse) = moments(x);
    let mean_g = sum(width, |i| dy[i] * (1.0 + scale[i])) / n;
    let mean_gx = sum(width, |i| dy[i] * (1.0 + scale[i]) * (x[i] - mean) * inverse) / n;
    for i in 0..dx.len() {
        dx[i] = inverse * (dy[i] * (1.0 + scale[i]) - mean_g - (x[i] - mean) * inverse * mean_gx);
    }
}

impl Function for LayerNormModulate {
    const NAME: &'static str = "layer-norm-modulate";

    fn composed(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let dtype = inputs[0].dtype();
        let x = inputs[0].to_dtype(DType::F32)?;
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred.broadcast_div(&(variance + EPSILON)?.sqrt()?)?;
        let shift = inputs[1].to_dtype(DType::F32)?.unsqueeze(1)?;
        let scale = (inputs[2].to_dtype(DType::F32)?.unsqueeze(1)? + 1.0)?;
        normed.broadcast_mul(&scale)?.broadcast_add(&shift)?.to_dtype(dtype)
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, inputs: &[Tensor]) -> Result<Option<super::cuda::Forward>> {
        super::cuda::norm::layer_norm_forward(&inputs[0], &inputs[1], &inputs[2])
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, of: &super::cuda::Backward) -> Result<super::cuda::Gradients> {
        if of.needs[1] || of.needs[2] {
            return Ok(None);
        }
        let dx = super::cuda::norm::layer_norm_backward(&of.inputs[0], &of.inputs[2], of.grad, None)?;
        Ok(dx.map(|dx| vec![Some(dx), None, None]))
    }

    fn cpu_forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (_, tokens, width) = inputs[0].dims3()?;
        let (x, shift, scale) = (Values::of(&inputs[0])?, Values::of(&inputs[1])?, Values::of(&inputs[2])?);
        let y = new_rows!(x.len(), width, |r, out| {
            let of_batch = r / tokens * width;
            modulate_row(&x[r * width..][..width], &shift[of_batch..][..width], &scale[of_batch..][..width], out);
        });
        Tensor::from_vec(y, inputs[0].shape(), &Device::Cpu)
    }

    fn cpu_backward(
        &self,
        inputs: &[Tensor],
        _: &Tensor,
        grad: &Tensor,
        needs: &[bool],
    ) -> Result<Vec<Option<Tensor>>> {
        if needs[1] || needs[2] {
            // Only where an adapter sits on the modulation itself; too rare to have a loop of its own.
            return composed_backward(|inputs| self.composed(inputs), inputs, grad, needs);
        }
        let (_, tokens, width) = inputs[0].dims3()?;
        let (x, scale, grad) = (Values::of(&inputs[0])?, Values::of(&inputs[2])?, Values::of(grad)?);
        let dx = new_rows!(x.len(), width, |r, out| {
            let scale = &scale[r / tokens * width..][..width];
            norm_row_backward(&x[r * width..][..width], &grad[r * width..][..width], scale, out);
        });
        Ok(vec![Some(Tensor::from_vec(dx, inputs[0].shape(), &Device::Cpu)?), None, None])
    }
}

pub(super) struct RmsNorm {
    pub(super) weight: Tensor,
}

#[inline(always)]
fn inverse_rms(row: &[f32]) -> f32 {
    1.0 / (sum(row.len(), |i| row[i] * row[i]) / row.len() as f32 + EPSILON as f32).sqrt()
}

impl Function for RmsNorm {
    const NAME: &'static str = "rms-norm";

    fn composed(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let dtype = inputs[0].dtype();
        let x = inputs[0].to_dtype(DType::F32)?;
        let rms = (x.sqr()?.mean_keepdim(D::Minus1)? + EPSILON)?.sqrt()?;
        x.broadcast_div(&rms)?.broadcast_mul(&self.weight.to_dtype(DType::F32)?)?.to_dtype(dtype)
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, inputs: &[Tensor]) -> Result<Option<super::cuda::Forward>> {
        super::cuda::norm::rms_norm_forward(&inputs[0], &self.weight)
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, of: &super::cuda::Backward) -> Result<super::cuda::Gradients> {
        let dx = super::cuda::norm::rms_norm_backward(&of.inputs[0], &self.weight, of.grad)?;
        Ok(dx.map(|dx| vec![Some(dx)]))
    }

    fn cpu_forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let width = self.weight.elem_count();
        let (x, weight) = (Values::of(&inputs[0])?, Values::of(&self.weight)?);
        let y = new_rows!(x.len(), width, |r, out| {
            let row = &x[r * width..][..width];
            let inverse = inverse_rms(row);
            for i in 0..width {
                out[i] = row[i] * inverse * weight[i];
            }
        });
        Tensor::from_vec(y, inputs[0].shape(), &Device::Cpu)
    }

    fn cpu_backward(&self, inputs: &[Tensor], _: &Tensor, grad: &Tensor, _: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let width = self.weight.elem_count();
        let (x, weight, grad) = (Values::of(&inputs[0])?, Values::of(&self.weight)?, Values::of(grad)?);
        let dx = new_rows!(x.len(), width, |r, out| {
            let (row, dy) = (&x[r * width..][..width], &grad[r * width..][..width]);
            let inverse = inverse_rms(row);
            let along = sum(width, |i| dy[i] * weight[i] * row[i]) / width as f32 * inverse * inverse;
            for i in 0..width {
                out[i] = inverse * (dy[i] * weight[i] - row[i] * along);
            }
        });
        Ok(vec![Some(Tensor::from_vec(dx, inputs[0].shape(), &Device::Cpu)?)])
    }
}
