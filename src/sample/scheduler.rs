//! The flow-matching Euler scheduler: noise levels of training and sampling (diffusers:
//! `FlowMatchEulerDiscreteScheduler`).
use super::noise::generator;
use crate::config::NoiseConfig;
use crate::model::families::{self, SigmaSpacing};
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
#[serde(default)]
struct SchedulerConfig {
    num_train_timesteps: usize,
    shift: f64,
    use_dynamic_shifting: bool,
    time_shift_type: Option<String>,
    base_shift: f64,
    max_shift: f64,
    base_image_seq_len: usize,
    max_image_seq_len: usize,
    invert_sigmas: bool,
    stochastic_sampling: bool,
    use_karras_sigmas: Option<bool>,
    use_exponential_sigmas: Option<bool>,
    use_beta_sigmas: Option<bool>,
    shift_terminal: Option<f64>,
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            shift: 1.0,
            use_dynamic_shifting: false,
            time_shift_type: None,
            base_shift: 0.5,
            max_shift: 1.15,
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
            invert_sigmas: false,
            stochastic_sampling: false,
            use_karras_sigmas: None,
            use_exponential_sigmas: None,
            use_beta_sigmas: None,
            shift_terminal: None,
            class_name: None,
        }
    }
}

/// A shift that grows with the number of image tokens; the fields are keys of `scheduler_config.json`.
#[derive(Clone, Debug, PartialEq)]
struct DynamicShift {
    /// Logarithm of the shift at `base_image_seq_len` tokens.
    base_shift: f64,
    /// That at `max_image_seq_len` tokens.
    max_shift: f64,
    /// See `base_shift`.
    base_image_seq_len: usize,
    /// See `max_shift`.
    max_image_seq_len: usize,
}

impl DynamicShift {
    /// What is wrong with the settings, `time_shift_type` among them.
    fn problem(&self, time_shift_type: Option<&str>) -> Option<String> {
        let Self { base_shift, max_shift, base_image_seq_len: base, max_image_seq_len: most } = *self;
        if time_shift_type.is_some_and(|kind| kind != "exponential") {
            return Some(format!("time_shift_type is {time_shift_type:?}, expected \"exponential\""));
        }
        for (name, shift) in [("base_shift", base_shift), ("max_shift", max_shift)] {
            if shift.is_nan() || shift.abs() > LARGEST_SHIFT.ln() {
                return Some(format!("{name} is {shift}, expected a number of at most {:.1}", LARGEST_SHIFT.ln()));
            }
        }
        (base >= most).then(|| format!("base_image_seq_len is {base}, expected less than max_image_seq_len, {most}"))
    }

    /// The shift at so many image tokens and steps.
    fn shift(&self, spacing: SigmaSpacing, image_tokens: usize, steps: usize) -> f64 {
        match spacing {
            SigmaSpacing::EvenEmpirical => empirical_mu(image_tokens, steps).exp(),
            SigmaSpacing::Trained | SigmaSpacing::Even => self.linear_shift(image_tokens),
        }
    }

    /// The shift at so many image tokens, whose logarithm is a straight line (diffusers: `calculate_shift`).
    fn linear_shift(&self, image_tokens: usize) -> f64 {
        let (base, most) = (self.base_image_seq_len as f64, self.max_image_seq_len as f64);
        let slope = (self.max_shift - self.base_shift) / (most - base);
        (image_tokens as f64 * slope + (self.base_shift - slope * base)).exp()
    }
}

/// Logarithm of FLUX.2's shift at so many image tokens and steps: between straight lines for 10 and 200 steps (diffusers:
/// `compute_empirical_mu`).
fn empirical_mu(image_tokens: usize, steps: usize) -> f64 {
    let tokens = image_tokens as f64;
    let of_200 = 0.000_169_27 * tokens + 0.456_666_66;
    if image_tokens > 4300 {
        return of_200;
    }
    let of_10 = 8.738_095_24e-5 * tokens + 1.898_333_33;
    let slope = (of_200 - of_10) / 190.0;
    slope * steps as f64 + (of_200 - 200.0 * slope)
}

