//! The loop: batch, noise, forward, loss, backward, clip, step, log, checkpoint.
use super::accumulated::Accumulated;
use super::checkpoint::{Checkpoint, State};
use super::components::Components;
use super::cut_prompts::CutPrompts;
use super::effect::InitialValues;
use super::evaluation::Evaluation;
use super::gradients::{LossTerms, StepInputs, StepPlan, gradients};
use super::inputs::InputMaker;
use super::optimizers::Optimizer;
use super::outcome::Outcome;
use super::parameters::{Group, Parameters};
use super::process_metrics;
use super::resume::RECORD;
use super::run_log::RunLog;
use super::shown_samples::ShownSamples;
use super::trained::origin_of;
use super::validation::Validation;
use crate::config::RunConfig;
use crate::data::round::Round;
use crate::data::share::Share;
use crate::data::{Cursor, DataRecord, Inventory, Loader, Sample};
use crate::model::adapters::formats::{self, Format};
use crate::model::pipeline::Pipeline;
use crate::model::text::{TextEmbedding, prompt_file};
use crate::report::Measured;
use crate::report::metrics::{self, StepMetrics, ValidationScores};
use crate::report::summary::Stage;
use crate::sample::scheduler::Scheduler;
use crate::system::error::{Error, Result};
use candle_core::Device;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A training under way: networks, parameters, optimizer, data, and the state that a checkpoint saves.
pub struct Trainer<'a> {
    pub(super) config: &'a RunConfig,
    /// What diffusers loads as the base model.
    pub(super) diffusers_model: String,
    pub(super) device: &'a Device,
    pub(super) components: &'a Components<'a>,
    pub(super) pipeline: Pipeline,
    pub(super) scheduler: Scheduler,
    pub(super) parameters: Parameters,
    /// The LoRA before the run's first step.
    pub(super) start: InitialValues,
    /// The text embedding of all images, where a prompt is learnt: its pooled state is that of the empty prompt.
    pub(super) empty_prompt: Option<TextEmbedding>,
    pub(super) optimizer: Box<dyn Optimizer>,
    pub(super) loader: Loader,
    /// With whom the samples are shared.
    pub(super) share: Option<Share>,
    /// What the run's page shows of the data; absent in processes that write nothing.
    pub(super) shown_samples: Option<ShownSamples>,
    /// What the sources hold; in the process that writes.
    pub(super) inventory: Option<Inventory>,
    /// What there is to train on, until the first checkpoint is written.
    pub(super) record: Option<DataRecord>,
    pub(super) plan: StepPlan<'a>,
    pub(super) state: State,
    /// The epoch that is drawn, and its prompts so far.
    pub(super) prompts: (u64, CutPrompts),
    /// The next micro-batch where it is prepared already, or the error that prevents it.
    pub(super) ahead: Option<Result<MicroBatch>>,
}

/// A micro-batch, and the position in the data after it.
pub(super) struct MicroBatch {
    inputs: StepInputs,
    epoch: u64,
    cursor: Cursor,
    waited: Duration,
}

