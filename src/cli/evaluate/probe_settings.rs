//! Arguments of commands that run a model on labelled images: the data set, and the probe settings (resolution, noise
//! level, seed).
use crate::cli::{parse_sigma, parse_size};
use crate::eval::maps::MapSettings;
use crate::eval::segmentation::{LabelledFolder, NoiseLevel, SegmentationDataSet, SegmentationOptions};
use crate::eval::usual_batch;
use crate::model::pipeline::Pipeline;
use crate::model::text::tokenizer::TRAINING_SEQUENCE_LENGTH;
use crate::sample::generate::read_latents;
use crate::system::error::{Error, Result};
use clap::Args;
use std::path::PathBuf;

/// A data set for segmentation: folders, or one of those that `configs/eval` describes.
#[derive(Args, Clone, Debug)]
pub struct LabelledArgs {
    /// Folder of images (JPEG, PNG, WebP, TIFF, BMP, PNM or GIF)
    #[arg(long, value_name = "DIR", required_unless_present = "data_set")]
    pub images: Option<PathBuf>,
    /// Folder of label maps: PNG, of the images' names and sizes
    #[arg(long, value_name = "DIR", required_unless_present = "data_set")]
    pub labels: Option<PathBuf>,
    /// Names of the labels: a JSON list, the index being the label, or an object from label to name
    #[arg(long, value_name = "F", required_unless_present = "data_set")]
    pub classes: Option<PathBuf>,
    /// Labels that do not count, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "255")]
    pub ignore: Vec<u32>,
    /// Instead of these: what a data set is like, such as configs/eval/voc20.toml
    #[arg(long, value_name = "F", requires = "root", conflicts_with_all = ["images", "labels", "classes", "ignore"])]
    pub data_set: Option<PathBuf>,
    /// The folder that the data set was unpacked into
    #[arg(long, value_name = "DIR", requires = "data_set")]
    pub root: Option<PathBuf>,
    /// Only so many images, the first by name
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
}

impl LabelledArgs {
    pub fn open(&self) -> Result<LabelledFolder> {
        if let (Some(data_set), Some(root)) = (&self.data_set, &self.root) {
            return LabelledFolder::of(&SegmentationDataSet::read(data_set, root)?);
        }
        let (Some(images), Some(labels), Some(classes)) = (&self.images, &self.labels, &self.classes) else {
            return Err(Error::Usage("expected --images, --labels and --classes, or --data-set and --root".into()));
        };
        LabelledFolder::open(images, labels, classes, &self.ignore)
    }
}

/// Gives `--max-sequence-length` the default of training.
pub fn as_in_training(argument: clap::Arg) -> clap::Arg {
    argument
        .default_value(TRAINING_SEQUENCE_LENGTH.to_string())
        .help("Tokens of T5, or of the zeros in its place, as in training")
}

/// Probe settings: resolution, noise level, seed.
#[derive(Args, Clone, Debug)]
pub struct ProbeSettingsArgs {
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
}

impl ProbeSettingsArgs {
    /// The options with these maps and the published protocol, for the first `limit` images.
    ///
    /// # Errors
    /// The noise cannot be read, or has another shape than the model's latents.
    pub fn options(&self, maps: MapSettings, limit: Option<u32>, pipeline: &Pipeline) -> Result<SegmentationOptions> {
        let shape = || pipeline.latent_shape(self.size);
        let read = |file: &PathBuf| read_latents(file, "noise", Some(1), shape()?, &pipeline.device);
        Ok(SegmentationOptions {
            noise_level: match self.sigma {
                Some(sigma) => NoiseLevel::Sigma(sigma),
                None => NoiseLevel::Step { steps: self.steps as usize, timestep: self.timestep as isize },
            },
            seed: self.seed,
            noise: self.noise.as_ref().map(read).transpose()?,
            batch: self.batch.map_or(usual_batch(self.size), |batch| batch as usize),
            limit: limit.map(|limit| limit as usize),
            maps,
            ..SegmentationOptions::new(0, self.size)
        })
    }
}
