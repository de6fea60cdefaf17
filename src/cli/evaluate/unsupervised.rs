//! `evaluate unsupervised`: segmentation by a block's attention to an empty prompt.
use super::predictions::Predictions;
use super::probe_settings::{LabelledArgs, ProbeSettingsArgs, as_in_training};
use super::{score_file, write_scores};
use crate::cli::maps::{LayerList, MapArgs};
use crate::cli::{ModelArgs, parse_not_negative, say};
use crate::config::MapNormalize;
use crate::distributed::Collective;
use crate::eval::EvaluatedModel;
use crate::eval::segmentation::{SegmentationScores, UnsupervisedOptions, evaluate_unsupervised};
use crate::eval::turns::Turns;
use crate::model::text::prompt_file;
use crate::system::error::Result;
use crate::system::progress::Progress;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

const EXAMPLE: &str = "Example:
  seg4diff evaluate unsupervised --model models/stable-diffusion-3-medium-diffusers --layer 9 \\
    --images voc/JPEGImages --labels voc/SegmentationClass --classes voc/classes.json --threshold 0.02,0.035,0.05,0.1";

/// Measure how well a block's attention segments images without a prompt
///
/// The maps of the CLIP tokens are merged where they are alike; an image's segments are paired with its classes so
/// that they overlap most. Prints mean intersection over union (IoU) and the share of pixels that are right at each
/// threshold, in per cent; --json writes them as shares from 0 to 1.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = EXAMPLE,
    mut_arg("max_sequence_length", as_in_training)
)]
pub struct UnsupervisedArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: LabelledArgs,
    /// Block whose attention segments, counted from 0 (9 in Stable Diffusion 3 medium); several, separated by commas,
    /// are averaged
    #[arg(long, value_name = "LIST")]
    pub layer: LayerList,
    #[command(flatten)]
    pub maps: MapArgs,
    #[command(flatten)]
    pub probe: ProbeSettingsArgs,
    /// Maps are merged whose symmetric KL divergence is less, in nats; several, separated by commas, are each measured
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0.035", value_parser = parse_not_negative)]
    pub threshold: Vec<f64>,
    /// Maps, scaled to [0, 1], are raised to this power
    #[arg(long, value_name = "X", default_value = "1", value_parser = parse_not_negative)]
    pub power: f64,
    /// Prompt that a run learnt, its prompt.safetensors: the model is told it in place of an empty one
    #[arg(long, value_name = "F")]
    pub prompt_tokens: Option<PathBuf>,
    /// Folder for the predictions at the first threshold: PNG label maps with a palette
    #[arg(long, value_name = "DIR")]
    pub predictions: Option<PathBuf>,
    /// File for the scores: a JSON list with threshold, miou, pixel_accuracy, per_class {name: iou} and images
    #[arg(long, value_name = "F")]
    pub json: Option<PathBuf>,
}

#[derive(Serialize)]
struct AtThreshold<'a> {
    threshold: f64,
    /// Mean number of segments in an image.
    segments: f64,
    #[serde(flatten)]
    scores: &'a SegmentationScores,
}

pub fn run(args: &UnsupervisedArgs, processes: &dyn Collective) -> Result<()> {
    // Arguments are checked before gigabytes of weights are read.
    let data = args.data.open()?;
    args.maps.check(&args.model, &args.layer.0)?;
    let json = score_file(&args.json, processes)?;
    let predictions =
        args.predictions.as_deref().map(|folder| Predictions::open(folder, &data, processes)).transpose()?;
    let (pipeline, scheduler) = args.model.load(args.layer.depth())?;
    let maps = args.maps.settings(&args.layer.0, MapNormalize::None, &pipeline.device)?;
    let options = args.probe.options(maps, args.data.limit, &pipeline)?;
    let read = |file: &PathBuf| prompt_file::read(file, pipeline.text_encoders.shape(), &pipeline.device);
    let prompt = args.prompt_tokens.as_ref().map(read).transpose()?;
    let merging = UnsupervisedOptions { thresholds: args.threshold.clone(), power: args.power, prompt };
    let mut progress = Progress::new("image", 0, options.count(&data) as u64);
    let mut segments = vec![0.0; args.threshold.len()];
    let model = EvaluatedModel { pipeline: &pipeline, scheduler: &scheduler, turns: &Turns::new(processes) };
    let scores = evaluate_unsupervised(model, &data, &options, &merging, &mut |result| {
        segments[result.threshold] += result.segments as f64;
        if let Some(predictions) = predictions.as_ref().filter(|_| result.threshold == 0) {
            predictions.write(result.key, result.predicted, &data)?;
        }
        progress.update_batch(result.index + 1, options.batch, result.key);
        Ok(())
    })?;
    drop(progress);
    let segments = processes.gather_numbers_at_main(&segments)?;
    let all = |place: usize| segments.iter().map(|of_rank| of_rank[place]).sum::<f64>();
    let at_thresholds = args.threshold.iter().zip(&scores).enumerate().map(|(place, (&threshold, scores))| {
        AtThreshold { threshold, segments: all(place) / scores.images as f64, scores }
    });
    let found: Vec<AtThreshold> = at_thresholds.collect();
    write_scores(json, &found)?;
    let line = |at: &AtThreshold| {
        let (miou, pixels) = (100.0 * at.scores.miou, 100.0 * at.scores.pixel_accuracy);
        format!("{:9}  {miou:6.2}  {pixels:14.2}  {:17.1}", at.threshold, at.segments)
    };
    say("threshold  mIoU %  pixel accuracy  segments an image")?;
    found.iter().try_for_each(|at| say(&line(at)))
}