impl<'a> Trainer<'a> {
    /// Runs to the last step, or until asked to stop; returns whether the run is complete. The process that writes has a
    /// `log`.
    pub fn train(
        &mut self,
        mut log: Option<RunLog>,
        validation: Option<&Validation>,
        stop: &AtomicBool,
    ) -> Result<bool> {
        let RunConfig { train, optim, loss, .. } = self.config;
        let collective = self.components.collective;
        while self.state.step < train.steps {
            let (started, mut waited) = (Instant::now(), Duration::ZERO);
            let mut sum = Accumulated::new(&self.parameters, collective)?;
            let mut together = Duration::ZERO;
            for micro in 0..train.accumulate {
                let batch = self.ahead.take().unwrap_or_else(|| self.next_batch())?;
                waited += batch.waited;
                let model = &self.pipeline.transformer;
                let found = gradients(model, &self.parameters, loss, &batch.inputs, self.plan)?;
                self.state.samples += self.images_per_micro_batch();
                if micro == 0 {
                    self.state.epoch = batch.epoch;
                }
                self.state.counters.broken = batch.cursor.broken;
                self.state.cursor = batch.cursor;
                // The next micro-batch is prepared while a GPU computes this one. If that fails, the error is the next
                // step's; but other processes wait for this one's part of the batch already.
                if micro + 1 < train.accumulate || self.state.step + 1 < train.steps {
                    let next = self.next_batch();
                    self.ahead = Some(if self.share.is_some() { Ok(next?) } else { next });
                }
                let terms = found.terms()?;
                together += timed(|| sum.add(terms, &found.buffer))?.1;
            }
            let ((terms, mut gradients), last) = timed(|| sum.mean())?;
            together += last;
            let norm = gradients.norm(&self.parameters)?;
            let lr = (self.components.schedule)(optim, self.state.step, train.steps);
            self.state.step += 1;
            if terms.total.is_finite() && norm.is_finite() {
                gradients.clip(norm, optim.clip_norm)?;
                self.optimizer.step(&self.parameters, &gradients, &|group| group.learning_rate(lr, optim))?;
                self.state.counters.nonfinite_in_a_row = 0;
            } else {
                self.skip(&terms, norm)?;
            }
            let elapsed = started.elapsed();
            let busy = elapsed.saturating_sub(together + waited);
            let processes = process_metrics::gather(busy, waited, collective)?;
            let metrics = StepMetrics { processes, ..self.metrics(&terms, norm, lr, elapsed, waited) };
            let due = validation.filter(|validation| validation.is_due(self.state.step));
            let scores = due.map(|due| self.validate(log.as_mut(), due)).transpose()?.flatten();
            log.as_mut().map_or(Ok(()), |log| log.write(&StepMetrics { validation: scores, ..metrics }))?;
            let stopping = collective.any(stop.load(Ordering::Relaxed))?;
            self.save_if_due(log.as_mut(), stopping)?;
            if stopping && self.state.step < train.steps {
                // The line is written below the progress bar.
                if let Some(log) = log {
                    drop(log);
                    let (step, steps) = (self.state.step, train.steps);
                    tracing::info!("stopped after step {step} of {steps}; go on with the same command and --resume");
                }
                return Ok(false);
            }
        }
        if log.is_some() {
            self.say_totals();
        }
        Ok(true)
    }

    /// This process's next micro-batch: of all processes' samples, which follow each other in the one global order, its own.
    fn next_batch(&mut self) -> Result<MicroBatch> {
        let (size, collective) = (self.config.train.batch, self.components.collective);
        let first = self.state.samples;
        let Round { samples, first: shown, epochs, cursor, waited } = match &self.share {
            None => self.loader.next_batch(size)?.into(),
            Some(share) => {
                let shown = self.shown_samples.as_ref().map_or(0, |_| ShownSamples::wanted(first));
                self.loader.next_round(collective, share, shown)?
            }
        };
        if let Some(figures) = &mut self.shown_samples {
            figures.add(if self.share.is_some() { &shown } else { &samples }, first)?;
        }
        let own = first + (collective.rank() * size) as u64;
        self.count_cut_prompts(&epochs, &samples, own)?;
        let maker = InputMaker {
            pipeline: &self.pipeline,
            scheduler: &self.scheduler,
            config: self.config,
            prompt: self.empty_prompt.as_ref(),
            device: self.device,
        };
        let inputs = maker.make(&samples, own)?;
        let epoch = epochs.first().copied().unwrap_or_default();
        Ok(MicroBatch { inputs, epoch, cursor, waited })
    }

    /// Counts which prompts of this process's `samples`, from number `first` on, the text encoders cut; those of an epoch are
    /// told at its end. `epochs` are those of all processes' batches.
    fn count_cut_prompts(&mut self, epochs: &[u64], samples: &[Sample], first: u64) -> Result<()> {
        if !self.config.data.has_prompts {
            return Ok(());
        }
        let collective = self.components.collective;
        let (current, prompts) = &mut self.prompts;
        for (rank, epoch) in epochs.iter().enumerate() {
            if epoch != current {
                let ended = std::mem::take(prompts).merged(collective)?;
                if collective.is_main() {
                    ended.warn(&format!("{} of epoch {current}", ended.count));
                }
                *current = *epoch;
            }
            if rank == collective.rank() {
                for (number, sample) in (first..).zip(samples) {
                    prompts.add(number, &sample.key, &sample.prompt, &self.pipeline.text_encoders)?;
                }
            }
        }
        Ok(())
    }

