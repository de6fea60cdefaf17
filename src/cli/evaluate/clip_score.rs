//! `evaluate clip-score`: similarity of images and captions.
use super::{score_file, write_scores};
use crate::cli::{caption_of, say};
use crate::config::DeviceChoice;
use crate::data::sources::captions::{Captions, Columns};
use crate::distributed::Collective;
use crate::eval::clip_score::{ClipScorer, clip_scores};
use crate::eval::generation::statistics::image_files;
use crate::eval::turns::Turns;
use crate::sample::image::read_rgb8;
use crate::system::error::Result;
use crate::system::progress::Progress;
use clap::Args;
use rayon::prelude::*;
use std::path::PathBuf;

const EXAMPLE: &str = "Example:
  seg4diff evaluate clip-score --clip models/clip-vit-large-patch14 --images images --captions images/captions.json";

/// Score images against their captions by a CLIP model
///
/// CLIPScore is the mean of 2.5·max(cosine, 0), as its authors define it; others report 100 times the mean cosine.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLE)]
pub struct ClipScoreArgs {
    /// Folder of a CLIP model in the layout of transformers, with its tokenizer
    #[arg(long, value_name = "DIR")]
    pub clip: PathBuf,
    /// Folder of images (JPEG, PNG, WebP, TIFF, BMP, PNM or GIF)
    #[arg(long, value_name = "DIR")]
    pub images: PathBuf,
    /// Captions by image name: a JSON object, or JSON lines or Parquet with two columns; `generate` writes
    /// captions.json
    #[arg(long, value_name = "F")]
    pub captions: PathBuf,
    /// The column of images' names
    #[arg(long, value_name = "NAME", default_value = "key")]
    pub key_column: String,
    /// The column of captions
    #[arg(long, value_name = "NAME", default_value = "caption")]
    pub caption_column: String,
    /// Images that go through the encoder together
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch: u32,
    /// auto (CUDA if there is one, else the CPU), cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// File for the scores: JSON with clip_score, cosine and images
    #[arg(long, value_name = "F")]
    pub json: Option<PathBuf>,
}

pub fn run(args: &ClipScoreArgs, processes: &dyn Collective) -> Result<()> {
    let json = score_file(&args.json, processes)?;
    let files = image_files(&args.images)?;
    let captions = Captions::read(&args.captions, Columns { key: &args.key_column, caption: &args.caption_column })?;
    let caption = |file: &PathBuf| {
        let key = file.file_stem().unwrap_or_default().to_string_lossy();
        caption_of(&captions, &args.captions, &key, file)
    };
    // All captions are looked up before the first image is read.
    let captions = files.iter().map(caption).collect::<Result<Vec<String>>>()?;
    let scorer = ClipScorer::open(&args.clip, &args.device.open()?)?;
    let mut progress = Progress::new("image", 0, files.len() as u64);
    let mut cosines = vec![];
    let batch = args.batch as usize;
    let score = |number: usize| {
        let range = number * batch..files.len().min((number + 1) * batch);
        let images = files[range.clone()].par_iter().map(|file| read_rgb8(file)).collect::<Result<Vec<_>>>()?;
        scorer.cosines(&images, &captions[range].iter().map(String::as_str).collect::<Vec<_>>())
    };
    let turns = Turns::new(processes);
    turns.gather_each(files.len().div_ceil(batch), score, |found| {
        cosines.extend(found);
        progress.update(cosines.len() as u64, "");
        Ok(())
    })?;
    drop(progress);
    if !turns.is_main() {
        return Ok(());
    }
    let scores = clip_scores(&cosines)?;
    write_scores(json, &scores)?;
    say(&format!("CLIPScore  {:.4}  (2.5·max(cosine, 0), mean of {} images)", scores.clip_score, scores.images))?;
    say(&format!("cosine     {:.4}  (as a percentage {:.2})", scores.cosine, 100.0 * scores.cosine))
}
