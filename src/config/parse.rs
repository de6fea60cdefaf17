//! From a TOML file and `--set` overrides to a run configuration: every key, its default and its range.
use super::document::{Document, read_text};
use super::problems::{Problems, nearest};
use super::reader::Reader;
use super::setting::{Blocks, at_least, distinct, not_empty, positive, within};
use super::*;
use crate::system::error::Result;
use crate::train::schedule::largest_rate;
use std::path::Path;

/// Modules of a block that an adapter can sit on, named as in diffusers.
const LORA_TARGETS: [&str; 18] = [
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "attn2.to_q",
    "attn2.to_k",
    "attn2.to_v",
    "attn2.to_out.0",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
    "norm1.linear",
    "norm1_context.linear",
];

impl RunConfig {
    /// Reads a config file and lays `overrides` (`a.b=c`, from `--set`) over it, without looking at any other file.
    ///
    /// # Errors
    /// `Error::Usage` with a line for every problem: `FILE:LINE:COLUMN: …`, or `--set KEY=VALUE: …`.
    pub fn load(file: &Path, overrides: &[String]) -> Result<Self> {
        Self::parse(&read_text(file)?, file, overrides)
    }

    /// As `load`, from text; `file` is what errors name.
    pub fn parse(text: &str, file: &Path, overrides: &[String]) -> Result<Self> {
        let mut problems = Problems::new(file);
        let mut document = Document::parse(text, &mut problems);
        overrides.iter().for_each(|text| document.set(text, &mut problems));
        // What follows a syntax error is guesswork: stop here if there is one.
        problems.into_result()?;
        let mut reader = Reader::new(document, Problems::new(file));
        let mut config = Self {
            seed: reader.get("seed", 0),
            device: reader.get("device", DeviceChoice::Auto),
            output: reader.required("output", "\"runs/NAME\"", not_empty),
            model: model(&mut reader),
            lora: lora(&mut reader),
            data: data(&mut reader),
            noise: NoiseConfig {
                logit_mean: reader.get("noise.logit_mean", 0.0),
                logit_std: reader.checked("noise.logit_std", 0.5, at_least(0.0)),
            },
            loss: loss(&mut reader),
            optim: optim(&mut reader),
            train: TrainConfig {
                steps: reader.checked("train.steps", 1000, at_least(1)),
                batch: reader.checked("train.batch", 4, within(1, 4096)),
                accumulate: reader.checked("train.accumulate", 1, within(1, 65536)),
                gradient_checkpointing: reader.get("train.gradient_checkpointing", GradientCheckpointing::Auto),
                max_nonfinite: reader.checked("train.max_nonfinite", 10, at_least(1)),
            },
            checkpoint: CheckpointConfig {
                every: reader.get("checkpoint.every", 250),
                keep: reader.get("checkpoint.keep", 3),
            },
            eval: None,
            scenes: None,
        };
        config.data.has_prompts = !config.model.learnable_prompt;
        config.eval = eval::section(&mut reader, &config);
        config.scenes = scenes(&mut reader, &config.data);
        config.check_together(&mut reader);
        reader.finish()?;
        Ok(config)
    }

    /// The configuration as TOML, every key written out; `load` gives an equal value back.
    pub fn to_toml(&self) -> String {
        // Every integer came from TOML and every map key is a field's name: there is nothing that TOML cannot hold.
        toml::to_string(self).expect("a run configuration is valid TOML")
    }