    /// Of all processes.
    fn images_per_micro_batch(&self) -> u64 {
        (self.config.train.batch * self.components.collective.size()) as u64
    }

    /// Counts a step whose loss or gradient is not finite, which changes nothing; too many in a row are an error.
    fn skip(&mut self, terms: &LossTerms, norm: f64) -> Result<()> {
        let step = self.state.step;
        if self.components.collective.is_main() {
            tracing::warn!("step {step}: loss {} and gradient norm {norm} are not both finite; skipped", terms.total);
        }
        let counters = &mut self.state.counters;
        counters.nonfinite += 1;
        counters.nonfinite_in_a_row += 1;
        let (in_a_row, most) = (counters.nonfinite_in_a_row, self.config.train.max_nonfinite);
        if in_a_row >= most {
            return Err(Error::Failed(format!(
                "step {step}: loss or gradient was not finite {in_a_row} times in a row (train.max_nonfinite = {most}): \
                 flow {:?}, focal {:?}, dice {:?}, align {:?}, gradient norm {norm}",
                terms.flow, terms.focal, terms.dice, terms.align
            )));
        }
        Ok(())
    }

    fn metrics(&self, terms: &LossTerms, norm: f64, lr: f64, elapsed: Duration, waited: Duration) -> StepMetrics {
        let seconds = elapsed.as_secs_f64();
        let images = self.images_per_micro_batch() as f64 * self.config.train.accumulate as f64;
        StepMetrics {
            step: self.state.step,
            epoch: self.state.epoch,
            samples: self.state.samples,
            loss: f64::from(terms.total),
            flow: terms.flow.map_or(0.0, f64::from),
            focal: terms.focal.map_or(0.0, f64::from),
            dice: terms.dice.map_or(0.0, f64::from),
            align: terms.align.map(f64::from),
            lr,
            lora_lr: Some(Group::Lora.learning_rate(lr, &self.config.optim)),
            grad_norm: norm,
            images_per_s: images / seconds,
            seconds,
            data_wait_s: waited.as_secs_f64(),
            ..Default::default()
        }
    }

    /// Saves a checkpoint where one is due, or where the run is `stopping`, when all processes have reached it; and what
    /// resuming from it shows and compares.
    fn save_if_due(&mut self, log: Option<&mut RunLog>, stopping: bool) -> Result<()> {
        let (step, every) = (self.state.step, self.config.checkpoint.every);
        if step < self.config.train.steps && !stopping && (every == 0 || !step.is_multiple_of(every)) {
            return Ok(());
        }
        self.components.collective.barrier()?;
        if let Some(log) = log {
            log.metrics.sync()?;
            self.checkpoint()?.save(&log.output, self.config)?;
            if let Some(record) = self.record.take() {
                record.write(&log.output.join(RECORD))?;
            }
            if let Some(shown) = &mut self.shown_samples {
                shown.write()?;
            }
        }
        Ok(())
    }

    fn checkpoint(&self) -> Result<Checkpoint> {
        Ok(Checkpoint {
            state: self.state.clone(),
            processes: self.components.collective.size(),
            adapter: self.parameters.tensors()?,
            optimizer: self.optimizer.state_dict(&self.parameters)?,
        })
    }

    /// Measures the model; the process that writes saves it where it is the best so far, and has the scores.
    fn validate(&mut self, log: Option<&mut RunLog>, validation: &Validation) -> Result<Option<ValidationScores>> {
        self.attach_detached()?;
        let measured = validation.measure(&self.pipeline, &self.scheduler)?;
        self.pipeline.transformer.attach_trained(&self.parameters.trained()?)?;
        let (Some((scores, pictures)), Some(log)) = (measured, log) else { return Ok(None) };
        let step = self.state.step;
        let kept = validation.kept_pictures();
        pictures.write(&log.output, step, kept)?;
        log.events.write_validation(step, &scores, Some(&pictures).filter(|_| kept.contains(step)))?;
        let is_best = self.state.effective_steps() > 0
            && log.best.as_ref().is_none_or(|best| validation.is_better(&scores, best));
        if is_best {
            self.checkpoint()?.save_as(&log.output, "best", self.config)?;
            self.export(&log.output, "-best")?;
            log.best = Some(scores.clone());
        }
        tracing::info!("step {step}: {scores}{}", if is_best { ", the best so far" } else { "" });
        Ok(Some(scores))
    }

