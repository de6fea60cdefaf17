//! The sampling loop: from noise to latents under guidance (diffusers: `StableDiffusion3Pipeline.__call__`).
use super::noise;
use super::scheduler::{Schedule, Scheduler};
use crate::model::families::Blur;
use crate::model::text::TextEmbedding;
use crate::model::weights;
use crate::report::progress::bar;
use crate::system::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use indicatif::ProgressBar;
use std::path::Path;

/// First element of the noise stream of initial latents; the second is the image's index.
const INITIAL_NOISE: u64 = 0x6c61_7465_6e74;

/// How images are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    pub steps: usize,
    /// Guidance scale; at 1 or less the negative prompt is not run.
    pub guidance: f64,
    /// Guidance away from what the model draws with a block's attention blurred.
    pub perturbed: Option<PerturbedGuidance>,
    /// Whether to draw a progress bar on the terminal.
    pub progress: bool,
}

/// `v + scale · (v⁺ − v⁺ blurred)`, v being the velocity under usual guidance, v⁺ that of the positive prompt (perturbed
/// attention guidance; Ahn et al., 2024).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerturbedGuidance {
    pub scale: f64,
    pub blur: Blur,
}

impl PerturbedGuidance {
    /// None where `scale` is 0, which turns it off.
    pub fn new(scale: f64, blur: Blur) -> Option<Self> {
        (scale > 0.0).then_some(Self { scale, blur })
    }
}

/// A prompt's embedding, and what guidance leads away from; equal batch sizes.
pub struct Conditions<'a> {
    pub positive: &'a TextEmbedding,
    pub negative: &'a TextEmbedding,
}

impl SamplingOptions {
    pub fn guided(&self) -> bool {
        self.guidance > 1.0
    }

    /// Draws: from initial noise `[batch, channels, height, width]` to latents of the same shape, f32.
    ///
    /// `velocity` is the model: latents, time steps `[batch]`, the text and any blur in, velocity out. Under guidance
    /// its batch is twice as large, negative prompts first; never with a blur.
    pub fn run(
        &self,
        scheduler: &Scheduler,
        noise: &Tensor,
        text: &Conditions,
        mut velocity: impl FnMut(&Tensor, &Tensor, &TextEmbedding, Option<Blur>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        if self.steps == 0 {
            return Err(Error::Usage("steps must be at least 1".into()));
        }
        let joined;
        let embedding = match self.guided() {
            true => {
                joined = TextEmbedding::cat(&[text.negative, text.positive])?;
                &joined
            }
            false => text.positive,
        };
        let schedule = scheduler.set_timesteps(self.steps);
        let bar =
            if self.progress { bar("{bar:30} step {pos}/{len} {elapsed} < {eta}", self.steps as u64) } else { None };
        let mut latents = noise.to_dtype(DType::F32)?;
        for step in 0..schedule.steps() {
            latents = self.step((&schedule, step), &latents, embedding, text.positive, &mut velocity)?;
            bar.iter().for_each(|bar| bar.inc(1));
        }
        bar.iter().for_each(ProgressBar::finish_and_clear);
        Ok(latents)
    }

    fn step(
        &self,
        (schedule, step): (&Schedule, usize),
        latents: &Tensor,
        embedding: &TextEmbedding,
        positive_text: &TextEmbedding,
        velocity: &mut impl FnMut(&Tensor, &Tensor, &TextEmbedding, Option<Blur>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let input = if self.guided() { Tensor::cat(&[latents, latents], 0)? } else { latents.clone() };
        let timestep = Tensor::full(schedule.timesteps[step], input.dim(0)?, &Device::Cpu)?;
        let output = velocity(&input, &timestep, embedding, None)?.to_dtype(DType::F32)?;
        let batch = latents.dim(0)?;
        let positive = output.narrow(0, output.dim(0)? - batch, batch)?;
        let mut output = match self.guided() {
            true => {
                let negative = output.narrow(0, 0, batch)?;
                ((&positive - &negative)? * self.guidance)?.add(&negative)?
            }
            false => output,
        };
        if let Some(PerturbedGuidance { scale, blur }) = self.perturbed {
            let timestep = timestep.narrow(0, 0, batch)?;
            let worse = velocity(latents, &timestep, positive_text, Some(blur))?.to_dtype(DType::F32)?;
            output = (output + ((positive - worse)? * scale)?)?;
        }
        schedule.step(step, latents, &output)
    }
}

/// Initial latents of images `first..first + count`, each of its own seed and index alone: `[count, ..shape]`, f32.
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

/// Reads a tensor such as given latents or noise from a safetensors file: `[images, ..shape]`, f32.
///
/// `images` is how many it must hold, `None` any number.
pub fn read_latents(
    file: &Path,
    key: &str,
    images: Option<usize>,
    shape: (usize, usize, usize),
    device: &Device,
) -> Result<Tensor> {
    let mut tensors = weights::read_all(file)?;
    let found: Vec<String> = tensors.keys().cloned().collect();
    let latents = tensors
        .remove(key)
        .ok_or_else(|| Error::file(file, format!("no tensor {key:?}, it holds {}", found.join(", "))))?;
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