    /// What no key can say alone.
    fn check_together(&self, reader: &mut Reader) {
        self.check_data(reader);
        self.check_effect(reader);
        self.check_prompt(reader);
        let loss = &self.loss;
        if loss.flow_weight == 0.0 && !loss.uses_masks() {
            reader.problem(
                &["loss.flow_weight", "loss.focal_weight", "loss.dice_weight", "loss.align_weight", "loss.alignment"],
                format!(
                    "every loss has weight 0 with alignment = {:?}: nothing would be trained",
                    loss.alignment.name()
                ),
            );
        }
        if loss.uses_masks() && self.model.text_encoders == [TextEncoderKind::T5] {
            reader.problem(
                &["model.text_encoders"],
                "the mask loss reads the attention to CLIP's tokens; add \"clip_l\" or \"clip_g\"",
            );
        }
        if loss.score_head_init.is_some() && !loss.uses_score_head() {
            reader.problem(
                &["loss.score_head_init", "loss.score_head", "loss.alignment"],
                "no score head is trained: that needs score_head = true, alignment = \"sigmoid\" and a mask loss",
            );
        }
        if loss.heads == HeadMaps::Max && loss.attention == AttentionForm::Logits {
            reader.problem(
                &["loss.heads", "loss.attention"],
                "the strongest head is that of a probability: set loss.attention to \"softmax\" or \"softmax_text\"",
            );
        }
        if let LayerChoice::List(layers) = &self.lora.layers
            && loss.uses_masks()
            && layers.iter().all(|layer| *layer > self.model.last_expert())
        {
            reader.problem(
                &["lora.layers", "model.expert_layers"],
                format!(
                    "the mask loss reaches blocks 0 to {} (model.expert_layers) only, and none of these is listed; \
                     set its weights to 0 to train without it",
                    self.model.last_expert()
                ),
            );
        }
    }

    /// What does not go with a learnt prompt.
    fn check_prompt(&self, reader: &mut Reader) {
        if self.model.learnable_prompt && self.data.format == DataFormat::Coco {
            reader.problem(
                &["model.learnable_prompt", "data.format"],
                "masks of classes are paired with their names in the prompt, and a learnt prompt has none; \
                 take another data.format",
            );
        }
        if self.model.learnable_prompt && self.data.caption_dropout > 0.0 {
            reader.problem(
                &["data.caption_dropout", "model.learnable_prompt"],
                "no caption is used: model.learnable_prompt stands in their place",
            );
        }
    }

    /// Numbers with which the LoRA would certainly stay as it is, or be no number.
    fn check_effect(&self, reader: &mut Reader) {
        let (optim, loss, lora) = (&self.optim, &self.loss, &self.lora);
        if loss.flow_weight == 0.0 && loss.mask_max_sigma == 0.0 {
            reader.problem(
                &["loss.mask_max_sigma", "loss.flow_weight"],
                "is 0: no image is without noise, so that no mask would count, and loss.flow_weight is 0",
            );
        }
        // Everything trained is f32.
        let scale = (lora.alpha / lora.rank as f64) as f32;
        if scale == 0.0 || !scale.is_finite() {
            reader.problem(&["lora.alpha"], format!("alpha/rank must be a number of f32 above 0, is {scale}"));
        }
        let rate = largest_rate(optim, self.train.steps) * optim.lora_lr_scale;
        if rate as f32 == 0.0 {
            reader.problem(
                &["optim.lr", "optim.lora_lr_scale", "optim.warmup_factor"],
                format!("the LoRA's learning rate would be {rate:e} at most, which is 0 in f32"),
            );
        } else if !(rate as f32).is_finite() {
            reader
                .problem(&["optim.lr", "optim.lora_lr_scale"], format!("is {rate:e} for the LoRA, too large for f32"));
        }
        if optim.clip_norm > 0.0 && optim.clip_norm as f32 == 0.0 {
            let problem =
                format!("is {:e}, which is 0 in f32: every gradient would be; 0 turns clipping off", optim.clip_norm);
            reader.problem(&["optim.clip_norm"], problem);
        }
        if !(optim.eps as f32).is_finite() {
            reader
                .problem(&["optim.eps"], format!("is {:e}, infinite in f32: no step would change anything", optim.eps));
        }
    }

