//! The flow-matching loss on held-out images, with fixed noise and timesteps, comparable between models.
use super::generation::statistics::image_files;
use super::{EvaluatedModel, usual_batch};
use crate::config::{EvalConfig, NoiseConfig};
use crate::data::Captions;
use crate::data::sources::captions::Columns;
use crate::loss::flow_loss;
use crate::sample::image::read_square;
use crate::sample::noise::normal;
use crate::system::error::{Error, Result};
use candle_core::{Device, Tensor};
use std::path::{Path, PathBuf};

/// First keys of an image's random streams; the second key is the image's index.
const NOISE: u64 = u64::from_be_bytes(*b"\0\0flowno");
const TIME: u64 = u64::from_be_bytes(*b"\0\0flowti");

/// Held-out images with their captions.
pub struct HeldOut {
    /// Image files and captions.
    images: Vec<(PathBuf, String)>,
    /// Side in pixels of the resized images.
    size: usize,
    seed: u64,
}

impl HeldOut {
    /// The first `count` images that `[eval]` names; their captions are looked up in a file by their names.
    ///
    /// # Errors
    /// The folder or the file cannot be read; an image has no caption, or several that match.
    pub fn of(eval: &EvalConfig, captions: &Path, columns: Columns, count: usize) -> Result<Self> {
        let files = image_files(eval.real_images())?;
        let captions = Captions::read(captions, columns)?;
        let caption = |file: PathBuf| {
            let key = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let found = captions.get(&key).map_err(|problem| Error::file(&file, problem))?;
            let found = found.ok_or_else(|| Error::file(&file, "there is no caption of this image"))?;
            Ok((file, found))
        };
        let images = files.into_iter().take(count).map(caption).collect::<Result<_>>()?;
        Ok(Self { images, size: eval.size, seed: eval.seed })
    }

    /// The mean flow loss over the images; of several processes rank 0 has it. Noise levels are drawn as in training.
    ///
    /// # Errors
    /// An image cannot be read, or there is none; a process has failed.
    pub fn flow_loss(
        &self,
        EvaluatedModel { pipeline, scheduler, turns }: EvaluatedModel,
        levels: &NoiseConfig,
    ) -> Result<Option<f64>> {
        let (channels, height, width) = pipeline.latent_shape(self.size)?;
        let device = &pipeline.device;
        let batch = usual_batch(self.size);
        let mut sum = 0.0;
        let sum_of = |number: usize| {
            let images = &self.images[number * batch..self.images.len().min((number + 1) * batch)];
            let (mut latents, mut noise, mut sigmas) = (vec![], vec![], vec![]);
            for (index, (file, _)) in ((number * batch) as u64..).zip(images) {
                latents.push(pipeline.vae.encode(&read_square(file, self.size, device)?)?);
                noise.push(normal(self.seed, &[NOISE, index], (1, channels, height, width), device)?);
                sigmas.push(scheduler.draw_sigma(levels, self.seed, &[TIME, index]));
            }
            let captions: Vec<&str> = images.iter().map(|(_, caption)| caption.as_str()).collect();
            let text = pipeline.text_encoders.encode(&captions)?;
            let timesteps: Vec<f32> = sigmas.iter().map(|&sigma| scheduler.timestep(sigma)).collect();
            let sigma = Tensor::from_vec(sigmas, (images.len(), 1, 1, 1), device)?;
            let (latents, noise) = (Tensor::cat(&latents, 0)?, Tensor::cat(&noise, 0)?);
            let noised = (latents.broadcast_mul(&(1.0 - &sigma)?)? + noise.broadcast_mul(&sigma)?)?;
            let timesteps = Tensor::from_vec(timesteps, images.len(), &Device::Cpu)?;
            let velocity = pipeline.transformer.forward(&noised, &timesteps, &text, None, None)?;
            let loss = flow_loss(&velocity.into(), &latents, &noise)?.into_tensor();
            Ok(vec![f64::from(loss.to_scalar::<f32>()?) * images.len() as f64])
        };
        turns.gather_each(self.images.len().div_ceil(batch), sum_of, |found| {
            sum += found.iter().sum::<f64>();
            Ok(())
        })?;
        match self.images.len() {
            0 => Err(Error::Failed("there is no held-out image to measure the flow loss on".into())),
            count => Ok(turns.is_main().then(|| sum / count as f64)),
        }
    }
}
