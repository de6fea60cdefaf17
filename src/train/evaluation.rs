//! Measures a run's model before training and after, as `[eval]` says. Several processes share the images, and rank 0 has the
//! scores and pictures.
use crate::config::{EvalConfig, RunConfig};
use crate::data::Captions;
use crate::data::sources::captions::{Columns, first_by_key};
use crate::distributed::Collective;
use crate::eval::analysis::analyse_together;
use crate::eval::flow::HeldOut;
use crate::eval::generation::draw::pictures_at_main;
use crate::eval::generation::statistics::image_files;
use crate::eval::generation::{self, DrawnImage, GenerationOptions, GenerationScores, Reference, load_networks};
use crate::eval::segmentation::{self, ImageResult, LabelledFolder, SegmentationOptions};
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
    generation: Option<(Vec<String>, Reference)>,
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
        let held_out = match &eval.captions {
            Some(captions) if eval.flow_images > 0 => {
                let files = image_files(eval.real_images())?;
                let captions = Captions::read(captions, columns)?;
                Some(HeldOut::new(files, &captions, eval.flow_images, eval.size, eval.seed)?)
            }
            _ => None,
        };
        let generation = match &eval.captions {
            Some(captions) if eval.generation_images > 0 => {
                let captions = first_by_key(captions, columns, eval.generation_images)?;
                let networks = load_networks(eval.inception.as_deref(), eval.features.as_deref(), device)?;
                let batch = GenerationOptions::of(eval).batch;
                Some((captions, Reference::of_folder_together(networks, eval.real_images(), batch, &turns)?))
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
        let outcome = self.scores(pipeline, scheduler, stage, &mut new);
        // Of what fails at one process the others know nothing, and cannot be asked.
        let is_stopped = if outcome.is_ok() { self.turns.agree_to_stop()? } else { self.turns.is_stopped() };
        if is_stopped {
            return Ok(false);
        }
        let scores = outcome?;
        if !self.turns.is_main() {
            return Ok(true);
        }
        measured.summary.set(stage, scores);
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

    fn scores(&self, pipeline: &Pipeline, scheduler: &Scheduler, stage: Stage, new: &mut Measured) -> Result<Scores> {
        let mut scores = Scores::default();
        if let Some(labelled) = &self.labelled {
            let found = self.segment(labelled, pipeline, scheduler, stage, &mut new.segmentation)?;
            let ious = found.per_class.into_iter();
            scores.miou = Some(found.miou);
            scores.pixel_accuracy = Some(found.pixel_accuracy);
            scores.per_class = ious.filter_map(|(name, iou)| Some((name, iou?))).collect();
        }
        if let Some(labelled) = self.labelled.as_ref().filter(|_| self.eval.analysis_images > 0) {
            let limit = Some(self.eval.analysis_images);
            let options = SegmentationOptions::of(self.eval, limit);
            new.blocks
                .push((stage, analyse_together(pipeline, scheduler, labelled, &options, &self.turns, |_, _| {})?));
        }
        if let Some(held_out) = &self.held_out {
            scores.held_out_flow = held_out.flow_loss(pipeline, scheduler, &self.config.noise, &self.turns)?;
        }
        if let Some((captions, reference)) = &self.generation {
            let GenerationScores { fid, kid, fd_demo, .. } =
                self.draw(captions, reference, pipeline, scheduler, stage, new)?;
            (scores.fid, scores.kid, scores.fd_demo) = (fid, kid, fd_demo);
        }
        Ok(scores)
    }

    fn segment(
        &self,
        labelled: &LabelledFolder,
        pipeline: &Pipeline,
        scheduler: &Scheduler,
        stage: Stage,
        examples: &mut Vec<SegmentationExample>,
    ) -> Result<segmentation::SegmentationScores> {
        let limit = Some(self.eval.segmentation_images).filter(|&images| images > 0);
        let options = SegmentationOptions::of(self.eval, limit);
        let mut progress = Progress::new("segmented", 0, options.count(labelled) as u64);
        let mut own = vec![];
        let mut visit = |result: &ImageResult| {
            if result.index < EXAMPLES {
                own.push((result.index, SegmentationExample::new(result, stage)?));
            }
            progress.update_batch(result.index + 1, options.batch, stage.title());
            Ok(())
        };
        let scores = segmentation::evaluate_together(pipeline, scheduler, labelled, &options, &self.turns, &mut visit)?;
        *examples = told_example::at_main(own, stage, &self.turns)?;
        Ok(scores)
    }

    fn draw(
        &self,
        captions: &[String],
        reference: &Reference,
        pipeline: &Pipeline,
        scheduler: &Scheduler,
        stage: Stage,
        new: &mut Measured,
    ) -> Result<GenerationScores> {
        let options = GenerationOptions::of(self.eval);
        let mut own: Vec<(usize, RgbImage)> = vec![];
        let mut progress = Progress::new("drawn", 0, options.images as u64);
        let mut visit = |drawn: &DrawnImage| {
            if drawn.index < SAMPLES {
                own.push((drawn.index, drawn.image.clone()));
            }
            progress.update_batch(drawn.index + 1, options.batch, stage.title());
            Ok(())
        };
        let turns = &self.turns;
        let scores =
            generation::evaluate_together(pipeline, scheduler, captions, &options, reference, turns, &mut visit)?;
        new.samples.prompts = captions.iter().cycle().take(options.images.min(SAMPLES)).cloned().collect();
        new.samples.columns.push((stage, pictures_at_main(own, turns)?));
        Ok(scores.unwrap_or_default())
    }
}
