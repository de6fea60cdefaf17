//! The loop: batch, noise, forward, loss, backward, clip, step, log, checkpoint.
use super::accumulated::Accumulated;
use super::checkpoint::{Checkpoint, State};
use super::effect::Start;
use super::evaluation::Evaluation;
use super::gradients::{LossTerms, StepInputs, StepPlan, gradients};
use super::initial;
use super::inputs::InputMaker;
use super::memory::{self, Estimate, Needs, StepSize};
use super::optimizer::{AdamW, clip_factor, gradient_norm};
use super::outcome::Outcome;
use super::parameters::Parameters;
use super::run_folder::{Resume, RunFolder};
use super::run_log::RunLog;
use super::schedule::learning_rate;
use super::source::Source;
use super::trained::origin_of;
use super::validation::Validation;
use crate::config::{HeadMaps, RunConfig};
use crate::data::{Batch, Cache, Cursor, Loader, loader};
use crate::eval::segmentation::SegmentationOptions;
use crate::model::adapters::formats::{self, Format};
use crate::model::families::{self, TransformerConfig};
use crate::model::pipeline::Pipeline;
use crate::model::text::{TextEmbedding, prompt_file};
use crate::model::weights::files::{ModelFiles, Part};
use crate::model::weights::fingerprint::fingerprint;
use crate::model::weights::required_files::RequiredFiles;
use crate::report::Measured;
use crate::report::metrics::{self, StepMetrics, ValidationScores};
use crate::report::progress::Progress;
use crate::report::summary::Stage;
use crate::sample::scheduler::Scheduler;
use crate::system::error::{Error, Result};
use crate::system::interrupt;
use candle_core::Device;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Name of the counter of steps in a row without a finite loss and gradient, and of that of all such steps.
const NONFINITE_NOW: &str = "nonfinite_in_a_row";
const NONFINITE_ALL: &str = "nonfinite";

/// Trains as `config` says, into `folder`, from its checkpoint if there is one, and measures the model before and after
/// where the config asks for it. Returns what was measured, as a table.
pub fn run(config: &RunConfig, device: &Device, folder: &RunFolder, force: bool) -> Result<Option<String>> {
    let stop = interrupt::stop_flag()?;
    let evaluation = config.eval.as_ref().map(|eval| Evaluation::open(config, eval, device, &stop)).transpose()?;
    let validation = Validation::open(config)?;
    let mut measured = Measured::default();
    let measures = evaluation.is_some();
    let mut trainer = Trainer::open(config, device, folder, force, measures)?;
    let metrics = folder.begin(config, trainer.state.step)?;
    if let Some(evaluation) = evaluation.as_ref().filter(|_| config.eval.as_ref().is_some_and(|eval| eval.before))
        && !trainer.measure_base(evaluation, &mut measured)?
    {
        tracing::info!("stopped before training; start again with the same command");
        return Ok(None);
    }
    let mut log = RunLog::open(folder.path(), metrics, trainer.state.step, validation.as_ref())?;
    let goes_on = trainer.train(folder.path(), &mut log, validation.as_ref(), &stop)?
        && trainer.finish(folder, evaluation.as_ref(), Stage::After, &mut measured)?;
    let outcome = trainer.outcome();
    // Its memory is the next run's.
    drop(trainer);
    outcome.write(&measured)?;
    if let Some(evaluation) = &evaluation
        && goes_on
        && config.eval.as_ref().is_some_and(|eval| eval.compare_without_masks)
    {
        let config = config.without_masks();
        let folder = RunFolder::open(&config.output, &Resume::Newest)?;
        tracing::info!("the same run without masks, into {}", config.output.display());
        let mut trainer = Trainer::open(&config, device, &folder, force, measures)?;
        let metrics = folder.begin(&config, trainer.state.step)?;
        let mut log = RunLog::open(folder.path(), metrics, trainer.state.step, validation.as_ref())?;
        if trainer.train(folder.path(), &mut log, validation.as_ref(), &stop)? {
            trainer.finish(&folder, Some(evaluation), Stage::WithoutMasks, &mut measured)?;
        }
        outcome.write(&measured)?;
    }
    outcome.say_where();
    Ok((!measured.summary.is_empty()).then(|| measured.summary.table()))
}

