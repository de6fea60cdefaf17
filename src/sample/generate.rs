//! The sampling loop: noise to latents with guidance (diffusers: `StableDiffusion3Pipeline.__call__`).
use super::noise;
use super::scheduler::Scheduler;
use crate::model::families::Blur;
use crate::model::text::TextEmbedding;
use crate::model::weights;
use crate::system::error::{Error, Result};
use crate::system::progress::bar;
use candle_core::{DType, Device, Tensor};
use indicatif::ProgressBar;
use std::path::Path;

/// First key of the noise stream of initial latents; the second key is the image's index.
const INITIAL_NOISE: u64 = u64::from_be_bytes(*b"\0\0latent");

/// Settings of the sampling loop.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    /// Denoising steps.
    pub steps: usize,
    /// Guidance scale; at 1 or less, the negative prompt is not evaluated.
    pub guidance: f64,
    /// Perturbed attention guidance.
    pub perturbed: Option<PerturbedGuidance>,
    /// Whether to show a progress bar.
    pub progress: bool,
}

/// Perturbed attention guidance (Ahn et al., 2024) with blurred attention: adds `scale · (v⁺ − v⁺ blurred)` to the
/// guided velocity, v⁺ being the velocity under the positive prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerturbedGuidance {
    /// Factor of the difference that is added.
    pub scale: f64,
    /// The block whose attention is blurred, and how far.
    pub blur: Blur,
}

impl PerturbedGuidance {
    /// `None` if `scale` is 0.
    pub fn new(scale: f64, blur: Blur) -> Option<Self> {
        (scale > 0.0).then_some(Self { scale, blur })
    }
}

/// Embeddings of the positive and negative prompts, of equal batch sizes.
pub struct PromptEmbeddings<'a> {
    /// Embeddings of the prompts.
    pub positive: &'a TextEmbedding,
    /// Embeddings of the negative prompts.
    pub negative: &'a TextEmbedding,
}

impl SamplingOptions {
    /// Whether guidance is on: a scale above 1.
    pub fn guided(&self) -> bool {
        self.guidance > 1.0
    }

    /// Denoises initial noise `[batch, channels, height, width]`, of so many image tokens, to latents of equal shape, f32.
    ///
    /// `velocity` is the model: it maps latents, timesteps `[batch]`, text and an optional blur to velocities. With
    /// guidance its batch is doubled, negative prompts first; calls with a blur are never doubled.
    pub fn run(
        &self,
        scheduler: &Scheduler,
        noise: &Tensor,
        image_tokens: usize,
        text: &PromptEmbeddings,
        mut velocity: impl FnMut(&Tensor, &Tensor, &TextEmbedding, Option<Blur>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        if self.steps == 0 {
            return Err(Error::Usage("steps must be at least 1".into()));
        }
        let joined = self.guided().then(|| TextEmbedding::cat(&[text.negative, text.positive])).transpose()?;
        let embedding = joined.as_ref().unwrap_or(text.positive);
        let schedule = scheduler.set_timesteps(self.steps, image_tokens);
        let bar =
            if self.progress { bar("{bar:30} step {pos}/{len} {elapsed} < {eta}", self.steps as u64) } else { None };
        let mut latents = noise.to_dtype(DType::F32)?;
        for step in 0..schedule.steps() {
            let input = if self.guided() { Tensor::cat(&[&latents, &latents], 0)? } else { latents.clone() };
            let timestep = Tensor::full(schedule.timesteps[step], input.dim(0)?, &Device::Cpu)?;
            let mut output = velocity(&input, &timestep, embedding, None)?.to_dtype(DType::F32)?;
            let batch = latents.dim(0)?;
            let positive = output.narrow(0, output.dim(0)? - batch, batch)?;
            if self.guided() {
                let negative = output.narrow(0, 0, batch)?;
                output = ((&positive - &negative)? * self.guidance)?.add(&negative)?;
            }
            if let Some(PerturbedGuidance { scale, blur }) = self.perturbed {
                let timestep = timestep.narrow(0, 0, batch)?;
                let worse = velocity(&latents, &timestep, text.positive, Some(blur))?.to_dtype(DType::F32)?;
                output = (output + ((positive - worse)? * scale)?)?;
            }
            latents = schedule.step(step, &latents, &output)?;
            bar.iter().for_each(|bar| bar.inc(1));
        }
        bar.iter().for_each(ProgressBar::finish_and_clear);
        Ok(latents)
    }
}

/// Initial latents of images `first..first + count`, `[count, ..shape]`, f32; each depends on the seed and its index
/// alone.
pub fn initial_latents(
    seed: u64,
    first: usize,
    count: usize,
    shape: (usize, usize, usize),
    device: &Device,
) -> Result<Tensor> {
    let draw = |index: usize| noise::normal(seed, &[INITIAL_NOISE, index as u64], shape, device);
    let images = (first..first + count).map(draw).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::stack(&images, 0)?)
}

/// Reads latents or noise from a safetensors file: `[images, ..shape]`, f32.
///
/// `images` is the required number, `None` for any.
pub fn read_latents(
    file: &Path,
    key: &str,
    images: Option<usize>,
    shape: (usize, usize, usize),
    device: &Device,
) -> Result<Tensor> {
    let mut tensors = weights::read_all(file)?;
    let Some(latents) = tensors.remove(key) else {
        let found: Vec<String> = tensors.into_keys().collect();
        return Err(Error::file(file, format!("no tensor {key:?}, it holds {}", found.join(", "))));
    };
    let (channels, height, width) = shape;
    let fits = match latents.dims() {
        [count, rest @ ..] => *rest == [channels, height, width] && images.is_none_or(|images| images == *count),
        [] => false,
    };
    if !fits {
        let count = images.map_or("images".to_string(), |images| images.to_string());
        let expected = format!("[{count}, {channels}, {height}, {width}]");
        return Err(Error::file(file, format!("tensor {key} has shape {:?}, expected {expected}", latents.shape())));
    }
    let latents = latents.to_dtype(DType::F32)?;
    if !latents.flatten_all()?.to_vec1::<f32>()?.iter().all(|value| value.is_finite()) {
        return Err(Error::file(file, format!("tensor {key} has values that are not finite")));
    }
    Ok(latents.to_device(device)?)
}
