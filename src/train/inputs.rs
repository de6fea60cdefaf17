//! From a batch of samples to what the step computes on: latents, text, noise and targets.
use crate::config::NoiseConfig;
use crate::data::{Mask, Sample};
use crate::error::Result;
use crate::loss::{MaskTarget, SampleTargets};
use crate::model::pipeline::Pipeline;
use crate::sample::noise::normal;
use crate::sample::scheduler::Scheduler;
use crate::train::gradients::StepInputs;
use candle_core::{DType, Device, Tensor};
use candle_datasets::Batcher;
use std::sync::Arc;

/// First elements of the random streams of a training sample; the second is the sample's number in the run.
const NOISE: u64 = 0x006e_6f69_7365;
const TIME: u64 = 0x7469_6d65;

/// What turns samples into inputs.
pub struct InputMaker<'a> {
    pub pipeline: &'a Pipeline,
    pub scheduler: &'a Scheduler,
    pub noise: &'a NoiseConfig,
    pub seed: u64,
    /// Images under more noise than this have no targets.
    pub mask_max_sigma: f64,
    /// Side of the training images in pixels.
    pub resolution: usize,
    pub device: &'a Device,
}

impl InputMaker<'_> {
    /// Inputs of `samples`, the first of which is number `first` of the run: noise and time depend on that alone.
    pub fn make(&self, samples: &[Sample], first: u64) -> Result<StepInputs> {
        let prompts: Vec<&str> = samples.iter().map(|sample| sample.prompt.as_str()).collect();
        let text = self.pipeline.text_encoders.encode(&prompts)?;
        let latents = self.latents(samples)?;
        let shape = latents.dims()[1..].to_vec();
        let (mut noise, mut sigmas, mut timesteps) = (vec![], vec![], vec![]);
        for number in first..first + samples.len() as u64 {
            noise.push(normal(self.seed, &[NOISE, number], shape.as_slice(), self.device)?);
            let sigma = self.scheduler.draw_sigma(self.noise, self.seed, &[TIME, number]);
            sigmas.push(sigma);
            timesteps.push(self.scheduler.timestep(sigma));
        }
        let targets =
            samples.iter().zip(&sigmas).map(|(sample, sigma)| match f64::from(*sigma) > self.mask_max_sigma {
                true => Ok(SampleTargets::default()),
                false => self.targets(sample, &shape),
            });
        let targets = targets.collect::<Result<_>>()?;
        Ok(StepInputs {
            noise: Tensor::stack(&noise, 0)?,
            sigma: Tensor::from_vec(sigmas, samples.len(), self.device)?,
            timestep: Tensor::from_vec(timesteps, samples.len(), self.device)?,
            context: text.context,
            pooled: text.pooled,
            targets,
            latents,
        })
    }

    /// Images go through the autoencoder one by one: its activations are the largest there are.
    fn latents(&self, samples: &[Sample]) -> Result<Tensor> {
        let images = samples.iter().map(|sample| {
            let shape = (self.resolution, self.resolution, 3);
            Tensor::from_slice(&sample.image, shape, self.device)?
                .permute((2, 0, 1))?
                .to_dtype(DType::F32)?
                .affine(2.0 / 255.0, -1.0)
        });
        let latents = Batcher::new_r1(images)
            .batch_size(1)
            .map(|image| self.pipeline.vae.encode(&image?))
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&latents, 0)?)
    }

    fn targets(&self, sample: &Sample, latent_shape: &[usize]) -> Result<SampleTargets> {
        let patch = self.pipeline.transformer.config.patch_size;
        let grid = (latent_shape[2] / patch, latent_shape[1] / patch);
        let target = |mask: &Mask| MaskTarget {
            grid: mask.shrink_nearest(grid.0, grid.1),
            area: mask.area(),
            class: mask.class,
            pixels: Arc::new(mask.clone()),
        };
        let names: Vec<&str> = sample.classes.iter().map(String::as_str).collect();
        let spans = if names.is_empty() { vec![] } else { self.pipeline.text_encoders.token_spans(&names)? };
        Ok(SampleTargets { masks: sample.masks.iter().map(target).collect(), spans })
    }
}
