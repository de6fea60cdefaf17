//! A run, from its config to its page.
use super::components::Components;
use super::evaluation::Evaluation;
use super::outcome::Outcome;
use super::resume::Override;
use super::run_folder::{Resume, RunFolder};
use super::run_log::RunLog;
use super::trainer::Trainer;
use super::validation::Validation;
use crate::config::RunConfig;
use crate::report::Measured;
use crate::report::summary::Stage;
use crate::system::error::Result;
use crate::system::interrupt;
use candle_core::Device;
use std::sync::atomic::AtomicBool;

/// Trains as `config` says, into `folder`, from its checkpoint if there is one, and measures the model before and after
/// where the config asks for it. Returns what was measured, as a table.
///
/// Of several processes each calls it, those behind rank 0 with a folder that they [joined](RunFolder::join).
pub fn run(
    config: &RunConfig,
    device: &Device,
    folder: &RunFolder,
    force: &[Override],
    components: &Components,
) -> Result<Option<String>> {
    let run = || {
        let stop = interrupt::stop_flag()?;
        let (eval, collective) = (config.eval.as_ref(), components.collective);
        let evaluation = eval.map(|eval| Evaluation::open(config, eval, device, collective, &stop)).transpose()?;
        let validation = Validation::open(config, collective)?;
        Run { device, force, components, evaluation, validation, stop: &stop }.whole(config, folder)
    };
    run().inspect_err(|problem| components.collective.abort(problem))
}

/// What the trainings of a run share.
struct Run<'a> {
    device: &'a Device,
    force: &'a [Override],
    components: &'a Components<'a>,
    evaluation: Option<Evaluation<'a>>,
    validation: Option<Validation<'a>>,
    stop: &'a AtomicBool,
}

impl Run<'_> {
    /// Trains as `config` says into `folder`, and where it asks for that again without masks.
    fn whole(&self, config: &RunConfig, folder: &RunFolder) -> Result<Option<String>> {
        let is_main = self.components.collective.is_main();
        let mut measured = Measured::default();
        let Some((outcome, complete)) = self.training(config, folder, Stage::After, &mut measured)? else {
            return Ok(None);
        };
        if is_main {
            outcome.write(&measured)?;
        }
        if complete && config.eval.as_ref().is_some_and(|eval| eval.compare_without_masks) {
            let config = config.without_masks();
            let folder = RunFolder::open_together(&config.output, &Resume::Newest, self.components.collective)?;
            if is_main {
                tracing::info!("the same run without masks, into {}", config.output.display());
            }
            self.training(&config, &folder, Stage::WithoutMasks, &mut measured)?;
            if is_main {
                outcome.write(&measured)?;
            }
        }
        if is_main {
            tracing::info!("wrote {}: the run on one page", config.output.join("report.html").display());
        }
        Ok((!measured.summary.is_empty()).then(|| measured.summary.table()))
    }

    /// Trains once, and measures the result as `stage`. Returns the outcome, and whether training and measurement are
    /// complete; nothing where the run was asked to stop before the first step.
    fn training<'c>(
        &'c self,
        config: &'c RunConfig,
        folder: &RunFolder,
        stage: Stage,
        measured: &mut Measured,
    ) -> Result<Option<(Outcome<'c>, bool)>> {
        let collective = self.components.collective;
        let (evaluation, validation) = (self.evaluation.as_ref(), self.validation.as_ref());
        let measures = evaluation.is_some();
        let mut trainer = Trainer::setup(config, self.device, folder, self.force, measures, self.components)?;
        // All have read the checkpoint before newer ones are set aside.
        collective.barrier()?;
        let metrics = collective.is_main().then(|| folder.begin(config, trainer.state.step)).transpose()?;
        if let Some(inventory) = &trainer.inventory {
            inventory.write(&folder.path.join("data.json"))?;
        }
        if config.eval.as_ref().is_some_and(|eval| eval.before) && !trainer.measure_base(evaluation, measured)? {
            if collective.is_main() {
                tracing::info!("stopped before training; start again with the same command");
            }
            return Ok(None);
        }
        let steps = (trainer.state.step, config.train.steps);
        let log = metrics.map(|metrics| RunLog::open(&folder.path, metrics, steps, validation));
        let complete = trainer.train(log.transpose()?, validation, self.stop)?
            && trainer.finish(&folder.path, evaluation, stage, measured)?;
        Ok(Some((trainer.outcome(), complete)))
    }
}