/// Noise levels σ from 1 (noise) to 0 (image), shifted towards 1: `σ' = sσ/(1+(s−1)σ)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Scheduler {
    /// Number of training timesteps; a timestep is σ times this number.
    pub num_train_timesteps: usize,
    /// Shift of the noise levels: σ' = shift·σ / (1 + (shift − 1)·σ).
    pub shift: f64,
    /// In sampling, in the place of `shift`; in training levels are then not shifted.
    dynamic: Option<DynamicShift>,
    spacing: SigmaSpacing,
    /// σ of each training timestep, descending.
    pub sigmas: Vec<f32>,
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
    /// Reads `scheduler/scheduler_config.json`, or what it would say of a model in one file.
    ///
    /// # Errors
    /// The file cannot be read or names another kind of scheduler.
    pub fn open(files: &ModelFiles) -> Result<Self> {
        let spacing = families::of(files)?.pipeline.sigma_spacing;
        Self::checked(files.scheduler_config()?, &files.scheduler_path()?, spacing)
    }

    /// Reads `scheduler_config.json`, of a family that spaces its levels so; unsupported settings are errors.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_config(file: &Path, spacing: SigmaSpacing) -> Result<Self> {
        Self::checked(read_json(file, MODEL_JSON)?, file, spacing)
    }

    /// What errors name is `file`.
    fn checked(config: SchedulerConfig, file: &Path, spacing: SigmaSpacing) -> Result<Self> {
        if let Some(name) = config.class_name.filter(|name| name != "FlowMatchEulerDiscreteScheduler") {
            let problem = format!("_class_name is {name:?}, expected \"FlowMatchEulerDiscreteScheduler\"");
            return Err(Error::file(file, problem));
        }
        let unsupported = [
            ("use_dynamic_shifting", config.use_dynamic_shifting && spacing == SigmaSpacing::Trained),
            ("invert_sigmas", config.invert_sigmas),
            ("stochastic_sampling", config.stochastic_sampling),
            ("use_karras_sigmas", config.use_karras_sigmas == Some(true)),
            ("use_exponential_sigmas", config.use_exponential_sigmas == Some(true)),
            ("use_beta_sigmas", config.use_beta_sigmas == Some(true)),
            ("shift_terminal", config.shift_terminal.is_some_and(|v| v != 0.0)),
        ];
        if let Some((key, _)) = unsupported.iter().find(|(_, set)| *set) {
            return Err(Error::file(file, format!("{key} is set, which is not supported for this model")));
        }
        let dynamic = config.use_dynamic_shifting.then_some(DynamicShift {
            base_shift: config.base_shift,
            max_shift: config.max_shift,
            base_image_seq_len: config.base_image_seq_len,
            max_image_seq_len: config.max_image_seq_len,
        });
        if let Some(problem) = dynamic.as_ref().and_then(|dynamic| dynamic.problem(config.time_shift_type.as_deref())) {
            return Err(Error::file(file, problem));
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
        let trained_shift = if dynamic.is_some() { 1.0 } else { config.shift };
        Ok(Self { dynamic, spacing, ..Self::new(config.num_train_timesteps, trained_shift) })
    }

    /// A scheduler of these settings, whose sampling levels are spaced as those of training.
    pub fn new(num_train_timesteps: usize, shift: f64) -> Self {
        // diffusers computes in torch f32 with Python scalars rounded to f32.
        let shift32 = shift as f32;
        let less_one = (shift - 1.0) as f32;
        let sigmas = (1..=num_train_timesteps).rev().map(|step| {
            let sigma = step as f32 / num_train_timesteps as f32;
            shift32 * sigma / (1.0 + less_one * sigma)
        });
        Self { num_train_timesteps, shift, dynamic: None, spacing: SigmaSpacing::Trained, sigmas: sigmas.collect() }
    }

    /// Draws a training noise level from the random stream of `seed` and `stream`: the sigmoid of a normal number
    /// indexes the descending levels (diffusers' `compute_density_for_timestep_sampling`, "logit_normal").
    pub fn draw_sigma(&self, levels: &NoiseConfig, seed: u64, stream: &[u64]) -> f32 {
        let normal: f64 = generator(seed, stream).sample(StandardNormal);
        let u = 1.0 / (1.0 + (-(levels.logit_mean + levels.logit_std * normal)).exp());
        let index = (u * self.sigmas.len() as f64) as usize;
        self.sigmas.get(index.min(self.sigmas.len() - 1)).copied().unwrap_or(1.0)
    }

    /// The model's timestep at noise level `sigma`.
    pub fn timestep(&self, sigma: f32) -> f32 {
        sigma * self.num_train_timesteps as f32
    }

    /// The noise levels for sampling an image of so many tokens in `steps` steps (diffusers: `set_timesteps`).
    pub fn set_timesteps(&self, steps: usize, image_tokens: usize) -> SigmaSchedule {
        let mut sigmas = match self.spacing {
            SigmaSpacing::Trained => self.spaced_as_trained(steps),
            SigmaSpacing::Even | SigmaSpacing::EvenEmpirical => self.spaced_evenly(steps, image_tokens),
        };
        let timesteps = sigmas.iter().map(|&sigma| self.timestep(sigma)).collect();
        sigmas.push(0.0);
        SigmaSchedule { sigmas, timesteps }
    }

    /// From 1 to 1/`steps`, then shifted; in f32, as diffusers' scheduler takes levels that it is given.
    fn spaced_evenly(&self, steps: usize, image_tokens: usize) -> Vec<f32> {
        let dynamic = self.dynamic.as_ref().map(|dynamic| dynamic.shift(self.spacing, image_tokens, steps));
        let shift = dynamic.unwrap_or(self.shift) as f32;
        let last = 1.0 / steps.max(1) as f64;
        let step = (last - 1.0) / steps.saturating_sub(1).max(1) as f64;
        let level = |i: usize| if i > 0 && i + 1 == steps { last } else { i as f64 * step + 1.0 };
        let shifted = |sigma: f32| match self.dynamic {
            Some(_) => shift / (shift + (1.0 / sigma - 1.0)),
            None => shift * sigma / (1.0 + (shift - 1.0) * sigma),
        };
        (0..steps).map(|i| shifted(level(i) as f32)).collect()
    }

    /// As in diffusers, the smallest σ is shifted twice, so that the last step starts from a higher noise level than an
    /// even division would give.
    fn spaced_as_trained(&self, steps: usize) -> Vec<f32> {
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
        levels.collect()
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
