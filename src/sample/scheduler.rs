//! The flow-matching Euler scheduler: noise levels of training and sampling (diffusers:
//! `FlowMatchEulerDiscreteScheduler`).
use super::noise::generator;
use crate::config::NoiseConfig;
use crate::model::weights::files::ModelFiles;
use crate::system::error::{Error, Result};
use crate::system::json::read_json;
use crate::system::limits::MODEL_JSON;
use candle_core::Tensor;
use rand::Rng;
use rand_distr::StandardNormal;
use serde::Deserialize;
use std::path::Path;

/// Above this shift, all noise levels but the last round to 1 in f32.
const LARGEST_SHIFT: f64 = 1e6;

/// The supported keys of `scheduler_config.json`, and those that must be off.
#[derive(Deserialize)]
struct SchedulerConfig {
    #[serde(default = "default_train_timesteps")]
    num_train_timesteps: usize,
    #[serde(default = "default_shift")]
    shift: f64,
    #[serde(default)]
    use_dynamic_shifting: bool,
    #[serde(default)]
    invert_sigmas: bool,
    #[serde(default)]
    stochastic_sampling: bool,
    #[serde(default)]
    use_karras_sigmas: Option<bool>,
    #[serde(default)]
    use_exponential_sigmas: Option<bool>,
    #[serde(default)]
    use_beta_sigmas: Option<bool>,
    #[serde(default)]
    shift_terminal: Option<f64>,
    #[serde(default, rename = "_class_name")]
    class_name: Option<String>,
}

fn default_train_timesteps() -> usize {
    1000
}

fn default_shift() -> f64 {
    1.0
}

/// Noise levels σ from 1 (noise) to 0 (image), shifted towards 1: `σ' = sσ/(1+(s−1)σ)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Scheduler {
    /// Number of training timesteps; a timestep is σ times this number.
    pub num_train_timesteps: usize,
    /// Shift of the noise levels: σ' = shift·σ / (1 + (shift − 1)·σ).
    pub shift: f64,
    /// σ of each training timestep, descending.
    sigmas: Vec<f32>,
}

/// The noise levels of a sampling run.
#[derive(Clone, Debug, PartialEq)]
pub struct SigmaSchedule {
    /// `steps + 1` descending σ, the last one 0.
    pub sigmas: Vec<f32>,
    /// The model's input at each of the `steps` steps: σ · `num_train_timesteps`.
    pub timesteps: Vec<f32>,
}

impl Scheduler {
    /// Reads `scheduler/scheduler_config.json`.
    ///
    /// # Errors
    /// The file cannot be read or names another kind of scheduler.
    pub fn open(files: &ModelFiles) -> Result<Self> {
        Self::from_config(&files.scheduler_config()?)
    }

    /// Reads `scheduler_config.json`; unsupported settings are errors.
    pub fn from_config(file: &Path) -> Result<Self> {
        let config: SchedulerConfig = read_json(file, MODEL_JSON)?;
        if let Some(name) = config.class_name.filter(|name| name != "FlowMatchEulerDiscreteScheduler") {
            let problem = format!("_class_name is {name:?}, expected \"FlowMatchEulerDiscreteScheduler\"");
            return Err(Error::file(file, problem));
        }
        let unsupported = [
            ("use_dynamic_shifting", config.use_dynamic_shifting),
            ("invert_sigmas", config.invert_sigmas),
            ("stochastic_sampling", config.stochastic_sampling),
            ("use_karras_sigmas", config.use_karras_sigmas == Some(true)),
            ("use_exponential_sigmas", config.use_exponential_sigmas == Some(true)),
            ("use_beta_sigmas", config.use_beta_sigmas == Some(true)),
            ("shift_terminal", config.shift_terminal.is_some_and(|v| v != 0.0)),
        ];
        if let Some((key, _)) = unsupported.iter().find(|(_, set)| *set) {
            return Err(Error::file(file, format!("{key} is set, which is not supported for Stable Diffusion 3")));
        }
        if !(config.shift > 0.0 && config.shift <= LARGEST_SHIFT) {
            let problem = format!("shift is {}, expected a number above 0 and at most {LARGEST_SHIFT}", config.shift);
            return Err(Error::file(file, problem));
        }
        // Above 2²⁴, indices are not exact in f32.
        if !(1..=1 << 24).contains(&config.num_train_timesteps) {
            let problem = format!("num_train_timesteps is {}, expected 1 to 16777216", config.num_train_timesteps);
            return Err(Error::file(file, problem));
        }
        Ok(Self::new(config.num_train_timesteps, config.shift))
    }