    /// Attaches the LoRA without gradients: with them every denoising step of every drawn image would stay in memory.
    fn attach_detached(&mut self) -> Result<()> {
        self.pipeline.transformer.attach(&self.parameters.adapters()?)
    }

    /// Writes the LoRA, and the learnt prompt if there is one, into files whose names end in `suffix`.
    fn export(&self, output: &Path, suffix: &str) -> Result<()> {
        let origin = origin_of(self.config, self.state.step, Some(&self.pipeline.transformer.config));
        let file = output.join(format!("lora{suffix}.safetensors"));
        formats::export(&self.parameters.adapters()?, Format::Diffusers, &file, &origin)?;
        if let (Some(tokens), Some(empty)) = (self.parameters.prompt(), &self.empty_prompt) {
            let file = output.join(format!("prompt{suffix}.safetensors"));
            prompt_file::write(&file, tokens.tensor(), &empty.pooled.squeeze(0)?)?;
        }
        Ok(())
    }

    /// Measures the model without its LoRA; false where the run is asked to stop before.
    pub fn measure_base(&mut self, evaluation: Option<&Evaluation>, measured: &mut Measured) -> Result<bool> {
        self.pipeline.transformer.detach();
        let complete = self.measure(evaluation, Stage::Before, measured)?;
        self.pipeline.transformer.attach_trained(&self.parameters.trained()?)?;
        Ok(complete)
    }

    fn measure(&self, evaluation: Option<&Evaluation>, stage: Stage, measured: &mut Measured) -> Result<bool> {
        match evaluation {
            Some(evaluation) => evaluation.measure(&self.pipeline, &self.scheduler, stage, measured),
            None => Ok(true),
        }
    }

    /// Exports the LoRA into `output` and measures the model with it; false where the run is asked to stop before.
    ///
    /// # Errors
    /// Besides what fails, a run that trained nothing.
    pub fn finish(
        &mut self,
        output: &Path,
        evaluation: Option<&Evaluation>,
        stage: Stage,
        measured: &mut Measured,
    ) -> Result<bool> {
        if self.state.effective_steps() == 0 {
            let problem = format!("none of the {} steps had a finite loss and gradient", self.state.step);
            return Err(Error::Failed(format!("nothing was trained: {problem}")));
        }
        if self.components.collective.is_main() {
            let steps = metrics::read(&output.join("metrics.jsonl"))?;
            self.start.check_moved(&self.parameters, &steps, &self.config.optim)?;
            self.export(output, "")?;
            let file = output.join("lora.safetensors");
            tracing::info!("wrote {}: a LoRA for diffusers and ComfyUI", file.display());
        }
        self.attach_detached()?;
        let complete = self.measure(evaluation, stage, measured)?;
        if !complete && self.components.collective.is_main() {
            tracing::info!("stopped while measuring; the same command with --resume measures again");
        }
        Ok(complete)
    }

    /// The state of the run for its page.
    pub fn outcome(&self) -> Outcome<'a> {
        Outcome {
            config: self.config,
            diffusers_model: self.diffusers_model.clone(),
            state: self.state.clone(),
            device: self.device,
            data: self.shown_samples.as_ref().map_or(vec![], |shown| shown.figures.clone()),
            processes: self.components.collective.size(),
            layers: self.parameters.layers(self.pipeline.transformer.config.num_layers()),
        }
    }

    fn say_totals(&self) {
        self.loader.say_findings();
        let (cursor, counters) = (&self.loader.cursor, &self.state.counters);
        tracing::info!(
            "{} samples, {} broken ones passed over, {} of this epoch's {} with masks, {} steps without a finite loss",
            self.state.samples,
            counters.broken,
            cursor.epoch_with_masks,
            cursor.epoch_samples,
            counters.nonfinite,
        );
    }
}

/// What `work` returns, and how long it took.
fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let started = Instant::now();
    Ok((work()?, started.elapsed()))
}
