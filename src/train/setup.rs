//! Sets a run up: networks, parameters, how many blocks are recomputed, optimizer, data.
use super::checkpoint::{Checkpoint, State};
use super::components::Components;
use super::cut_prompts::CutPrompts;
use super::effect::InitialValues;
use super::first_samples;
use super::gradients::StepPlan;
use super::initial;
use super::memory::{self, Estimate, Needs, StepSize, Usage};
use super::parameters::Parameters;
use super::resume::{Conditions, Override, init_fingerprints};
use super::run_folder::RunFolder;
use super::shown_samples::ShownSamples;
use super::source::Source;
use super::trainer::Trainer;
use crate::config::{Choice, HeadMaps, RunConfig};
use crate::data::share::Share;
use crate::data::{Cache, DataRecord, DataSet, Inventory, Loader, loader};
use crate::eval::segmentation::SegmentationOptions;
use crate::model::families::{self, Transformer};
use crate::model::pipeline::Pipeline;
use crate::model::weights::files::ModelFiles;
use crate::model::weights::fingerprint::fingerprint;
use crate::sample::scheduler::Scheduler;
use crate::system::error::{Error, Result};
use candle_core::{DType, Device};

impl<'a> Trainer<'a> {
    /// Loads the model, and the folder's checkpoint if there is one. A run that `measures` its model needs the encoders
    /// even where training takes latents and text embeddings from a cache.
    pub fn setup(
        config: &'a RunConfig,
        device: &'a Device,
        folder: &RunFolder,
        force: &[Override],
        measures: bool,
        components: &'a Components<'a>,
    ) -> Result<Self> {
        let data = DataSet::open(&config.data)?;
        let (is_main, processes) = (components.collective.is_main(), components.collective.size());
        let inventory = is_main.then(|| Inventory::of_run(&data)).transpose()?;
        let files = ModelFiles::of(&config.model)?;
        families::of(&files)?;
        let model = fingerprint(&files.base_files(&config.model)?)?;
        let record = DataRecord::of(&data)?;
        let conditions = Conditions { config, model: &model, data: &record, schedule: components.schedule, processes };
        let checkpoint = folder.load(&conditions, force)?;
        let state = setup_state(checkpoint.as_ref(), &conditions)?;

        let source = Source::open(config, device, &files, measures)?;
        let encoders = source.describe(config);
        let Source { mut pipeline, cache, empty_prompt } = source;
        check_experts(config, &pipeline.transformer)?;

        let parameters = initial::parameters(config, &mut pipeline.transformer, empty_prompt.as_ref(), device)?;
        let start = InitialValues::of(&parameters)?;
        pipeline.transformer.attach_trained(&parameters.trained()?)?;
        let (plan, estimate) = setup_plan(config, device, &mut pipeline, &parameters, cache.as_ref())?;
        let mut optimizer = (components.optimizer)(&config.optim, &parameters)?;
        if let Some(checkpoint) = &checkpoint {
            parameters.load(&checkpoint.adapter)?;
            optimizer.load_state_dict(&parameters, &checkpoint.optimizer)?;
        }

        let require_masks = config.loss.uses_masks();
        let collective = components.collective;
        let share = (processes > 1)
            .then(|| Share::new(collective, config.train.batch, loader::prefetch(config.data.workers)))
            .transpose()?;
        let loader = Loader::of(&data, config.seed, Some(&state.cursor), require_masks, cache, share.clone())?;
        let trained = config.train.samples(processes);
        // The run names broken samples as it comes to them.
        let found = is_main.then(|| first_samples::examine(config, &data, &pipeline.text_encoders, trained));
        let masks = found.transpose()?.and_then(|(masks, _)| masks);
        let scheduler = Scheduler::open(&files)?;
        let shown_samples = is_main.then(|| ShownSamples::open(config, &files, &folder.path, state.samples));
        let trainer = Self {
            config,
            diffusers_model: files.diffusers_name(&config.model.path),
            device,
            components,
            pipeline,
            scheduler,
            parameters,
            start,
            empty_prompt,
            optimizer,
            loader,
            share,
            shown_samples: shown_samples.transpose()?,
            inventory,
            record: Some(record),
            plan,
            prompts: (state.cursor.epoch, CutPrompts::default()),
            state,
            ahead: None,
        };
        if is_main {
            let masks = masks.map_or_else(String::new, |line| format!("\n{line}"));
            tracing::info!("{}{encoders}{}{masks}", trainer.summary(&estimate), initial::describe(config));
        }
        Ok(trainer)
    }

