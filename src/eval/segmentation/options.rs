//! Settings of a segmentation: noise level, image size, prompts, batches.
use super::LabelledFolder;
use crate::config::{EvalConfig, SegmentationProtocol};
use crate::eval::maps::MapSettings;
use crate::eval::usual_batch;
use crate::sample::scheduler::Scheduler;
use crate::system::error::{Error, Result};
use candle_core::Tensor;

/// The noise level of the images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NoiseLevel {
    /// A timestep of a sampling schedule of `steps` steps; negative indices count from the end, −1 being the last.
    Step {
        /// Steps of the schedule.
        steps: usize,
        /// Index of the timestep.
        timestep: isize,
    },
    /// σ, the fraction of noise, from 0 to 1.
    Sigma(f64),
}

impl NoiseLevel {
    /// σ and the model's timestep, for images of so many tokens.
    pub(super) fn of(self, scheduler: &Scheduler, image_tokens: usize) -> Result<(f32, f32)> {
        match self {
            Self::Sigma(sigma) => Ok((sigma as f32, scheduler.timestep(sigma as f32))),
            Self::Step { steps, timestep } => {
                let schedule = scheduler.set_timesteps(steps, image_tokens);
                let index =
                    if timestep < 0 { steps.checked_add_signed(timestep) } else { usize::try_from(timestep).ok() };
                let found =
                    index.and_then(|index| Some((*schedule.sigmas.get(index)?, *schedule.timesteps.get(index)?)));
                found.ok_or_else(|| Error::Usage(format!("time step {timestep} of a schedule of {steps} steps")))
            }
        }
    }
}

/// Settings of the segmentation.
#[derive(Clone, Debug)]
pub struct SegmentationOptions {
    /// How attention becomes maps.
    pub maps: MapSettings,
    /// Side in pixels of the resized square images.
    pub size: usize,
    /// Which names the prompt has.
    pub protocol: SegmentationProtocol,
    /// How much noise the latents have.
    pub noise_level: NoiseLevel,
    /// Seed of the noise, which also depends on the image's index.
    pub seed: u64,
    /// Fixed noise for every image, `[1, channels, height, width]`.
    pub noise: Option<Tensor>,
    /// Images, and prompts, computed together.
    pub batch: usize,
    /// Greatest number of images.
    pub limit: Option<usize>,
}

impl SegmentationOptions {
    /// The published protocol with the attention of block `layer`, for images of `size`² pixels.
    pub fn new(layer: usize, size: usize) -> Self {
        Self {
            maps: MapSettings::of_layers(&[layer]),
            size,
            protocol: SegmentationProtocol::Present,
            noise_level: NoiseLevel::Step { steps: 28, timestep: -8 },
            seed: 0,
            noise: None,
            batch: usual_batch(size),
            limit: None,
        }
    }

    /// The settings of a run's `[eval]`, for the first `limit` images.
    pub fn of(eval: &EvalConfig, limit: Option<usize>) -> Self {
        let usual = Self::new(0, eval.size);
        let maps = MapSettings {
            heads: eval.heads,
            attention: eval.attention,
            normalize: eval.normalize,
            ..MapSettings::of_layers(&eval.layers)
        };
        let batch = eval.batch.unwrap_or(usual.batch);
        Self { maps, protocol: eval.protocol, seed: eval.seed, batch, limit, ..usual }
    }

    /// Number of images of `data` to evaluate.
    pub fn count(&self, data: &LabelledFolder) -> usize {
        self.limit.map_or(data.count(), |limit| limit.min(data.count()))
    }
}
