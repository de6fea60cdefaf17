//! The second half of a block's stream in one node: norm, modulation, MLP, gate and residual.
//!
//! Apart, these are five nodes, whose results and gradients go through memory each; here a block of rows goes through
//! them all, and the backward pass needs what goes into the GELU alone.
mod arguments;
mod blocks;
mod whole;

use super::function::{Function, Values, apply};
use super::norm::layer_norm_modulate;
use super::pointwise::{gated_residual, gelu};
use arguments::Arguments;
use candle_core::{DType, Device, Result, Tensor};
use std::sync::Mutex;

/// Values of a weight that stays in cache.
const CACHED_WEIGHT: usize = 1 << 18;

/// Weight `[outer, inner]` and bias `[outer]` of a frozen layer.
#[derive(Clone)]
pub struct FrozenLayer {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
}

/// `x + gate·down(gelu(up(layer_norm(x)·(1 + scale) + shift)))` with frozen `up` and `down` (the MLP of diffusers'
/// `JointTransformerBlock`).
///
/// x `[batch, tokens, width]`; shift, scale and gate `[batch, width]`.
pub fn feed_forward(
    x: &Tensor,
    [shift, scale, gate]: [&Tensor; 3],
    up: FrozenLayer,
    down: FrozenLayer,
) -> Result<Tensor> {
    let kept = (x.device().is_cpu() && x.track_op()).then(Mutex::default);
    let function = FeedForward { shift: shift.clone(), scale: scale.clone(), gate: gate.clone(), up, down, kept };
    // Where an adapter sits on the modulation the parts have gradients of their own; in types that there is no node for
    // it would run twice.
    let has_node = matches!(x.dtype(), DType::F32 | DType::BF16);
    if !has_node || [shift, scale, gate].iter().any(|constant| constant.track_op()) {
        return function.composed(std::slice::from_ref(x));
    }
    apply(function, &[x])
}

pub(super) struct FeedForward {
    pub(super) shift: Tensor,
    pub(super) scale: Tensor,
    pub(super) gate: Tensor,
    pub(super) up: FrozenLayer,
    pub(super) down: FrozenLayer,
    /// What goes into the GELU, `[rows, hidden]`, kept on the CPU for the backward pass where there will be one.
    pub(super) kept: Option<Mutex<Vec<f32>>>,
}

/// The weights and modulation of a call in f32.
struct Constants {
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
    up: (Tensor, Tensor),
    down: (Tensor, Tensor),
}

impl FrozenLayer {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        super::linear(x, &self.weight, self.bias.as_ref(), None)
    }

    /// Weight and bias in f32.
    fn values(&self) -> Result<(Tensor, Tensor)> {
        let bias = match &self.bias {
            Some(bias) => bias.to_dtype(DType::F32)?,
            None => Tensor::zeros(self.weight.dim(0)?, DType::F32, self.weight.device())?,
        };
        Ok((self.weight.to_dtype(DType::F32)?.contiguous()?, bias.contiguous()?))
    }
}

impl FeedForward {
    fn constants(&self) -> Result<Constants> {
        let of = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.contiguous();
        Ok(Constants {
            shift: of(&self.shift)?,
            scale: of(&self.scale)?,
            gate: of(&self.gate)?,
            up: self.up.values()?,
            down: self.down.values()?,
        })
    }

    /// Whether the weights stay in cache.
    fn is_small(&self) -> bool {
        self.up.weight.elem_count() <= CACHED_WEIGHT
    }
}

impl Constants {
    /// Calls `work` with the values of a call for `x`.
    fn with<R>(&self, x: &Tensor, work: impl FnOnce(&Arguments) -> R) -> Result<R> {
        let (_, tokens, width) = x.dims3()?;
        Ok(work(&Arguments {
            x: &Values::of(x)?,
            shift: &Values::of(&self.shift)?,
            scale: &Values::of(&self.scale)?,
            gate: &Values::of(&self.gate)?,
            up: &Values::of(&self.up.0)?,
            up_bias: &Values::of(&self.up.1)?,
            down: &Values::of(&self.down.0)?,
            down_bias: &Values::of(&self.down.1)?,
            tokens,
            width,
            hidden: self.up.0.dim(0)?,
        }))
    }
}

impl Function for FeedForward {
    const NAME: &'static str = "feed-forward";

    fn composed(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let x = &inputs[0];
        let normed = layer_norm_modulate(x, &self.shift, &self.scale)?;
        let update = self.down.apply(&gelu(&self.up.apply(&normed)?)?)?;
        gated_residual(x, &update, &self.gate)
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, inputs: &[Tensor]) -> Result<Option<super::cuda::Forward>> {
        super::cuda::feed_forward::forward(self, &inputs[0])
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, of: &super::cuda::Backward) -> Result<super::cuda::Gradients> {
        super::cuda::feed_forward::backward(self, of)
    }

    fn cpu_forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (out, before) =
            self.constants()?.with(&inputs[0], |of| match self.is_small() && blocks::are_as_whole(of) {
                true => blocks::forward(of, self.kept.is_some()),
                false => whole::forward(of),
            })?;
        if let Some(Ok(mut kept)) = self.kept.as_ref().map(Mutex::lock) {
            *kept = before;
        }
        Tensor::from_vec(out, inputs[0].shape(), &Device::Cpu)
    }

    fn cpu_backward(&self, inputs: &[Tensor], _: &Tensor, grad: &Tensor, _: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let kept = self.kept.as_ref().and_then(|kept| kept.lock().ok().map(|mut kept| std::mem::take(&mut *kept)));
        let before = kept.unwrap_or_default();
        if before.is_empty() {
            candle_core::bail!("{}: the forward pass kept nothing for the backward pass", Self::NAME);
        }
        let grad = Values::of(grad)?;
        let dx = self.constants()?.with(&inputs[0], |of| match self.is_small() && blocks::are_as_whole(of) {
            true => blocks::backward(of, &before, &grad),
            false => whole::backward(of, &before, &grad),
        })?;
        Ok(vec![Some(Tensor::from_vec(dx, inputs[0].shape(), &Device::Cpu)?)])
    }
}