/// Everything that changes while training, and what it is computed with.
struct Trainer<'a> {
    config: &'a RunConfig,
    device: &'a Device,
    pipeline: Pipeline,
    scheduler: Scheduler,
    parameters: Parameters,
    /// The LoRA before the run's first step.
    start: Start,
    /// What all images are told, where a prompt is learnt: its pooled state is that of the empty prompt.
    empty_prompt: Option<TextEmbedding>,
    optimizer: AdamW,
    loader: Loader,
    plan: StepPlan<'a>,
    estimate: Estimate,
    state: State,
    /// The next micro-batch, or why there is none, where it is prepared already.
    ahead: Option<Result<Prepared>>,
}

/// A micro-batch, and where the data stand after it.
struct Prepared {
    inputs: StepInputs,
    epoch: u64,
    broken: u64,
    cursor: Cursor,
    waited: Duration,
}

impl<'a> Trainer<'a> {
    /// Loads the model, and the folder's checkpoint if there is one. `measures`: the run measures its model, too, for
    /// which it needs the encoders even where training takes what they yield from a cache.
    fn open(
        config: &'a RunConfig,
        device: &'a Device,
        folder: &RunFolder,
        force: bool,
        measures: bool,
    ) -> Result<Self> {
        let files = ModelFiles::open(&config.model.path)?;
        families::of(&files)?;
        let model = fingerprint(&base_files(&files, config)?)?;
        let checkpoint = folder.load(config, &model, force)?;
        let source = Source::open(config, device, &files, measures)?;
        let encoders = source.describe(config);
        let state = State { model, init: initial::fingerprints(config)?, ..State::default() };
        let trainer = Self::new(config, device, &files, source, state, checkpoint)?;
        tracing::info!("{}{encoders}{}", trainer.summary(), initial::describe(config));
        Ok(trainer)
    }

