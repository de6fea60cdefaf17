//! `evaluate segmentation`: open-vocabulary segmentation by a block's attention.
use super::predictions::Predictions;
use super::probe_settings::{LabelledArgs, ProbeSettingsArgs, as_in_training};
use super::{score_file, write_scores};
use crate::cli::maps::{LayerList, MapArgs, NormalizeArgs};
use crate::cli::{ModelArgs, say};
use crate::config::{Choice, SegmentationProtocol};
use crate::distributed::Collective;
use crate::eval::EvaluatedModel;
use crate::eval::segmentation::{SegmentationOptions, SegmentationScores, evaluate};
use crate::eval::turns::Turns;
use crate::system::error::Result;
use crate::system::progress::Progress;
use clap::Args;
use std::path::PathBuf;

const EXAMPLE: &str = "Example:
  seg4diff evaluate segmentation --model models/stable-diffusion-3-medium-diffusers --layer 9 \\
    --images voc/JPEGImages --labels voc/SegmentationClass --classes voc/classes.json --json miou.json";

/// Measure how well a block's attention segments images by the names of their classes
///
/// Prints intersection over union (IoU) of each class, their mean, and the share of pixels that are right, in per
/// cent; --json writes them as shares from 0 to 1.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = EXAMPLE,
    mut_arg("max_sequence_length", as_in_training)
)]
pub struct SegmentationArgs {
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
    pub normalize: NormalizeArgs,
    /// What the model is told: the names of the classes present in the image, or all names
    #[arg(long, value_name = "PROTOCOL", default_value = "present", value_parser = SegmentationProtocol::from_name)]
    pub protocol: SegmentationProtocol,
    #[command(flatten)]
    pub probe: ProbeSettingsArgs,
    /// Folder for the predictions: PNG label maps with a palette (16-bit grey where a label is above 255)
    #[arg(long, value_name = "DIR")]
    pub predictions: Option<PathBuf>,
    /// File for the scores: JSON with miou, pixel_accuracy, per_class {name: iou} and images
    #[arg(long, value_name = "F")]
    pub json: Option<PathBuf>,
}

pub fn run(args: &SegmentationArgs, processes: &dyn Collective) -> Result<()> {
    // Arguments are checked before gigabytes of weights are read.
    let data = args.data.open()?;
    args.maps.check(&args.model, &args.layer.0)?;
    let json = score_file(&args.json, processes)?;
    let predictions =
        args.predictions.as_deref().map(|folder| Predictions::open(folder, &data, processes)).transpose()?;
    let (pipeline, scheduler) = args.model.load(args.layer.depth())?;
    let maps = args.maps.settings(&args.layer.0, args.normalize.normalize, &pipeline.device)?;
    let options = args.probe.options(maps, args.data.limit, &pipeline)?;
    let options = SegmentationOptions { protocol: args.protocol, ..options };
    let mut progress = Progress::new("image", 0, options.count(&data) as u64);
    let model = EvaluatedModel { pipeline: &pipeline, scheduler: &scheduler, turns: &Turns::new(processes) };
    let scores = evaluate(model, &data, &options, &mut |result| {
        if let Some(predictions) = &predictions {
            predictions.write(&result.image.key, result.predicted, &data)?;
        }
        progress.update_batch(result.index + 1, options.batch, &result.image.key);
        Ok(())
    })?;
    drop(progress);
    write_scores(json, &scores)?;
    say(&table(&scores))
}

/// The scores in per cent, one class a line.
fn table(scores: &SegmentationScores) -> String {
    let occurring: Vec<(&str, f64)> =
        scores.per_class.iter().filter_map(|(name, iou)| Some((name.as_str(), (*iou)?))).collect();
    let totals = ["mIoU", "pixel accuracy", "images"].iter();
    let width = occurring.iter().map(|(name, _)| *name).chain(totals.copied()).map(|name| name.chars().count()).max();
    let width = width.unwrap_or_default();
    let percent = |name: &str, share: f64| format!("{name:width$}  {:6.2}\n", 100.0 * share);
    let mut lines = format!("{:width$}   IoU %\n", "class");
    lines.extend(occurring.iter().map(|(name, iou)| percent(name, *iou)));
    lines += &format!("\n{}", percent("pixel accuracy", scores.pixel_accuracy));
    lines += &percent("mIoU", scores.miou);
    let (of, all, images) = (occurring.len(), scores.per_class.len(), scores.images);
    lines + &format!("{:width$}  of {of} of {all} classes in {images} images", "")
}
