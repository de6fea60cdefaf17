//! The outcome of a run, as its page shows it.
use super::checkpoint::State;
use super::effect::counted;
use crate::config::{RunConfig, named_blocks};
use crate::data::sources::remote;
use crate::report::metrics::{self, StepMetrics};
use crate::report::{Measured, RunReport, SampleFigure, TrainedLayers, ValidationPictures, byte_size, shown};
use crate::system::error::Result;
use crate::system::memory::peak_bytes;
use crate::system::units::{duration, rate};
use candle_core::{Device, DeviceLocation};

/// A run at its end, or where it was stopped.
pub struct Outcome<'a> {
    pub config: &'a RunConfig,
    /// What diffusers loads as the base model.
    pub diffusers_model: String,
    pub state: State,
    pub device: &'a Device,
    pub layers: Vec<TrainedLayers>,
    /// How many trained together.
    pub processes: usize,
    /// The first samples that were trained on.
    pub data: Vec<SampleFigure>,
}

impl Outcome<'_> {
    /// Writes the run's page, and what it shows, into its folder.
    pub fn write(&self, measured: &Measured) -> Result<()> {
        let config = self.config;
        let metrics = metrics::read(&config.output.join("metrics.jsonl"))?;
        let validated = metrics.iter().filter(|step| step.validation.is_some()).map(|step| step.step);
        let with_pictures = ValidationPictures::steps(&config.output)?;
        let validated: Vec<u64> =
            validated.filter(|step| with_pictures.is_empty() || with_pictures.contains(step)).collect();
        let report = RunReport {
            output: config.output.clone(),
            model: config.model.path.clone(),
            model_files: config.model.files.arguments(),
            diffusers_model: self.diffusers_model.clone(),
            looked_at: named_blocks(config.eval.as_ref().map_or(&config.model.expert_layers, |eval| &eval.layers)),
            probed_layer: config.model.last_expert(),
            resolution: config.data.resolution,
            steps: (self.state.step, config.train.steps),
            facts: self.facts(&metrics),
            trained: self.layers.clone(),
            config_toml: without_secrets(config).to_toml(),
            validations: ValidationPictures::read(&config.output, shown(&validated))?,
            metrics,
            measured: measured.clone(),
            data: self.data.clone(),
        };
        report.write(&config.output)
    }

    /// What was trained on what.
    fn facts(&self, metrics: &[StepMetrics]) -> Vec<(&'static str, String)> {
        let config = self.config;
        let (batch, accumulate) = (config.train.batch, config.train.accumulate);
        let images = batch * accumulate * self.processes;
        let others = [accumulate, self.processes].into_iter().filter(|factor| *factor > 1);
        let size = others.fold(batch.to_string(), |size, factor| format!("{size} × {factor}"));
        let device = match self.device.location() {
            DeviceLocation::Cpu => "CPU".to_string(),
            DeviceLocation::Cuda { gpu_id } => format!("CUDA {gpu_id}"),
            DeviceLocation::Metal { gpu_id } => format!("Metal {gpu_id}"),
        };
        let seconds: f64 = metrics.iter().map(|step| step.seconds).filter(|seconds| seconds.is_finite()).sum();
        let mut facts = vec![
            ("Base model", config.model.path.clone()),
            ("Data", without_secrets(config).data.source.join(", ")),
            ("Resolution", format!("{0} × {0} pixels", config.data.resolution)),
            ("Steps", format!("{}, of {size} images each", self.state.step)),
            ("Images seen", self.state.samples.to_string()),
            ("Expert", named_blocks(&config.model.expert_layers)),
            ("Time in steps", duration(seconds)),
            ("Speed", rate(metrics.len() as f64 * images as f64 / seconds)),
            ("Device", device),
        ];
        if let Some(bytes) = peak_bytes() {
            facts.push(("Most memory", byte_size(bytes)));
        }
        if self.state.counters.broken > 0 {
            facts.push(("Broken samples passed over", self.state.counters.broken.to_string()));
        }
        let lost = metrics.iter().filter(|step| !counted(step)).count();
        if lost > 0 {
            facts.push(("Steps without a finite loss", lost.to_string()));
        }
        facts
    }
}

/// The settings for a page that is passed on: signatures in URLs are left out.
fn without_secrets(config: &RunConfig) -> RunConfig {
    let mut config = config.clone();
    config.data.source.iter_mut().for_each(|source| *source = remote::shown(source));
    config
}