    fn new(
        config: &'a RunConfig,
        device: &'a Device,
        files: &ModelFiles,
        Source { mut pipeline, cache, empty_prompt }: Source,
        mut state: State,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Self> {
        check_experts(config, &pipeline.transformer.config)?;
        if let Some(eval) = &config.eval {
            let maps = SegmentationOptions::of(eval, None).maps;
            maps.check(&pipeline.transformer).map_err(|problem| Error::Usage(format!("[eval] {problem}")))?;
        }
        let (_, height, width) = pipeline.latent_shape(config.data.resolution)?;
        let parameters = initial::parameters(config, &mut pipeline.transformer, empty_prompt.as_ref(), device)?;
        let start = Start::of(&parameters)?;
        let mut optimizer = AdamW::new(&parameters);
        let mut cursor = None;
        if let Some(checkpoint) = checkpoint {
            parameters.load(&checkpoint.adapter)?;
            optimizer.load(&parameters, &checkpoint.optimizer)?;
            state = State { model: state.model, init: state.init, ..checkpoint.state };
            cursor = Some(serde_json::from_value::<Cursor>(state.cursor.clone()).map_err(|e| {
                Error::Failed(format!("checkpoint of step {}: not a position in the data: {e}", state.step))
            })?);
        }
        pipeline.transformer.attach_trained(&parameters.trained()?)?;
        let cached = cache.is_some();
        let require_masks = config.loss.uses_masks();
        let held = loader::held_bytes(&config.data, cache.as_ref().map(Cache::sample_bytes));
        let loader = Loader::with_cache(&config.data, config.seed, cursor.as_ref(), require_masks, cache)?;
        let grid = pipeline.transformer.config.grid(height, width);
        let size = StepSize {
            batch: config.train.batch,
            image_tokens: grid.0 * grid.1,
            text_tokens: match parameters.prompt() {
                Some(tokens) => tokens.tensor().dim(0)?,
                None => pipeline.text_encoders.tokens(),
            },
            is_fused: !config.lora.targets.iter().any(|target| target.starts_with("ff")),
            value_bytes: if device.is_cpu() { 4 } else { config.model.dtype.dtype().size_in_bytes() },
        };
        let needs = Needs {
            model: &pipeline.transformer.config,
            size,
            trained: parameters.count(),
            experts: config.model.expert_layers.len(),
            // Of every mask one map is compared; of classes with names there may be more.
            score_head: match config.loss.uses_score_head() {
                true => memory::score_head(device, config.train.batch * config.data.max_masks, grid),
                false => 0,
            },
            encoding: if cached { 0 } else { pipeline.vae.encoding_bytes(config.data.resolution) },
            // It is in the host's memory, whatever the device.
            loader: if device.is_cpu() { held } else { 0 },
        };
        let (recomputed_blocks, estimate) = needs.plan(config.train.gradient_checkpointing, memory::usage(device))?;
        Ok(Self {
            plan: StepPlan { expert_layers: &config.model.expert_layers, recomputed_blocks },
            scheduler: Scheduler::open(files)?,
            config,
            device,
            pipeline,
            parameters,
            start,
            optimizer,
            empty_prompt,
            loader,
            estimate,
            state,
            ahead: None,
        })
    }

    /// What is trained on what, for people.
    fn summary(&self) -> String {
        let blocks = self.pipeline.transformer.config.num_layers();
        format!(
            "{} on {:?}, frozen weights in {:?}; {} of {blocks} blocks recomputed in the backward pass\n{}\n{}",
            self.config.model.path,
            self.device.location(),
            self.config.model.dtype.dtype(),
            self.plan.recomputed_blocks,
            self.estimate,
            self.parameters.table(blocks)
        )
    }

    /// Runs to the last step, or until asked to stop; returns whether the run is complete.
    fn train(
        &mut self,
        output: &Path,
        log: &mut RunLog,
        validation: Option<&Validation>,
        stop: &AtomicBool,
    ) -> Result<bool> {
        let steps = self.config.train.steps;
        let mut progress = Progress::new("step", self.state.step, steps);
        while self.state.step < steps {
            let mut line = self.step()?;
            let step = self.state.step;
            if let Some(validation) = validation.filter(|validation| validation.is_due(step)) {
                line.validation = Some(self.validate(output, log, validation)?);
            }
            log.write(&line)?;
            progress.step(&line);
            let every = self.config.checkpoint.every;
            let stopping = stop.load(Ordering::Relaxed);
            if step == steps || stopping || (every > 0 && step.is_multiple_of(every)) {
                log.metrics.sync()?;
                self.checkpoint()?.save(output, self.config)?;
            }
            if stopping && step < steps {
                drop(progress);
                tracing::info!("stopped after step {step} of {steps}; go on with the same command and --resume");
                return Ok(false);
            }
        }
        let coverage = self.loader.coverage();
        tracing::info!(
            "{} samples, {} broken ones passed over, {} of this epoch's {} with masks, {} steps without a finite loss",
            self.state.samples,
            self.state.counters.get("broken").unwrap_or(&0),
            coverage.with_masks,
            coverage.samples,
            self.state.counters.get(NONFINITE_ALL).unwrap_or(&0),
        );
        Ok(true)
    }

    /// One optimizer step over `accumulate` micro-batches.
    fn step(&mut self) -> Result<StepMetrics> {
        let started = Instant::now();
        let config = self.config;
        let (batch, accumulate) = (config.train.batch, config.train.accumulate);
        let mut sum = Accumulated::new(self.parameters.all.len());
        let mut waited = Duration::ZERO;
        for micro in 0..accumulate {
            let now = self.ahead.take().unwrap_or_else(|| self.prepare())?;
            let transformer = &self.pipeline.transformer;
            let gradients = gradients(transformer, &self.parameters, &config.loss, &now.inputs, self.plan)?;
            waited += now.waited;
            self.state.samples += batch as u64;
            if micro == 0 {
                self.state.epoch = now.epoch;
            }
            self.state.counters.insert("broken".into(), now.broken);
            self.state.cursor = serde_json::to_value(&now.cursor).map_err(|e| Error::Failed(e.to_string()))?;
            // A GPU is still at work: what it will need next is made meanwhile. If that fails, it is the next step that
            // fails, when this one has been made.
            if micro + 1 < accumulate || self.state.step + 1 < config.train.steps {
                self.ahead = Some(self.prepare());
            }
            sum.add(gradients)?;
        }
        let (terms, gradients) = sum.mean(accumulate)?;
        let norm = gradient_norm(&gradients)?;
        let lr = learning_rate(&config.optim, self.state.step, config.train.steps);
        self.state.step += 1;
        if terms.total.is_finite() && norm.is_finite() {
            let clip = clip_factor(norm, config.optim.clip_norm);
            self.optimizer.step(&self.parameters, &gradients, clip, lr, &config.optim)?;
            self.state.counters.insert(NONFINITE_NOW.into(), 0);
        } else {
            self.skip(&terms, norm)?;
        }
        let seconds = started.elapsed().as_secs_f64();
        Ok(StepMetrics {
            step: self.state.step,
            epoch: self.state.epoch,
            samples: self.state.samples,
            loss: f64::from(terms.total),
            flow: terms.flow.map_or(0.0, f64::from),
            focal: terms.focal.map_or(0.0, f64::from),
            dice: terms.dice.map_or(0.0, f64::from),
            align: terms.align.map(f64::from),
            lr,
            lora_lr: Some(lr * config.optim.lora_lr_scale),
            grad_norm: norm,
            images_per_s: (batch * accumulate) as f64 / seconds,
            seconds,
            data_wait_s: waited.as_secs_f64(),
            validation: None,
        })
    }

    /// Steps that were not skipped.
    fn counting_steps(&self) -> u64 {
        self.state.step.saturating_sub(self.state.counters.get(NONFINITE_ALL).copied().unwrap_or(0))
    }

    /// Counts a step whose loss or gradient is not finite, which changes nothing; too many in a row are an error.
    fn skip(&mut self, terms: &LossTerms, norm: f64) -> Result<()> {
        let step = self.state.step;
        tracing::warn!("step {step}: loss {} and gradient norm {norm} are not both finite; skipped", terms.total);
        *self.state.counters.entry(NONFINITE_ALL.into()).or_default() += 1;
        let in_a_row = self.state.counters.entry(NONFINITE_NOW.into()).or_default();
        *in_a_row += 1;
        let most = self.config.train.max_nonfinite;
        if *in_a_row >= most {
            return Err(Error::Failed(format!(
                "step {step}: loss or gradient was not finite {in_a_row} times in a row (train.max_nonfinite = {most}): \
                 flow {:?}, focal {:?}, dice {:?}, align {:?}, gradient norm {norm}",
                terms.flow, terms.focal, terms.dice, terms.align
            )));
        }
        Ok(())
    }

    /// The micro-batch after the one that the state stands at.
    fn prepare(&mut self) -> Result<Prepared> {
        let Batch { samples, epoch, cursor, waited, broken } = self.loader.next_batch(self.config.train.batch)?;
        let inputs = self.input_maker().make(&samples, self.state.samples)?;
        Ok(Prepared { inputs, epoch, broken, cursor, waited })
    }

    fn input_maker(&self) -> InputMaker<'_> {
        InputMaker {
            pipeline: &self.pipeline,
            scheduler: &self.scheduler,
            noise: &self.config.noise,
            seed: self.config.seed,
            mask_max_sigma: self.config.loss.mask_max_sigma,
            resolution: self.config.data.resolution,
            prompt: self.empty_prompt.as_ref(),
            device: self.device,
        }
    }