    /// What is trained on what, for people.
    fn summary(&self, estimate: &Estimate) -> String {
        let blocks = self.pipeline.transformer.config.num_layers();
        let quantized = self.config.model.quantize.map(|format| format!(", quantised as {}", format.name()));
        format!(
            "{} on {:?}, frozen weights in {:?}{}; {} of {blocks} blocks recomputed in the backward pass\n{estimate}\n{}",
            self.config.model.path,
            self.device.location(),
            self.config.model.dtype.dtype(),
            quantized.unwrap_or_default(),
            self.plan.recomputed_blocks,
            self.parameters.table(blocks)
        )
    }
}

/// The state of the checkpoint, or of a run's beginning, under these conditions.
fn setup_state(saved: Option<&Checkpoint>, conditions: &Conditions) -> Result<State> {
    let mut saved = saved.map(|checkpoint| checkpoint.state.clone()).unwrap_or_default();
    if saved.data.is_some() {
        // The data were compared, by more than the names that the position has.
        saved.cursor.sources = 0;
    }
    let (model, data) = (conditions.model.to_string(), Some(conditions.data.fingerprint()));
    Ok(State { model, data, init: init_fingerprints(conditions.config)?, ..saved })
}

/// Which blocks are recomputed for the step to fit into free memory; the model has its adapters on.
fn setup_plan<'a>(
    config: &'a RunConfig,
    device: &Device,
    pipeline: &mut Pipeline,
    parameters: &Parameters,
    cache: Option<&Cache>,
) -> Result<(StepPlan<'a>, Estimate)> {
    let dtype = config.model.dtype.dtype();
    let arithmetic = if device.is_cpu() { DType::F32 } else { dtype };
    let layer = pipeline.transformer.largest_written_out(arithmetic);
    let transformer = &pipeline.transformer.config;
    let (_, height, width) = pipeline.latent_shape(config.data.resolution)?;
    let grid = transformer.grid(height, width);
    let needs = Needs {
        blocks: pipeline.transformer.saved_activations(),
        size: StepSize {
            batch: config.train.batch,
            image_tokens: grid.0 * grid.1,
            text_tokens: match parameters.prompt() {
                Some(tokens) => tokens.tensor().dim(0)?,
                None => pipeline.text_encoders.tokens(),
            },
            width: transformer.width(),
            value_bytes: arithmetic.size_in_bytes(),
        },
        trained: parameters.count(),
        layer,
        experts: config.model.expert_layers.len(),
        // Of every mask one map is compared; of classes with names there may be more.
        score_head: match config.loss.uses_score_head() {
            true => memory::score_head(device, config.train.batch * config.data.max_masks, grid),
            false => 0,
        },
        encoding: if cache.is_some() { 0 } else { pipeline.vae.encoding_bytes(config.data.resolution) },
        // It is in the host's memory, whatever the device.
        loader: match device.is_cpu() {
            true => loader::held_bytes(&config.data, cache.map(Cache::sample_bytes)),
            false => 0,
        },
    };
    let (recomputed_blocks, estimate) = needs.plan(config.train.gradient_checkpointing, Usage::of(device))?;
    Ok((StepPlan { expert_layers: &config.model.expert_layers, recomputed_blocks }, estimate))
}

/// # Errors
/// The model has no such block or head as the config names.
fn check_experts(config: &RunConfig, model: &Transformer) -> Result<()> {
    model.config.check_block("model.expert_layers: block", config.model.last_expert())?;
    let heads = model.config.num_attention_heads;
    if let HeadMaps::One(head) = config.loss.heads
        && head >= heads
    {
        return Err(Error::Usage(format!("loss.heads is {head}, but the model has {heads} heads")));
    }
    if let Some(eval) = &config.eval {
        let maps = SegmentationOptions::of(eval, None).maps;
        maps.check(model).map_err(|problem| Error::Usage(format!("[eval] {problem}")))?;
    }
    Ok(())
}
