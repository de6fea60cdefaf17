//! A layer of CLIP's text and image transformers (transformers: `CLIPEncoderLayer`).
use crate::model::layers::{LayerNorm, Linear};
use crate::model::weights::Weights;
use crate::system::error::Result;
use candle_core::{D, Tensor};
use serde::Deserialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipActivation {
    /// `x · sigmoid(1.702 x)`.
    QuickGelu,
    /// Exact GELU, with the error function.
    Gelu,
}

#[derive(Clone, Copy, Debug)]
pub struct LayerSizes {
    pub hidden: usize,
    pub intermediate: usize,
    pub heads: usize,
    pub activation: ClipActivation,
    pub eps: f64,
}

pub struct ClipLayer {
    sizes: LayerSizes,
    norm1: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl ClipLayer {
    /// `sizes.hidden` must be a multiple of `sizes.heads`.
    pub fn load(weights: &Weights, prefix: &str, sizes: LayerSizes) -> Result<Self> {
        let LayerSizes { hidden, intermediate, eps, .. } = sizes;
        let name = |module: &str| format!("{prefix}.{module}");
        let square = |module: &str| Linear::load(weights, &name(module), hidden, hidden);
        Ok(Self {
            sizes,
            norm1: LayerNorm::load(weights, &name("layer_norm1"), hidden, eps)?,
            q: square("self_attn.q_proj")?,
            k: square("self_attn.k_proj")?,
            v: square("self_attn.v_proj")?,
            out: square("self_attn.out_proj")?,
            norm2: LayerNorm::load(weights, &name("layer_norm2"), hidden, eps)?,
            fc1: Linear::load(weights, &name("mlp.fc1"), hidden, intermediate)?,
            fc2: Linear::load(weights, &name("mlp.fc2"), intermediate, hidden)?,
        })
    }

    /// Maps `[batch, length, hidden]` to equal shape; `mask` `[length, length]` is added to the attention scores.
    pub fn forward(&self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (batch, length, hidden) = x.dims3()?;
        let heads = self.sizes.heads;
        let split = |x: Tensor| x.reshape((batch, length, heads, hidden / heads))?.transpose(1, 2)?.contiguous();
        let normed = self.norm1.forward(x)?;
        let q = split((self.q.forward(&normed)? * ((hidden / heads) as f64).powf(-0.5))?)?;
        let (k, v) = (split(self.k.forward(&normed)?)?, split(self.v.forward(&normed)?)?);
        let scores = q.matmul(&k.transpose(D::Minus2, D::Minus1)?)?;
        let scores = match mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        let mixed = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)?;
        let x = (x + self.out.forward(&mixed.transpose(1, 2)?.reshape((batch, length, hidden))?)?)?;
        let inner = self.fc1.forward(&self.norm2.forward(&x)?)?;
        let inner = match self.sizes.activation {
            ClipActivation::QuickGelu => (&inner * candle_nn::ops::sigmoid(&(&inner * 1.702)?)?)?,
            ClipActivation::Gelu => inner.gelu_erf()?,
        };
        Ok((x + self.fc2.forward(&inner)?)?)
    }
}
