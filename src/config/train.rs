//! The sections `[noise]`, `[optim]`, `[train]` and `[checkpoint]`: how training goes.
use super::document::TomlValue;
use super::keys::keys;
use super::model::LoraConfig;
use super::reader::Reader;
use super::rule::usual;
use super::setting::{Check, Setting, at_least, check, positive, within};
use serde::Serialize;

keys! {
    /// Noise levels of training: sigmoid(Normal(mean, std)), then shifted as the model's scheduler says.
    [noise] pub struct NoiseConfig(reader) {
        /// Mean of the normal distribution.
        logit_mean: f64 = usual(0.0);
        /// Its standard deviation.
        logit_std: f64 = usual(0.5), at_least(0.0);
    }
}

keys! {
    /// AdamW, with a linear warm-up and a cosine to 0.
    [optim] pub struct OptimConfig(reader) {
        /// Learning rate, of the score head and a learnable prompt.
        lr: f64 = usual(1e-4), positive();
        /// The LoRA's learning rate is `lr` times this. (The released config asks for 0.1, which its code does not carry
        /// out.)
        lora_lr_scale: f64 = usual(1.0), positive();
        /// Decay rates of the two moments.
        betas: [f64; 2] = usual([0.9, 0.999]), decay_rates();
        /// Added to the root of the second moment.
        eps: f64 = usual(1e-8), positive();
        /// Decoupled weight decay.
        weight_decay: f64 = usual(1e-4), at_least(0.0);
        /// Largest norm of the gradient over everything trained; 0 turns clipping off.
        clip_norm: f64 = usual(0.01), at_least(0.0);
        /// Steps of the linear warm-up.
        warmup_steps: u64 = usual(500);
        /// The warm-up starts at this share of `lr`.
        warmup_factor: f64 = usual(0.01), within(0.0, 1.0);
    }
}

fn decay_rates() -> Check<[f64; 2]> {
    check("each from 0 to below 1", |betas: &[f64; 2]| match betas.iter().find(|beta| !(0.0..1.0).contains(*beta)) {
        Some(beta) => Err(format!("each must be from 0 to below 1, one is {beta:?}")),
        None => Ok(()),
    })
}

impl OptimConfig {
    /// The largest learning rate of a run of so many steps: that of the warm-up's last step, or of the first after it.
    fn largest_rate(&self, steps: u64) -> f64 {
        let last = steps.saturating_sub(1);
        if last >= self.warmup_steps {
            return self.lr;
        }
        self.lr * (self.warmup_factor + (1.0 - self.warmup_factor) * (last as f64 / self.warmup_steps as f64))
    }

    /// Numbers with which the LoRA would certainly stay as it is, or be no number. Everything trained is f32.
    pub(super) fn check(&self, train: &TrainConfig, lora: &LoraConfig, reader: &mut Reader) {
        let scale = (lora.alpha / lora.rank as f64) as f32;
        if scale == 0.0 || !scale.is_finite() {
            reader.problem(&["lora.alpha"], format!("alpha/rank must be a number of f32 above 0, is {scale}"));
        }
        let rate = self.largest_rate(train.steps) * self.lora_lr_scale;
        if rate as f32 == 0.0 {
            let problem = format!("the LoRA's learning rate would be {rate:e} at most, which is 0 in f32");
            reader.problem(&["optim.lr", "optim.lora_lr_scale", "optim.warmup_factor"], problem);
        } else if !(rate as f32).is_finite() {
            let problem = format!("is {rate:e} for the LoRA, too large for f32");
            reader.problem(&["optim.lr", "optim.lora_lr_scale"], problem);
        }
        if self.clip_norm > 0.0 && self.clip_norm as f32 == 0.0 {
            let problem =
                format!("is {:e}, which is 0 in f32: every gradient would be; 0 turns clipping off", self.clip_norm);
            reader.problem(&["optim.clip_norm"], problem);
        }
        if !(self.eps as f32).is_finite() {
            let problem = format!("is {:e}, infinite in f32: no step would change anything", self.eps);
            reader.problem(&["optim.eps"], problem);
        }
    }
}

keys! {
    /// Length and size of the run.
    [train] pub struct TrainConfig(reader) {
        /// Optimizer steps.
        steps: u64 = usual(1000), at_least(1);
        /// Images of a forward pass.
        batch: usize = usual(4), within(1, 4096);
        /// Forward passes of an optimizer step. (The released config asks for 2, which its code does not carry out.)
        accumulate: usize = usual(1), within(1, 65536);
        /// Whether blocks are computed again in the backward pass to save their activations' memory; `auto` does so for
        /// those whose activations do not fit.
        gradient_checkpointing: GradientCheckpointing = usual(GradientCheckpointing::Auto);
        /// Steps in a row with a loss or gradient that is not finite, which are skipped, before the run stops.
        max_nonfinite: u64 = usual(10), at_least(1);
    }
}

impl TrainConfig {
    /// Samples that so many processes train on.
    pub fn samples(&self, processes: usize) -> u64 {
        self.steps * (self.batch * self.accumulate * processes) as u64
    }
}

/// Which blocks are computed again in the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GradientCheckpointing {
    /// Those whose activations do not fit into free memory.
    Auto,
    /// Every block.
    On,
    /// None.
    Off,
}

impl Serialize for GradientCheckpointing {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::On => serializer.serialize_bool(true),
            Self::Off => serializer.serialize_bool(false),
        }
    }
}

impl Setting for GradientCheckpointing {
    fn expected() -> String {
        "\"auto\", true or false".into()
    }

    fn convert(value: &TomlValue) -> Option<Self> {
        match value {
            TomlValue::String(text) if text == "auto" => Some(Self::Auto),
            TomlValue::Boolean(true) => Some(Self::On),
            TomlValue::Boolean(false) => Some(Self::Off),
            _ => None,
        }
    }

    fn nearest(_text: &str) -> Option<&'static str> {
        Some("auto")
    }
}

keys! {
    /// Checkpoints, from which a stopped run is resumed.
    [checkpoint] pub struct CheckpointConfig(reader) {
        /// Steps between checkpoints; 0 writes one at the end only.
        every: u64 = usual(250);
        /// How many of the newest are kept; 0 keeps all.
        keep: usize = usual(3);
    }
}