    fn checkpoint(&self) -> Result<Checkpoint> {
        Ok(Checkpoint {
            state: self.state.clone(),
            adapter: self.parameters.tensors()?,
            optimizer: self.optimizer.tensors(&self.parameters)?,
        })
    }

    /// Measures the model as it stands, and keeps it where it is the best so far.
    fn validate(&mut self, output: &Path, log: &mut RunLog, validation: &Validation) -> Result<ValidationScores> {
        self.attach_detached()?;
        let (scores, pictures) = validation.measure(&self.pipeline, &self.scheduler)?;
        self.pipeline.transformer.attach_trained(&self.parameters.trained()?)?;
        let step = self.state.step;
        let kept = validation.kept_pictures();
        pictures.write(output, step, kept)?;
        log.events.write_validation(step, &scores, Some(&pictures).filter(|_| kept.contains(step)))?;
        let is_best =
            self.counting_steps() > 0 && log.best.as_ref().is_none_or(|best| validation.is_better(&scores, best));
        if is_best {
            self.checkpoint()?.save_best(output, self.config)?;
            let origin = origin_of(self.config, step, Some(&self.pipeline.transformer.config));
            let file = output.join("lora-best.safetensors");
            formats::export(&self.parameters.adapters()?, Format::Diffusers, &file, &origin)?;
            self.export_prompt(&output.join("prompt-best.safetensors"))?;
            log.best = Some(scores.clone());
        }
        tracing::info!("step {step}: {scores}{}", if is_best { ", the best so far" } else { "" });
        Ok(scores)
    }

