//! Small layers of the frozen networks around the MM-DiT. They serve inference alone: no gradient passes them.
use super::weights::Weights;
use crate::ops::FrozenWeight;
use crate::system::error::Result;
use candle_core::{D, Tensor};

/// `y = Wx + b`, computed in the type of `x` whatever type the weights are stored as.
pub struct Linear {
    /// `[out, in]`.
    weight: FrozenWeight,
    bias: Option<Tensor>,
}

impl Linear {
    /// Takes `NAME.weight` and `NAME.bias`.
    pub fn load(weights: &Weights, name: &str, input: usize, output: usize) -> Result<Self> {
        let bias = Some(weights.get(&format!("{name}.bias"), output)?);
        Ok(Self { bias, ..Self::load_no_bias(weights, name, input, output)? })
    }

    /// Takes `NAME.weight`.
    pub fn load_no_bias(weights: &Weights, name: &str, input: usize, output: usize) -> Result<Self> {
        Ok(Self { weight: weights.frozen(&format!("{name}.weight"), (output, input))?, bias: None })
    }

    /// As [`Self::load`], from weights that may be stored as a 1×1 convolution, `[out, in, 1, 1]`.
    pub fn load_flat(weights: &Weights, name: &str, input: usize, output: usize) -> Result<Self> {
        let (weight, convolution) = (format!("{name}.weight"), [output, input, 1, 1]);
        if weights.shape(&weight) != Some(&convolution) {
            return Self::load(weights, name, input, output);
        }
        let weight = weights.get(&weight, &convolution[..])?.reshape((output, input))?.into();
        Ok(Self { weight, bias: Some(weights.get(&format!("{name}.bias"), output)?) })
    }

    /// `[.., in]` to `[.., out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (output, input) = self.weight.dims2()?;
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = output;
        }
        let weight = self.weight.in_type(x.dtype())?;
        let y = x.reshape(((), input))?.matmul(&weight.t()?)?;
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(&bias.to_dtype(x.dtype())?)?,
            None => y,
        };
        Ok(y.reshape(shape)?)
    }
}

/// Layer norm over the last dimension, with weight and bias.
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Takes `NAME.weight` and `NAME.bias`.
    pub fn load(weights: &Weights, name: &str, size: usize, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: weights.get(&format!("{name}.weight"), size)?,
            bias: weights.get(&format!("{name}.bias"), size)?,
            eps,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (self.weight.to_dtype(x.dtype())?, self.bias.to_dtype(x.dtype())?);
        Ok(candle_nn::ops::layer_norm(&x.contiguous()?, &weight, &bias, self.eps as f32)?)
    }
}

/// Attention with a single head, `softmax(q·kᵀ/√d)·v` over `[batch, tokens, d]`.
///
/// The scores of some queries at a time: those of a large picture's would take gigabytes.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    const QUERIES: usize = 512;
    let (_, tokens, size) = q.dims3()?;
    let keys = k.transpose(D::Minus2, D::Minus1)?;
    let parts = (0..tokens).step_by(QUERIES).map(|start| {
        let q = q.narrow(1, start, QUERIES.min(tokens - start))?.contiguous()?;
        let scores = (q.matmul(&keys)? / (size as f64).sqrt())?;
        candle_nn::ops::softmax_last_dim(&scores)?.matmul(v)
    });
    Ok(Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, 1)?)
}