    fn check_data(&self, reader: &mut Reader) {
        let data = &self.data;
        let coco = data.format == DataFormat::Coco;
        if data.cache.is_some() && data.crop == Crop::Random {
            let why = "a random crop is another picture in every epoch, which no cache can hold";
            reader
                .problem(&["data.cache", "data.crop"], format!("is for crop = \"center\" or \"stretch\" only: {why}"));
        }
        if coco {
            for (key, what) in [
                ("data.labels", "the folder of label-map or panoptic PNGs"),
                ("data.classes", "the JSON file of class names"),
            ] {
                if !reader.given(key) {
                    reader.problem(&[key, "data.format"], format!("is missing; format = \"coco\" needs {what}"));
                }
            }
        }
        let mut refuse = |key: &'static str, formats: &str| {
            if reader.given(key) {
                reader.problem(&[key, "data.format"], format!("is for format = {formats} only"));
            }
        };
        if !coco {
            refuse("data.labels", "\"coco\"");
            refuse("data.panoptic", "\"coco\"");
        }
        if data.format == DataFormat::Sa1b {
            refuse("data.classes", "\"coco\" or \"folder\"");
        }
    }
}

fn model(reader: &mut Reader) -> ModelConfig {
    ModelConfig {
        path: reader.required("model.path", "\"models/stable-diffusion-3-medium-diffusers\"", model_path),
        dtype: reader.get("model.dtype", WeightType::Bf16),
        text_encoders: reader.checked(
            "model.text_encoders",
            vec![TextEncoderKind::ClipL, TextEncoderKind::ClipG],
            |list: &Vec<_>| distinct(list),
        ),
        max_sequence_length: reader.checked("model.max_sequence_length", 77, within(1, 512)),
        expert_layers: expert_layers(reader),
        learnable_prompt: reader.get("model.learnable_prompt", false),
    }
}

/// Ascending; one at least, also where none is given, which is reported.
fn expert_layers(reader: &mut Reader) -> Vec<usize> {
    let usual = || Blocks(vec![9]);
    let mut layers = reader.checked("model.expert_layers", usual(), |Blocks(layers): &Blocks| distinct(layers)).0;
    if layers.is_empty() {
        layers = usual().0;
    }
    layers.sort_unstable();
    layers
}

/// A path, or `hf:org/name` with or without `@revision`.
fn model_path(path: &String) -> Result<(), String> {
    let Some(name) = path.strip_prefix("hf:") else { return not_empty(path) };
    let (repository, revision) = name.split_once('@').unwrap_or((name, "main"));
    match repository.split_once('/') {
        Some((org, name)) if !org.is_empty() && !name.is_empty() && !name.contains('/') && !revision.is_empty() => {
            Ok(())
        }
        _ => Err(format!("expected hf:ORG/NAME or hf:ORG/NAME@REVISION, found {path:?}")),
    }
}

fn lora(reader: &mut Reader) -> LoraConfig {
    LoraConfig {
        rank: reader.checked("lora.rank", 16, within(1, 4096)),
        alpha: reader.checked("lora.alpha", 16.0, positive),
        targets: reader.checked(
            "lora.targets",
            LORA_TARGETS[..4].iter().map(|target| target.to_string()).collect(),
            |targets: &Vec<String>| {
                let unknown = targets.iter().find(|target| !LORA_TARGETS.contains(&target.as_str()));
                match unknown {
                    Some(target) => Err(format!(
                        "{target:?} is not a module of a block; the nearest is {:?}",
                        nearest(target, LORA_TARGETS).unwrap_or_default()
                    )),
                    None => distinct(targets),
                }
            },
        ),
        layers: reader.checked("lora.layers", LayerChoice::All, |layers| match layers {
            LayerChoice::All => Ok(()),
            LayerChoice::List(list) => distinct(list),
        }),
        init: reader.optional("lora.init"),
    }
}

