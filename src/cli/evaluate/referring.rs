//! `evaluate referring`: referring-expression segmentation by a block's attention.
use super::probe_settings::{ProbeSettingsArgs, as_in_training};
use super::{score_file, write_scores};
use crate::cli::maps::{LayerList, MapArgs, NormalizeArgs};
use crate::cli::{ModelArgs, say};
use crate::distributed::Collective;
use crate::eval::EvaluatedModel;
use crate::eval::segmentation::evaluate_referring;
use crate::eval::turns::Turns;
use crate::system::error::{Error, Result};
use crate::system::patience;
use crate::system::progress::Progress;
use clap::Args;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

const EXAMPLE: &str = "Example:
  seg4diff evaluate referring --model models/stable-diffusion-3-medium-diffusers --lora runs/sa1b/lora.safetensors \\
    --layer 9 --images coco/train2014 --phrases refcoco-testA.jsonl --json referring.json";

/// Find what phrases mean by the attention to their words: overall and mean IoU, precision
///
/// The threshold is picked on every other image, the scores are those of the others.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = EXAMPLE,
    mut_arg("max_sequence_length", as_in_training)
)]
pub struct ReferringArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// JSON lines {"image": "a.jpg", "phrase": "the red one", "mask": {"size": [480, 640], "counts": …}}, the mask as
    /// COCO's run-lengths, text or list
    #[arg(long, value_name = "F")]
    pub phrases: PathBuf,
    /// Folder of the images that the phrases name
    #[arg(long, value_name = "DIR")]
    pub images: PathBuf,
    /// Only so many images, the first that are named
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// The block whose attention is used, counted from 0; several, separated by commas, are averaged
    #[arg(long, value_name = "LIST", default_value = "9")]
    pub layer: LayerList,
    #[command(flatten)]
    pub maps: MapArgs,
    #[command(flatten)]
    pub normalize: NormalizeArgs,
    #[command(flatten)]
    pub probe: ProbeSettingsArgs,
    /// Write the scores to this file
    #[arg(long, value_name = "F")]
    pub json: Option<PathBuf>,
}

pub fn run(args: &ReferringArgs, processes: &dyn Collective) -> Result<()> {
    args.maps.check(&args.model, &args.layer.0)?;
    let json = score_file(&args.json, processes)?;
    let (pipeline, scheduler) = args.model.load(args.layer.depth())?;
    let maps = args.maps.settings(&args.layer.0, args.normalize.normalize, &pipeline.device)?;
    let options = args.probe.options(maps, args.limit, &pipeline)?;
    let lines = count_lines(&args.phrases).map_err(|problem| Error::file(&args.phrases, problem))?;
    let mut progress = Progress::new("phrase", 0, lines);
    let files_of = (args.phrases.as_path(), args.images.as_path());
    let model = EvaluatedModel { pipeline: &pipeline, scheduler: &scheduler, turns: &Turns::new(processes) };
    let scores = evaluate_referring(model, files_of, &options, |done| progress.update(done, ""))?;
    let Some(scores) = scores else { return Ok(()) };
    write_scores(json, &scores)?;
    let percent = |name: &str, share: f64| say(&format!("{name:14} {:6.2}", 100.0 * share));
    percent("oIoU", scores.oiou)?;
    percent("mIoU", scores.miou)?;
    percent("precision@0.5", scores.precision_at_50)?;
    percent("precision@0.7", scores.precision_at_70)?;
    percent("precision@0.9", scores.precision_at_90)?;
    let (phrases, others) = (scores.phrases, scores.phrases_for_threshold);
    say(&format!("threshold {:.2}, picked on {others} other phrases; {phrases} phrases", scores.threshold))
}

/// Counts a file's lines without storing them.
fn count_lines(file: &Path) -> std::io::Result<u64> {
    let mut reader = BufReader::new(patience::open(file)?);
    let mut lines = 0;
    while reader.skip_until(b'\n')? > 0 {
        lines += 1;
    }
    Ok(lines)
}