    /// A scheduler of these settings.
    pub fn new(num_train_timesteps: usize, shift: f64) -> Self {
        // diffusers computes in torch f32 with Python scalars rounded to f32.
        let shift32 = shift as f32;
        let less_one = (shift - 1.0) as f32;
        let sigmas = (1..=num_train_timesteps).rev().map(|step| {
            let sigma = step as f32 / num_train_timesteps as f32;
            shift32 * sigma / (1.0 + less_one * sigma)
        });
        Self { num_train_timesteps, shift, sigmas: sigmas.collect() }
    }

    /// σ of each training timestep, descending.
    pub fn train_sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// Draws a training noise level from the random stream of `seed` and `stream`: the sigmoid of a normal number
    /// indexes the descending levels (diffusers' `compute_density_for_timestep_sampling`, "logit_normal").
    pub fn draw_sigma(&self, levels: &NoiseConfig, seed: u64, stream: &[u64]) -> f32 {
        let normal: f64 = generator(seed, stream).sample(StandardNormal);
        let u = 1.0 / (1.0 + (-(levels.logit_mean + levels.logit_std * normal)).exp());
        let sigmas = self.train_sigmas();
        let index = (u * sigmas.len() as f64) as usize;
        sigmas.get(index.min(sigmas.len() - 1)).copied().unwrap_or(1.0)
    }

    /// The model's timestep at noise level `sigma`.
    pub fn timestep(&self, sigma: f32) -> f32 {
        sigma * self.num_train_timesteps as f32
    }

    /// The noise levels for sampling in `steps` steps (diffusers: `set_timesteps`).
    ///
    /// As in diffusers, the smallest σ is shifted twice, so that the last step starts from a higher noise level than an
    /// even division would give.
    pub fn set_timesteps(&self, steps: usize) -> SigmaSchedule {
        let train = self.num_train_timesteps as f64;
        let (first, last) = match (self.sigmas.first(), self.sigmas.last()) {
            (Some(first), Some(last)) => (f64::from(*first) * train, f64::from(*last) * train),
            _ => (train, 0.0),
        };
        // numpy.linspace in f64: start + i·step, with the last value set to the end itself.
        let step = (last - first) / steps.saturating_sub(1).max(1) as f64;
        let levels = (0..steps).map(|i| {
            let timestep = if i > 0 && i == steps - 1 { last } else { i as f64 * step + first };
            let sigma = timestep / train;
            (self.shift * sigma / (1.0 + (self.shift - 1.0) * sigma)) as f32
        });
        let mut sigmas: Vec<f32> = levels.collect();
        let timesteps = sigmas.iter().map(|&sigma| self.timestep(sigma)).collect();
        sigmas.push(0.0);
        SigmaSchedule { sigmas, timesteps }
    }
}

impl SigmaSchedule {
    /// Denoising steps.
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// One Euler step: from `latents` at noise level `sigmas[step]` along the model's `velocity` to the next level.
    pub fn step(&self, step: usize, latents: &Tensor, velocity: &Tensor) -> Result<Tensor> {
        let (Some(from), Some(to)) = (self.sigmas.get(step), self.sigmas.get(step + 1)) else {
            return Err(Error::Failed(format!("step {step} of a schedule of {}", self.steps())));
        };
        Ok((latents + (velocity * f64::from(to - from))?)?)
    }
}