fn data(reader: &mut Reader) -> DataConfig {
    DataConfig {
        format: reader.get("data.format", DataFormat::Sa1b),
        source: reader.required("data.source", "[\"data/sa1b/sa_*.tar\"]", |sources: &Vec<String>| {
            sources.iter().try_for_each(not_empty)?;
            distinct(sources)
        }),
        captions: reader.optional("data.captions"),
        caption_key_column: reader.checked("data.caption_key_column", "key".into(), not_empty),
        caption_column: reader.checked("data.caption_column", "caption".into(), not_empty),
        labels: reader.optional("data.labels"),
        panoptic: reader.optional("data.panoptic"),
        classes: reader.optional("data.classes"),
        ignore: reader.get("data.ignore", 255),
        resolution: reader.checked("data.resolution", 1024, within(16, 8192)),
        crop: reader.get("data.crop", Crop::Stretch),
        caption_sentences: reader.get("data.caption_sentences", 2),
        caption_dropout: reader.checked("data.caption_dropout", 0.0, within(0.0, 1.0)),
        min_mask_area: reader.checked("data.min_mask_area", 0.005, within(0.0, 1.0)),
        max_masks: reader.checked("data.max_masks", 32, at_least(1)),
        flip: reader.get("data.flip", true),
        shuffle_buffer: reader.checked("data.shuffle_buffer", 1000, within(1, 10_000_000)),
        cache: reader.optional("data.cache"),
        workers: reader.checked("data.workers", 8, within(1, 1024)),
        max_broken: reader.checked("data.max_broken", 0.01, within(0.0, 1.0)),
        has_prompts: true,
    }
}

fn scenes(reader: &mut Reader, data: &DataConfig) -> Option<ScenesConfig> {
    let present = reader.has_section("scenes");
    // Asked for in any case, so that the keys are known.
    let folder = match present {
        true => reader.required("scenes.folder", "\"runs/scenes\"", not_empty),
        false => reader.get("scenes.folder", Default::default()),
    };
    let mut count = |key, default| reader.checked(key, default, within(1, 100_000_000));
    let (train, test, val) = (count("scenes.train", 10_000), count("scenes.test", 1000), count("scenes.val", 300));
    let seed = reader.checked("scenes.seed", 0, within(0, u64::MAX - 1));
    let size = reader.checked("scenes.size", data.resolution, within(16, 1024));
    present.then_some(ScenesConfig { folder, train, test, val, seed, size })
}

fn loss(reader: &mut Reader) -> LossConfig {
    let mut weight = |key, default| reader.checked(key, default, at_least(0.0));
    LossConfig {
        flow_weight: weight("loss.flow_weight", 1.0),
        align_weight: weight("loss.align_weight", 0.2),
        focal_weight: weight("loss.focal_weight", 0.1),
        dice_weight: weight("loss.dice_weight", 0.2),
        match_focal: weight("loss.match_focal", 0.02),
        match_dice: weight("loss.match_dice", 1.0),
        mask_max_sigma: reader.checked("loss.mask_max_sigma", 1.0, within(0.0, 1.0)),
        alignment: reader.get("loss.alignment", Alignment::Sigmoid),
        heads: reader.get("loss.heads", HeadMaps::Keep),
        attention: reader.get("loss.attention", AttentionForm::Logits),
        match_max_cost: reader.optional("loss.match_max_cost"),
        score_head: reader.get("loss.score_head", true),
        score_head_init: reader.optional("loss.score_head_init"),
        focal_probability: reader.get("loss.focal_probability", FocalProbability::Sigmoid),
    }
}

fn optim(reader: &mut Reader) -> OptimConfig {
    OptimConfig {
        lr: reader.checked("optim.lr", 1e-4, positive),
        lora_lr_scale: reader.checked("optim.lora_lr_scale", 1.0, positive),
        betas: reader.checked("optim.betas", [0.9, 0.999], |betas: &[f64; 2]| {
            match betas.iter().find(|beta| !(0.0..1.0).contains(*beta)) {
                Some(beta) => Err(format!("each must be from 0 to below 1, one is {beta:?}")),
                None => Ok(()),
            }
        }),
        eps: reader.checked("optim.eps", 1e-8, positive),
        weight_decay: reader.checked("optim.weight_decay", 1e-4, at_least(0.0)),
        clip_norm: reader.checked("optim.clip_norm", 0.01, at_least(0.0)),
        warmup_steps: reader.get("optim.warmup_steps", 500),
        warmup_factor: reader.checked("optim.warmup_factor", 0.01, within(0.0, 1.0)),
    }
}
