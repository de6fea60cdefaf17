//! `evaluate segmentation`: how well a block's attention finds the things that words name.
use super::write_json;
use crate::commands::{LoadedModel, ModelArgs, parse_sigma, parse_size, say};
use crate::config::{Choice, SegmentationProtocol};
use crate::data::labels::encode_labels;
use crate::error::{Error, Result};
use crate::eval::segmentation::{
    Class, ImageResult, LabelledFolder, NO_CLASS, NoiseLevel, SegmentationMap, SegmentationOptions, SegmentationScores,
    evaluate,
};
use crate::eval::usual_batch;
use crate::model::weights::{check_writable, write_atomically};
use crate::report::progress::Progress;
use crate::sample::generate::read_latents;
use crate::sample::scheduler::Scheduler;
use clap::Args;
use std::path::{Path, PathBuf};

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
    mut_arg("max_sequence_length", |argument| {
        argument.default_value("77").help("Tokens of T5, or of the zeros in its place, as in training")
    })
)]
pub struct SegmentationArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Folder of images (JPEG or PNG)
    #[arg(long, value_name = "DIR")]
    pub images: PathBuf,
    /// Folder of label maps: PNG, of the images' names and sizes
    #[arg(long, value_name = "DIR")]
    pub labels: PathBuf,
    /// Names of the labels: a JSON list, the index being the label, or an object from label to name
    #[arg(long, value_name = "F")]
    pub classes: PathBuf,
    /// Labels that do not count, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "255")]
    pub ignore: Vec<u32>,
    /// Block whose attention segments, counted from 0 (9 in Stable Diffusion 3 medium)
    #[arg(long, value_name = "N")]
    pub layer: usize,
    /// What the model is told: the names of the classes present in the image, or all names
    #[arg(long, value_name = "PROTOCOL", default_value = "present", value_parser = SegmentationProtocol::from_name)]
    pub protocol: SegmentationProtocol,
    /// Side in pixels of the square that images are resized to
    #[arg(long, value_name = "PIXELS", default_value = "1024", value_parser = parse_size)]
    pub size: usize,
    /// Steps of the schedule that the noise level is from
    #[arg(long, value_name = "N", default_value_t = 28, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub steps: u32,
    /// Which of its time steps; negative ones count from the end
    #[arg(long, value_name = "INDEX", default_value_t = -8, allow_negative_numbers = true)]
    pub timestep: i32,
    /// Share of noise in the latent, from 0 to 1, instead
    #[arg(long, value_name = "SIGMA", value_parser = parse_sigma, conflicts_with_all = ["steps", "timestep"])]
    pub sigma: Option<f64>,
    /// Seed of the noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// One noise for every image: safetensors with the key noise, [1, 16, h, w]
    #[arg(long, value_name = "F")]
    pub noise: Option<PathBuf>,
    /// Images that are computed together [default: as many as make up a megapixel, at most 32]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch: Option<u32>,
    /// Only so many images, the first by name
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Folder for the predictions: PNG label maps with a palette (16-bit grey where a label is above 255)
    #[arg(long, value_name = "DIR")]
    pub predictions: Option<PathBuf>,
    /// File for the scores: JSON with miou, pixel_accuracy, per_class {name: iou} and images
    #[arg(long, value_name = "F")]
    pub json: Option<PathBuf>,
}

pub fn run(args: &SegmentationArgs) -> Result<()> {
    // What is small is looked at before gigabytes are.
    let data = LabelledFolder::open(&args.images, &args.labels, &args.classes, &args.ignore)?;
    args.model.check_layer(args.layer)?;
    let prediction_file = |key: &str| args.predictions.as_ref().map(|folder| folder.join(format!("{key}.png")));
    for file in args.json.iter().cloned().chain(prediction_file("x")) {
        check_writable(&file)?;
    }
    let LoadedModel { files, pipeline, .. } = args.model.load()?;
    let options = SegmentationOptions {
        protocol: args.protocol,
        noise_level: match args.sigma {
            Some(sigma) => NoiseLevel::Sigma(sigma),
            None => NoiseLevel::Step { steps: args.steps as usize, timestep: args.timestep as isize },
        },
        seed: args.seed,
        noise: match &args.noise {
            Some(file) => {
                Some(read_latents(file, "noise", Some(1), pipeline.latent_shape(args.size)?, &pipeline.device)?)
            }
            None => None,
        },
        batch: args.batch.map_or(usual_batch(args.size), |batch| batch as usize),
        limit: args.limit.map(|limit| limit as usize),
        ..SegmentationOptions::new(args.layer, args.size)
    };
    let count = options.limit.map_or(data.len(), |limit| limit.min(data.len()));
    let mut progress = Progress::new("image", 0, count as u64);
    let scores = evaluate(&pipeline, &Scheduler::open(&files)?, &data, &options, &mut |result: &ImageResult| {
        if let Some(file) = prediction_file(&result.image.key) {
            write_prediction(&file, result.predicted, result.classes, args.ignore.first().copied().unwrap_or(255))?;
        }
        progress.update_batch(result.index + 1, options.batch, &result.image.key);
        Ok(())
    })?;
    drop(progress);
    if let Some(file) = &args.json {
        write_json(file, &scores)?;
    }
    say(&table(&scores))
}

/// Writes the predicted labels; pixels without a prediction get the label `none`.
fn write_prediction(file: &Path, map: &SegmentationMap, classes: &[Class], none: u32) -> Result<()> {
    let label = |class: &u16| match *class {
        NO_CLASS => none,
        class => classes[usize::from(class)].label,
    };
    let labels: Vec<u32> = map.classes.iter().map(label).collect();
    let png = encode_labels(map.width, map.height, &labels).map_err(|e| Error::file(file, e))?;
    write_atomically(file, |out| out.write_all(&png))
}

/// The scores in per cent, a class a line.
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
    lines += &format!(
        "{:width$}  of {} of {} classes in {} images",
        "",
        occurring.len(),
        scores.per_class.len(),
        scores.images
    );
    lines
}
