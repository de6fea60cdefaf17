//! Validation every so many steps, on a few images, noises and captions that never change. Several processes share the images,
//! and rank 0 has the scores and pictures.
use super::evaluation::segment;
use crate::config::{BestBy, EvalConfig, RunConfig};
use crate::data::sources::captions::{Columns, first_by_key};
use crate::distributed::Collective;
use crate::eval::EvaluatedModel;
use crate::eval::flow::HeldOut;
use crate::eval::generation::GenerationOptions;
use crate::eval::generation::draw::Painter;
use crate::eval::segmentation::{LabelledFolder, SegmentationOptions};
use crate::eval::turns::Turns;
use crate::model::pipeline::Pipeline;
use crate::report::metrics::ValidationScores;
use crate::report::segmentation::sheet_of;
use crate::report::summary::Stage;
use crate::report::{KeptPictures, ValidationPictures, sample_sheet};
use crate::sample::scheduler::Scheduler;
use crate::system::error::Result;

/// Pictures whose attention is shown.
const EXAMPLES: usize = 3;

/// The data of a run's validation, read once.
pub struct Validation<'a> {
    config: &'a RunConfig,
    eval: &'a EvalConfig,
    labelled: Option<LabelledFolder>,
    held_out: Option<HeldOut>,
    /// Captions that are drawn from.
    captions: Vec<String>,
    turns: Turns<'a>,
}

impl<'a> Validation<'a> {
    /// Opens what `[eval]` names; nothing where `eval.every` is 0.
    ///
    /// # Errors
    /// A folder, the classes or the captions cannot be read or do not fit.
    pub fn open(config: &'a RunConfig, processes: &'a dyn Collective) -> Result<Option<Self>> {
        let Some(eval) = config.eval.as_ref().filter(|eval| eval.every > 0) else { return Ok(None) };
        let labelled = LabelledFolder::of_run(config, eval)?;
        let columns = Columns::of(&config.data);
        let (held_out, captions) = match &eval.captions {
            Some(file) => {
                let held_out = HeldOut::of(eval, file, columns, eval.every_images)?;
                (Some(held_out), first_by_key(file, columns, eval.every_samples.max(1))?)
            }
            None => (None, vec![]),
        };
        let captions = captions.into_iter().take(eval.every_samples).collect();
        Ok(Some(Self { config, eval, labelled, held_out, captions, turns: Turns::new(processes) }))
    }

    /// Whether the model is measured after `step`.
    pub fn is_due(&self, step: u64) -> bool {
        step.is_multiple_of(self.eval.every)
    }

    /// Which validations' pictures are kept.
    pub fn kept_pictures(&self) -> KeptPictures {
        KeptPictures::new(self.eval.every, self.config.train.steps, self.eval.keep_pictures)
    }

    /// Measures the model as it is; other processes than rank 0 get nothing. This takes no part in the run's random numbers.
    ///
    /// # Errors
    /// An image cannot be read, or the model's output is not finite.
    pub fn measure(
        &self,
        pipeline: &Pipeline,
        scheduler: &Scheduler,
    ) -> Result<Option<(ValidationScores, ValidationPictures)>> {
        let model = EvaluatedModel { pipeline, scheduler, turns: &self.turns };
        let is_main = self.turns.is_main();
        let mut scores = ValidationScores::default();
        let mut pictures = ValidationPictures::default();
        if let Some(labelled) = &self.labelled {
            let options = SegmentationOptions::of(self.eval, Some(self.eval.every_images));
            let (found, examples) = segment(model, labelled, &options, (Stage::After, EXAMPLES), |_| {})?;
            (scores.miou, scores.pixel_accuracy) = (Some(found.miou), Some(found.pixel_accuracy));
            pictures.attention = is_main.then(|| sheet_of(&examples)).transpose()?;
        }
        if let Some(held_out) = &self.held_out {
            scores.held_out_flow = held_out.flow_loss(model, &self.config.noise)?;
        }
        if !self.captions.is_empty() {
            let mut painter = Painter::new(model, &GenerationOptions::of(self.eval))?;
            let images = painter.draw_all(&self.captions, None, |_| {})?;
            pictures.samples = is_main.then(|| sample_sheet(&images));
        }
        Ok(is_main.then_some((scores, pictures)))
    }

    /// Whether `new` is better than `old`, by the metric that the config chose; equal scores are not better.
    pub fn is_better(&self, new: &ValidationScores, old: &ValidationScores) -> bool {
        let finite = |score: Option<f64>| score.filter(|score| score.is_finite());
        match self.eval.best_by {
            BestBy::Miou => finite(new.miou) > finite(old.miou),
            BestBy::HeldOutFlow => match (finite(new.held_out_flow), finite(old.held_out_flow)) {
                (Some(new), Some(old)) => new < old,
                (new, old) => new.is_some() && old.is_none(),
            },
        }
    }
}
