//! Latents packed into patches and normalised by running statistics (diffusers' `AutoencoderKLFlux2` and
//! `Flux2KleinPipeline._patchify_latents`).
use super::config::VaeConfig;
use crate::model::weights::Weights;
use crate::system::error::{Error, Result};
use candle_core::{Result as TensorResult, Tensor};

/// Statistics of every channel of packed latents.
pub struct PatchNorm {
    /// Side of the square of latents that becomes one.
    side: usize,
    /// `[1, channels, 1, 1]`
    mean: Tensor,
    /// As `mean`.
    deviation: Tensor,
}

impl PatchNorm {
    /// Takes `bn.running_mean` and `bn.running_var`.
    ///
    /// # Errors
    /// A tensor is missing, has another shape, or holds a variance below 0.
    pub fn load(weights: &Weights, config: &VaeConfig) -> Result<Self> {
        let (channels, side) = (config.channels(), config.packed_side());
        weights.ignore("bn.num_batches_tracked");
        let by_channel = |tensor: Tensor| tensor.reshape((1, channels, 1, 1));
        let variance = weights.get("bn.running_var", channels)?;
        if variance.to_vec1::<f32>()?.iter().any(|variance| *variance < 0.0) {
            return Err(Error::file(weights.path(), "tensor bn.running_var holds a number below 0"));
        }
        let deviation = by_channel((variance + config.batch_norm_eps)?.sqrt()?)?;
        Ok(Self { side, mean: by_channel(weights.get("bn.running_mean", channels)?)?, deviation })
    }

    /// `[batch, channels, h, w]` to `[batch, channels·side², h/side, w/side]`, normalised.
    pub fn pack(&self, latents: &Tensor) -> TensorResult<Tensor> {
        let ((batch, channels, height, width), side) = (latents.dims4()?, self.side);
        let packed = latents
            .reshape(&[batch, channels, height / side, side, width / side, side][..])?
            .permute([0, 1, 3, 5, 2, 4].as_slice())?
            .reshape((batch, channels * side * side, height / side, width / side))?;
        packed.broadcast_sub(&self.mean)?.broadcast_div(&self.deviation)
    }

    /// The inverse of [`Self::pack`].
    pub fn unpack(&self, packed: &Tensor) -> TensorResult<Tensor> {
        let ((batch, channels, height, width), side) = (packed.dims4()?, self.side);
        let latents = packed.broadcast_mul(&self.deviation)?.broadcast_add(&self.mean)?;
        latents
            .reshape(&[batch, channels / (side * side), side, side, height, width][..])?
            .permute([0, 1, 4, 2, 5, 3].as_slice())?
            .reshape((batch, channels / (side * side), height * side, width * side))
    }
}
