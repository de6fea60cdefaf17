//! Measures a run's model before training and after, as `[eval]` says. Several processes share the images, and rank 0 has the
//! scores and pictures.
use crate::config::{EvalConfig, RunConfig};
use crate::data::sources::captions::{Columns, first_by_key};
use crate::distributed::Collective;
use crate::eval::EvaluatedModel;
use crate::eval::analysis::analyse;
use crate::eval::flow::HeldOut;
use crate::eval::generation::draw::pictures_at_main;
use crate::eval::generation::{self, GenerationOptions, GenerationScores, ReferenceStatistics, load_networks};
use crate::eval::segmentation::{self, LabelledFolder, SegmentationOptions, SegmentationScores};
use crate::eval::turns::Turns;
use crate::model::pipeline::Pipeline;
use crate::report::segmentation::SegmentationExample;
use crate::report::summary::{Scores, Stage};
use crate::report::{Measured, told_example};
use crate::sample::scheduler::Scheduler;
use crate::system::error::Result;
use crate::system::progress::Progress;
use candle_core::Device;
use image::RgbImage;
use std::sync::atomic::AtomicBool;

/// Held-out pictures whose attention the report shows.
const EXAMPLES: usize = 6;
/// Drawn pictures that it shows.
const SAMPLES: usize = 16;

/// The data that models are measured on, read once for all of them.
pub struct Evaluation<'a> {
    config: &'a RunConfig,
    eval: &'a EvalConfig,
    labelled: Option<LabelledFolder>,
    held_out: Option<HeldOut>,
    /// Captions to draw from, and what drawn images are compared with.
    generation: Option<(Vec<String>, ReferenceStatistics)>,
    turns: Turns<'a>,
}

impl<'a> Evaluation<'a> {
    /// Opens what the config's `[eval]` names, for these processes; `stop`, in any of them, ends a measurement early.
    pub fn open(
        config: &'a RunConfig,
        eval: &'a EvalConfig,
        device: &Device,
        processes: &'a dyn Collective,
        stop: &'a AtomicBool,
    ) -> Result<Self> {
        let turns = Turns::new(processes);
        let labelled = LabelledFolder::of_run(config, eval)?;
        let columns = Columns::of(&config.data);
        let captions = eval.captions.as_ref().filter(|_| eval.flow_images > 0);
        let held_out = captions.map(|captions| HeldOut::of(eval, captions, columns, eval.flow_images)).transpose()?;
        let generation = match &eval.captions {
            Some(captions) if eval.generation_images > 0 => {
                let captions = first_by_key(captions, columns, eval.generation_images)?;
                let networks = load_networks(eval.inception.as_deref(), eval.features.as_deref(), device)?;
                let batch = GenerationOptions::of(eval).batch;
                Some((captions, ReferenceStatistics::of_folder(networks, eval.real_images(), batch, &turns)?))
            }
            _ => None,
        };
        Ok(Self { config, eval, labelled, held_out, generation, turns: Turns::until(processes, stop) })
    }

    /// Measures one model, adds its scores and pictures to `measured` at rank 0, and returns whether it came to the end: not
    /// where the run is asked to stop, which leaves `measured` as it was.
    pub fn measure(
        &self,
        pipeline: &Pipeline,
        scheduler: &Scheduler,
        stage: Stage,
        measured: &mut Measured,
    ) -> Result<bool> {
        let mut new = Measured::default();
        let model = EvaluatedModel { pipeline, scheduler, turns: &self.turns };
        let outcome = self.scores(model, stage, &mut new);
        // Of what fails at one process the others know nothing, and cannot be asked.
        let is_stopped = if outcome.is_ok() { self.turns.agree_to_stop()? } else { self.turns.is_stopped() };
        if is_stopped {
            return Ok(false);
        }
        let scores = outcome?;
        if !self.turns.is_main() {
            return Ok(true);
        }
        measured.summary.0.insert(stage, scores);
        if measured.segmentation.is_empty() {
            measured.segmentation = new.segmentation;
        } else {
            for (all, new) in measured.segmentation.iter_mut().zip(new.segmentation) {
                all.stages.extend(new.stages);
            }
        }
        measured.blocks.extend(new.blocks);
        measured.samples.prompts = new.samples.prompts;
        measured.samples.columns.extend(new.samples.columns);
        Ok(true)
    }

    fn scores(&self, model: EvaluatedModel, stage: Stage, new: &mut Measured) -> Result<Scores> {
        let mut scores = Scores::default();
        if let Some(labelled) = &self.labelled {
            let limit = Some(self.eval.segmentation_images).filter(|&images| images > 0);
            let options = SegmentationOptions::of(self.eval, limit);
            let mut progress = Progress::new("segmented", 0, options.count(labelled) as u64);
            let progress = |done| progress.update_batch(done, options.batch, stage.title());
            let (found, examples) = segment(model, labelled, &options, (stage, EXAMPLES), progress)?;
            let ious = found.per_class.into_iter();
            scores.miou = Some(found.miou);
            scores.pixel_accuracy = Some(found.pixel_accuracy);
            scores.per_class = ious.filter_map(|(name, iou)| Some((name, iou?))).collect();
            new.segmentation = examples;
        }
        if let Some(labelled) = self.labelled.as_ref().filter(|_| self.eval.analysis_images > 0) {
            let options = SegmentationOptions::of(self.eval, Some(self.eval.analysis_images));
            new.blocks.push((stage, analyse(model, labelled, &options, |_, _| {})?));
        }
        if let Some(held_out) = &self.held_out {
            scores.held_out_flow = held_out.flow_loss(model, &self.config.noise)?;
        }
        let GenerationScores { fid, kid, fd_demo, .. } = self.draw(model, stage, new)?;
        Ok(Scores { fid, kid, fd_demo, ..scores })
    }

    fn draw(&self, model: EvaluatedModel, stage: Stage, new: &mut Measured) -> Result<GenerationScores> {
        let Some((captions, reference)) = &self.generation else { return Ok(GenerationScores::default()) };
        let options = GenerationOptions::of(self.eval);
        let mut own: Vec<(usize, RgbImage)> = vec![];
        let mut progress = Progress::new("drawn", 0, options.images as u64);
        let scores = generation::evaluate(model, captions, &options, reference, &mut |index, image| {
            if index < SAMPLES {
                own.push((index, image.clone()));
            }
            progress.update_batch(index + 1, options.batch, stage.title());
            Ok(())
        })?;
        new.samples.prompts = captions.iter().cycle().take(options.images.min(SAMPLES)).cloned().collect();
        new.samples.columns.push((stage, pictures_at_main(own, model.turns)?));
        Ok(scores.unwrap_or_default())
    }
}

/// Segments the images of `labelled`; at rank 0 the first `shown` of them become examples of `stage`. `progress` receives the
/// number of images done.
pub fn segment(
    model: EvaluatedModel,
    labelled: &LabelledFolder,
    options: &SegmentationOptions,
    (stage, shown): (Stage, usize),
    mut progress: impl FnMut(usize),
) -> Result<(SegmentationScores, Vec<SegmentationExample>)> {
    let mut own = vec![];
    let scores = segmentation::evaluate(model, labelled, options, &mut |result| {
        if result.index < shown {
            own.push((result.index, SegmentationExample::new(result, stage)?));
        }
        progress(result.index + 1);
        Ok(())
    })?;
    Ok((scores, told_example::at_main(own, model.turns)?))
}