    /// Puts the LoRA on the model so that no backward pass can follow it: else every step of every drawn image would stay
    /// in memory.
    fn attach_detached(&mut self) -> Result<()> {
        self.pipeline.transformer.attach(&self.parameters.adapters()?)
    }

    fn export(&self, file: &Path) -> Result<()> {
        let origin = origin_of(self.config, self.state.step, Some(&self.pipeline.transformer.config));
        formats::export(&self.parameters.adapters()?, Format::Diffusers, file, &origin)?;
        tracing::info!("wrote {}: a LoRA for diffusers and ComfyUI", file.display());
        Ok(())
    }

    /// Writes the learnt prompt, if there is one.
    fn export_prompt(&self, file: &Path) -> Result<()> {
        match (self.parameters.prompt(), &self.empty_prompt) {
            (Some(tokens), Some(empty)) => prompt_file::write(file, tokens.tensor(), &empty.pooled.squeeze(0)?),
            _ => Ok(()),
        }
    }

    /// Exports the LoRA and measures the model with it; false where the run is asked to stop before.
    ///
    /// # Errors
    /// Besides what fails, a run that trained nothing.
    fn finish(
        &mut self,
        folder: &RunFolder,
        evaluation: Option<&Evaluation>,
        stage: Stage,
        measured: &mut Measured,
    ) -> Result<bool> {
        if self.counting_steps() == 0 {
            let problem = format!("none of the {} steps had a finite loss and gradient", self.state.step);
            return Err(Error::Failed(format!("nothing was trained: {problem}")));
        }
        let steps = metrics::read(&folder.path().join("metrics.jsonl"))?;
        self.start.check_moved(&self.parameters, &steps, &self.config.optim)?;
        self.export(&folder.path().join("lora.safetensors"))?;
        self.export_prompt(&folder.path().join("prompt.safetensors"))?;
        let Some(evaluation) = evaluation else { return Ok(true) };
        self.attach_detached()?;
        let is_measured = evaluation.measure(&self.pipeline, &self.scheduler, stage, measured)?;
        if !is_measured {
            tracing::info!("stopped while measuring; the same command with --resume measures again");
        }
        Ok(is_measured)
    }

    /// Measures the model without its LoRA; false where the run is asked to stop before.
    fn measure_base(&mut self, evaluation: &Evaluation, measured: &mut Measured) -> Result<bool> {
        self.pipeline.transformer.detach();
        let is_measured = evaluation.measure(&self.pipeline, &self.scheduler, Stage::Before, measured);
        self.pipeline.transformer.attach_trained(&self.parameters.trained()?)?;
        is_measured
    }

    /// The run as it stands, for its page.
    fn outcome(&self) -> Outcome<'a> {
        Outcome {
            config: self.config,
            state: self.state.clone(),
            device: self.device,
            layers: self.parameters.layers(self.pipeline.transformer.config.num_layers()),
        }
    }
}

/// # Errors
/// The model has no such block or head as the config names.
fn check_experts(config: &RunConfig, model: &TransformerConfig) -> Result<()> {
    model.check_block("model.expert_layers: block", config.model.last_expert())?;
    match (config.loss.heads, model.num_attention_heads) {
        (HeadMaps::One(head), heads) if head >= heads => {
            Err(Error::Usage(format!("loss.heads is {head}, but the model has {heads} heads")))
        }
        _ => Ok(()),
    }
}

/// The base model's files that make it what it is; those of a hub repository are fetched.
fn base_files(files: &ModelFiles, config: &RunConfig) -> Result<Vec<std::path::PathBuf>> {
    use crate::config::TextEncoderKind as Kind;
    let encoders = config.model.text_encoders.iter().map(|kind| match kind {
        Kind::ClipL => Part::ClipL,
        Kind::ClipG => Part::ClipG,
        Kind::T5 => Part::T5,
    });
    for part in [Part::Transformer, Part::Vae].into_iter().chain(encoders) {
        files.config::<serde_json::Value>(part)?;
        files.weight_files(part)?;
        if !matches!(part, Part::Transformer | Part::Vae) {
            files.tokenizer(part)?;
        }
    }
    files.scheduler_config()?;
    Ok(RequiredFiles::find(files.folder(), &config.model.text_encoders)?.present)
}
