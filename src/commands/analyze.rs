//! `analyze`: which block of a model is the expert.
use super::evaluate::looking::{LabelledArgs, LookArgs};
use super::evaluate::write_json;
use super::{LoadedModel, ModelArgs, say};
use crate::config::{Choice, SegmentationProtocol};
use crate::error::Result;
use crate::eval::analysis::{Analysis, BlockAnalysis, analyse};
use crate::eval::segmentation::SegmentationOptions;
use crate::report::blocks;
use crate::report::progress::Progress;
use crate::sample::scheduler::Scheduler;
use crate::whole_file::{check_writable, write_atomically};
use clap::Args;
use std::path::PathBuf;

const EXAMPLE: &str = "Example:
  seg4diff analyze --model models/stable-diffusion-3-medium-diffusers \\
    --images voc/JPEGImages --labels voc/SegmentationClass --classes voc/classes.json --limit 100 --plot blocks.svg";

/// Find the expert: how each block's attention segments, and how much attention passes between image and text
///
/// mIoU and pixel accuracy are those of open-vocabulary segmentation by the block's attention. image→text is the share
/// of their attention that image tokens give to text, text→image the reverse; \"uniform\" is what it would be if all
/// tokens got the same.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = EXAMPLE,
    mut_arg("max_sequence_length", |argument| {
        argument.default_value("77").help("Tokens of T5, or of the zeros in its place, as in training")
    })
)]
pub struct AnalyzeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: LabelledArgs,
    /// What the model is told: the names of the classes present in the image, or all names
    #[arg(long, value_name = "PROTOCOL", default_value = "present", value_parser = SegmentationProtocol::from_name)]
    pub protocol: SegmentationProtocol,
    #[command(flatten)]
    pub look: LookArgs,
    /// File for the results: JSON, shares from 0 to 1
    #[arg(long, value_name = "F")]
    pub json: Option<PathBuf>,
    /// File for a plot of the table: SVG
    #[arg(long, value_name = "F")]
    pub plot: Option<PathBuf>,
}

pub fn run(args: &AnalyzeArgs) -> Result<()> {
    // What is small is looked at before gigabytes are.
    let data = args.data.open()?;
    for file in args.json.iter().chain(&args.plot) {
        check_writable(file)?;
    }
    let LoadedModel { files, pipeline, .. } = args.model.load()?;
    let look = args.look.options(0, &args.data, &pipeline)?;
    let options = SegmentationOptions { protocol: args.protocol, ..look };
    let mut progress = Progress::new("image", 0, args.data.count(&data) as u64);
    let found = analyse(&pipeline, &Scheduler::open(&files)?, &data, &options, |done, key| {
        progress.update_batch(done, options.batch, key);
    })?;
    drop(progress);
    if let Some(file) = &args.json {
        write_json(file, &found)?;
    }
    if let Some(file) = &args.plot {
        write_atomically(file, |out| out.write_all(blocks::svg(&found).into_string().as_bytes()))?;
    }
    say(&table(&found))
}

/// A block a line; shares in per cent.
fn table(found: &Analysis) -> String {
    let mut lines = "block   mIoU  pixels  image→text  text→image  image values  text values\n".to_owned();
    for block in &found.blocks {
        let BlockAnalysis { block, miou, pixel_accuracy, image_to_text, text_to_image, .. } = block.clone();
        let to_image = text_to_image.map_or("–".into(), |share| format!("{:.2}", 100.0 * share));
        lines += &format!(
            "{block:5}  {:5.1}  {:6.1}  {:10.2}  {to_image:>10}  {:12.3}  {:11.3}{}\n",
            100.0 * miou,
            100.0 * pixel_accuracy,
            100.0 * image_to_text,
            found.blocks[block].image_value_norm,
            found.blocks[block].text_value_norm,
            if block == found.expert { "  ← expert" } else { "" }
        );
    }
    let Analysis { uniform_image_to_text, uniform_text_to_image, lead_over_median, lead_over_next, .. } = found;
    lines += &format!(
        "uniform {:24.2}  {:10.2}\n\nBlock {} leads the next by {:.1} points of mIoU, the median block by {:.1} ({} images).",
        100.0 * uniform_image_to_text,
        100.0 * uniform_text_to_image,
        found.expert,
        100.0 * lead_over_next,
        100.0 * lead_over_median,
        found.images
    );
    lines
}
