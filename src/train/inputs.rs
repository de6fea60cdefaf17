//! From a batch of samples to what the step computes on: latents, text, noise and targets.
use crate::config::RunConfig;
use crate::data::{CachedSample, Mask, Sample};
use crate::loss::{MaskTarget, SampleTargets};
use crate::model::pipeline::Pipeline;
use crate::model::text::TextEmbedding;
use crate::model::vae::from_rgb8;
use crate::ops::device::upload;
use crate::sample::noise::normal;
use crate::sample::scheduler::Scheduler;
use crate::system::error::Result;
use crate::train::gradients::StepInputs;
use candle_core::{Device, Tensor};
use std::sync::Arc;

/// First elements of the random streams of a training sample; the second is the sample's number in the run.
const NOISE: u64 = u64::from_be_bytes(*b"\0\0\0noise");
const TIME: u64 = u64::from_be_bytes(*b"\0\0\0\0time");

/// What turns samples into inputs.
pub struct InputMaker<'a> {
    /// The frozen networks.
    pub pipeline: &'a Pipeline,
    /// Noise levels.
    pub scheduler: &'a Scheduler,
    /// The run's settings: its seed, and what noise and targets depend on.
    pub config: &'a RunConfig,
    /// What all images are told in place of their prompts, where a prompt is learnt: then names pair no masks.
    pub prompt: Option<&'a TextEmbedding>,
    /// Where the inputs go.
    pub device: &'a Device,
}

impl InputMaker<'_> {
    /// Inputs of `samples`, the first of which is number `first` of the run: noise and time depend on that alone.
    pub fn make(&self, samples: &[Sample], first: u64) -> Result<StepInputs> {
        let RunConfig { seed, noise: levels, loss, .. } = self.config;
        let text = self.text(samples)?;
        let latents = self.latents(samples)?;
        let shape = latents.dims()[1..].to_vec();
        let (mut noise, mut sigmas, mut timesteps) = (vec![], vec![], vec![]);
        for number in first..first + samples.len() as u64 {
            noise.push(normal(*seed, &[NOISE, number], shape.as_slice(), self.device)?);
            let sigma = self.scheduler.draw_sigma(levels, *seed, &[TIME, number]);
            sigmas.push(sigma);
            timesteps.push(self.scheduler.timestep(sigma));
        }
        let targets =
            samples.iter().zip(&sigmas).map(|(sample, sigma)| match f64::from(*sigma) > loss.mask_max_sigma {
                true => Ok(SampleTargets::default()),
                false => self.targets(sample, &shape),
            });
        let targets = targets.collect::<Result<_>>()?;
        Ok(StepInputs {
            noise: Tensor::stack(&noise, 0)?,
            sigma: upload(sigmas, samples.len(), self.device)?,
            timestep: Tensor::from_vec(timesteps, samples.len(), &Device::Cpu)?,
            text,
            targets,
            latents,
        })
    }

    /// Each prompt is encoded by itself: what comes out must not depend, not even in its last bit, on what else is in the
    /// batch, so that it is the same from a cache.
    fn text(&self, samples: &[Sample]) -> Result<TextEmbedding> {
        if let Some(prompt) = self.prompt {
            return TextEmbedding::cat(&vec![prompt; samples.len()]);
        }
        let encoders = &self.pipeline.text_encoders;
        let parts = samples.iter().map(|sample| match &sample.encoded {
            Some(encoded) => encoders.shape().expand(&encoded.text, self.device),
            None => encoders.encode(&[&sample.prompt]),
        });
        TextEmbedding::cat(&parts.collect::<Result<Vec<_>>>()?.iter().collect::<Vec<_>>())
    }

    /// Images go through the autoencoder one by one: its activations are the largest there are.
    fn latents(&self, samples: &[Sample]) -> Result<Tensor> {
        let resolution = self.config.data.resolution;
        let cached: Vec<&CachedSample> = samples.iter().filter_map(|sample| sample.encoded.as_ref()).collect();
        if cached.len() == samples.len() {
            let (channels, height, width) = self.pipeline.latent_shape(resolution)?;
            let latents =
                cached.into_iter().map(|encoded| upload(&encoded.latents, (1, channels, height, width), self.device));
            return Ok(Tensor::cat(&latents.collect::<candle_core::Result<Vec<_>>>()?, 0)?);
        }
        let encode = |sample: &Sample| {
            let image = from_rgb8(&sample.image, resolution, self.device)?;
            self.pipeline.vae.encode(&image.unsqueeze(0)?)
        };
        Ok(Tensor::cat(&samples.iter().map(encode).collect::<Result<Vec<_>>>()?, 0)?)
    }

    fn targets(&self, sample: &Sample, latent_shape: &[usize]) -> Result<SampleTargets> {
        let grid = self.pipeline.transformer.config.grid(latent_shape[1], latent_shape[2]);
        let target = |mask: &Mask| MaskTarget {
            grid: mask.shrink_nearest(grid.1, grid.0),
            area: mask.area(),
            class: mask.class,
            pixels: Arc::new(mask.clone()),
        };
        let names: Vec<&str> = sample.classes.iter().map(String::as_str).collect();
        let spans = if names.is_empty() || self.prompt.is_some() {
            vec![]
        } else {
            self.pipeline.text_encoders.token_spans(&names)?
        };
        let is_matched = names.is_empty() && self.prompt.is_none() && !sample.masks.is_empty();
        let words = is_matched.then(|| self.pipeline.text_encoders.words_of(&sample.prompt)).transpose()?.flatten();
        Ok(SampleTargets { masks: sample.masks.iter().map(target).collect(), spans, words })
    }
}
