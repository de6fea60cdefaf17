//! The autoencoder between images and latents (diffusers: `AutoencoderKL`, `AutoencoderKLFlux2`); not differentiable.
//!
//! candle-transformers has one too; this one is here for the convolutions and group norms of `ops`, for speed.
mod blocks;
mod config;
mod decoder;
mod encoder;
pub mod original;
mod patches;

use crate::model::weights::files::{ModelFiles, Part};
use crate::ops::conv2d::unfolding_on_gpu;
use crate::ops::device::upload;
use crate::system::error::{Error, Result};
use blocks::LayerLoader;
use candle_core::{DType, Device, Tensor};
pub use config::VaeConfig;
use decoder::Decoder;
use encoder::Encoder;
use patches::PatchNorm;

/// Pixels encoded or decoded at a time (at least one image), so that batches need no more memory.
const PIXELS_AT_ONCE: usize = 1 << 20;

/// The autoencoder. It computes in f32 on every device, since the decoder overflows f16.
pub struct Vae {
    encoder: Option<Encoder>,
    decoder: Option<Decoder>,
    /// Where latents are packed.
    patches: Option<PatchNorm>,
    config: VaeConfig,
    is_on_gpu: bool,
}

impl Vae {
    /// Loads encoder and decoder.
    ///
    /// # Errors
    /// A file is missing, damaged, or does not fit its config.
    pub fn load(files: &ModelFiles, device: &Device) -> Result<Self> {
        let config = VaeConfig::open(files)?;
        let weights = files.weights(Part::Vae, DType::F32, device)?;
        let loader = LayerLoader { weights: &weights, config: &config };
        let (encoder, decoder) = (Some(Encoder::load(&loader)?), Some(Decoder::load(&loader)?));
        let patches = config.is_packed().then(|| PatchNorm::load(&weights, &config)).transpose()?;
        weights.finish()?;
        Ok(Self { encoder, decoder, patches, config, is_on_gpu: !device.is_cpu() })
    }

    /// Loads only the sizes: [`Self::encode`] and [`Self::decode`] fail.
    pub fn without_weights(files: &ModelFiles) -> Result<Self> {
        let config = VaeConfig::open(files)?;
        Ok(Self { encoder: None, decoder: None, patches: None, config, is_on_gpu: false })
    }

    /// Frees the encoder: [`Self::encode`] fails afterwards.
    pub fn without_encoder(self) -> Self {
        Self { encoder: None, ..self }
    }

    /// Frees the decoder: [`Self::decode`] fails afterwards.
    pub fn without_decoder(self) -> Self {
        Self { decoder: None, ..self }
    }

    /// Sizes.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Encodes images to the posterior's mean, shifted and scaled for the denoiser, or packed and normalised.
    ///
    /// Maps `[batch, 3, height, width]` in [−1, 1] to `[batch, latent, height/8, width/8]`, or, packed, `[batch, 4·latent,
    /// height/16, width/16]`, f32. Height and width must
    /// be multiples of [`VaeConfig::pixels_per_latent`].
    pub fn encode(&self, images: &Tensor) -> Result<Tensor> {
        let (_, channels, height, width) = images.dims4()?;
        let multiple = self.config.pixels_per_latent();
        if channels != self.config.in_channels || height % multiple != 0 || width % multiple != 0 || height * width == 0
        {
            return Err(Error::Failed(format!(
                "the autoencoder takes images of {} channels with sides that are multiples of {multiple}, \
                 not {channels} of {height}×{width}",
                self.config.in_channels
            )));
        }
        let encoder = self.encoder.as_ref().ok_or_else(not_loaded)?;
        let moments = in_parts(&images.to_dtype(DType::F32)?, height * width, |images| encoder.forward(images))?;
        let mean = moments.narrow(1, 0, self.config.latent_channels)?;
        if let Some(patches) = &self.patches {
            return Ok(patches.pack(&mean)?);
        }
        let (shift, scale) = self.config.shift_and_scale();
        Ok(mean.affine(1.0, -shift)?.affine(scale, 0.0)?)
    }

    /// Decodes latents to images, the inverse of [`Self::encode`], without clamping to [−1, 1].
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let decoder = self.decoder.as_ref().ok_or_else(not_loaded)?;
        let (_, _, height, width) = latents.dims4()?;
        let latents = latents.to_dtype(DType::F32)?;
        let (shift, scale) = self.config.shift_and_scale();
        let latents = match &self.patches {
            Some(patches) => patches.unpack(&latents)?,
            None => ((latents / scale)? + shift)?,
        };
        let pixels = height * width * self.config.pixels_per_latent().pow(2);
        in_parts(&latents, pixels, |latents| decoder.forward(latents))
    }

    /// Peak bytes while encoding one square image of `side` pixels: a residual block of the first level holds its
    /// input, which it adds to, and the activation between its convolutions. 0 without an encoder.
    pub fn encoding_bytes(&self, side: usize) -> u64 {
        let Some(channels) = self.config.block_out_channels.first().filter(|_| self.encoder.is_some()) else {
            return 0;
        };
        let map = 4 * (channels * side * side) as u64;
        2 * map + if self.is_on_gpu { unfolding_on_gpu(map) } else { 0 }
    }
}

fn not_loaded() -> Error {
    Error::Failed("the autoencoder is not loaded".into())
}

/// Runs a network on a batch, as many images at a time as [`PIXELS_AT_ONCE`] allows.
fn in_parts(batch: &Tensor, pixels: usize, network: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let (images, at_once) = (batch.dim(0)?, (PIXELS_AT_ONCE / pixels.max(1)).max(1));
    if images <= at_once {
        return network(batch);
    }
    let part = |first: usize| network(&batch.narrow(0, first, at_once.min(images - first))?);
    Ok(Tensor::cat(&(0..images).step_by(at_once).map(part).collect::<Result<Vec<_>>>()?, 0)?)
}

/// Square RGB pixels `[side, side, 3]` as the autoencoder's input `[3, side, side]` in [−1, 1].
pub fn from_rgb8(pixels: &[u8], side: usize, device: &Device) -> candle_core::Result<Tensor> {
    let pixels = upload(pixels, (side, side, 3), device)?;
    pixels.permute((2, 0, 1))?.to_dtype(DType::F32)?.affine(2.0 / 255.0, -1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn a_large_batch_is_taken_in_parts() {
        let batch = Tensor::arange(0f32, 14., &Device::Cpu).unwrap().reshape((7, 1, 1, 2)).unwrap();
        for (pixels, parts) in [
            (PIXELS_AT_ONCE + 1, vec![1; 7]),
            (PIXELS_AT_ONCE / 3, vec![3, 3, 1]),
            (PIXELS_AT_ONCE / 7, vec![7]),
            (1, vec![7]),
        ] {
            let seen = RefCell::new(vec![]);
            let tripled = in_parts(&batch, pixels, |part| {
                seen.borrow_mut().push(part.dim(0)?);
                Ok((part * 3.0)?)
            });
            let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(&tripled.unwrap()), values(&(&batch * 3.0).unwrap()));
            assert_eq!(*seen.borrow(), parts);
        }
    }
}
