//! `analyze`: expert block analysis of a model.
use super::evaluate::probe_settings::{LabelledArgs, ProbeSettingsArgs, as_in_training};
use super::evaluate::write_scores;
use super::maps::{LayerList, MapArgs, NormalizeArgs};
use super::{ModelArgs, parse_number, parse_positive, say};
use crate::config::{BLUR, Choice, SegmentationProtocol};
use crate::distributed::Collective;
use crate::eval::analysis::{Analysis, analyse};
use crate::eval::blurring::{Blurred, draw_blurred};
use crate::eval::generation::GenerationOptions;
use crate::eval::pca::components_of;
use crate::eval::segmentation::{LabelledFolder, SegmentationOptions, Vocabulary};
use crate::eval::turns::Turns;
use crate::eval::{EvaluatedModel, usual_batch};
use crate::report::{blocks, pca};
use crate::sample::image::write_png;
use crate::system::error::Result;
use crate::system::output_folder::OutputFolder;
use crate::system::progress::Progress;
use crate::system::whole_file::{check_writable, write_atomically};
use clap::Args;
use image::RgbImage;
use std::path::{Path, PathBuf};

const EXAMPLE: &str = "Example:
  seg4diff analyze --model models/stable-diffusion-3-medium-diffusers \\
    --images voc/JPEGImages --labels voc/SegmentationClass --classes voc/classes.json --limit 100 --plot blocks.svg
  seg4diff analyze --model models/stable-diffusion-3-medium-diffusers --data-set configs/eval/voc21.toml \\
    --root VOCdevkit/VOC2012 --limit 100 --pca features --layer 3,6,9,12";

/// Find the expert: how each block's attention segments, and how much attention passes between image and text
///
/// mIoU and pixel accuracy are those of open-vocabulary segmentation by the block's attention. image→text is the share
/// of their attention that image tokens give to text, text→image the reverse; "uniform" is what it would be if all
/// tokens got the same.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = EXAMPLE,
    mut_arg("max_sequence_length", as_in_training)
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
    pub maps: MapArgs,
    #[command(flatten)]
    pub normalize: NormalizeArgs,
    #[command(flatten)]
    pub probe: ProbeSettingsArgs,
    /// File for the results: JSON, shares from 0 to 1
    #[arg(long, value_name = "F")]
    pub json: Option<PathBuf>,
    /// File for a plot of the table: SVG
    #[arg(long, value_name = "F")]
    pub plot: Option<PathBuf>,
    /// Also draw from the names in so many of the images, as the model is and with each block's attention to the text
    /// blurred in turn
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub blur: Option<u32>,
    /// How far that blur reaches: standard deviation in image tokens
    #[arg(long, value_name = "TOKENS", default_value_t = BLUR, value_parser = parse_positive, requires = "blur")]
    pub blur_sigma: f64,
    /// Guidance scale of what is drawn [default: 7, FLUX.1 3.5, FLUX.2 4]
    #[arg(long, value_name = "SCALE", value_parser = parse_number, requires = "blur")]
    pub guidance: Option<f64>,
    /// File for the pictures: PNG, a row a block, the first row as the model is
    #[arg(long, value_name = "F", requires = "blur")]
    pub sheet: Option<PathBuf>,
    /// Folder for pictures of features: what leaves each block for the positions of an image, its first three principal
    /// components as red, green and blue; sheet.png, a row an image, and NAME/block-09.png
    #[arg(long, value_name = "DIR")]
    pub pca: Option<PathBuf>,
    /// How many images they are made of, the first by name
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000), requires = "pca")]
    pub pca_images: u32,
    /// Their blocks, separated by commas [default: all]
    #[arg(long, value_name = "LIST", requires = "pca")]
    pub layer: Option<LayerList>,
}

pub fn run(args: &AnalyzeArgs, processes: &dyn Collective) -> Result<()> {
    // Arguments are checked before gigabytes of weights are read.
    let data = args.data.open()?;
    let pca_sheet = args.pca.as_ref().map(|folder| folder.join("sheet.png"));
    let files = || args.json.iter().chain(&args.plot).chain(&args.sheet).chain(&pca_sheet);
    for file in files().filter(|_| processes.is_main()) {
        check_writable(file)?;
    }
    args.maps.check(&args.model, args.layer.as_ref().map_or(&[], |layers| &layers.0))?;
    let (pipeline, scheduler) = args.model.load(None)?;
    let maps = args.maps.settings(&[], args.normalize.normalize, &pipeline.device)?;
    let options = args.probe.options(maps, args.data.limit, &pipeline)?;
    let options = SegmentationOptions { protocol: args.protocol, ..options };
    let mut progress = Progress::new("image", 0, options.count(&data) as u64);
    let model = EvaluatedModel { pipeline: &pipeline, scheduler: &scheduler, turns: &Turns::new(processes) };
    let mut found = analyse(model, &data, &options, |done, key| progress.update_batch(done, options.batch, key))?;
    drop(progress);
    let blurred = args.blur.map(|count| blur(args, count as usize, model, &data)).transpose()?;
    if !processes.is_main() {
        return Ok(());
    }
    if let Some(folder) = &args.pca {
        write_components(args, folder, &options, model, &data)?;
    }
    if let Some(blurred) = blurred {
        for (block, difference) in found.blocks.iter_mut().zip(blurred.differences()) {
            block.blurred_difference = Some(difference);
        }
        if let Some(file) = &args.sheet {
            write_png(file, &blocks::sheet(&blurred))?;
        }
    }
    write_scores(args.json.as_deref(), &found)?;
    if let Some(file) = &args.plot {
        write_atomically(file, |out| out.write_all(blocks::svg(&found).into_string().as_bytes()))?;
    }
    say(&table(&found))
}

/// Writes a picture of the features after each block for each of the first images, and a sheet of all.
fn write_components(
    args: &AnalyzeArgs,
    folder: &Path,
    options: &SegmentationOptions,
    model: EvaluatedModel,
    data: &LabelledFolder,
) -> Result<()> {
    let all = || LayerList((0..model.pipeline.transformer.config.num_layers()).collect());
    let LayerList(layers) = args.layer.clone().unwrap_or_else(all);
    let options = SegmentationOptions { limit: Some(args.pca_images as usize), ..options.clone() };
    let _held = OutputFolder::hold(folder)?;
    let mut progress = Progress::new("features", 0, options.count(data) as u64);
    let mut rows = vec![];
    components_of(model, data, &options, &layers, &mut |image, components, grid| {
        let pictures: Vec<RgbImage> = components.iter().map(|of_block| pca::picture(of_block, grid)).collect();
        for (layer, picture) in layers.iter().zip(&pictures) {
            write_png(&folder.join(format!("{}/block-{layer:02}.png", image.key)), picture)?;
        }
        rows.push((pca::small(&image.image), pictures));
        progress.update(rows.len() as u64, &image.key);
        Ok(())
    })?;
    write_png(&folder.join("sheet.png"), &pca::sheet(&rows))
}

/// Draws from the class names of the first `count` images that have any.
fn blur(args: &AnalyzeArgs, count: usize, model: EvaluatedModel, data: &LabelledFolder) -> Result<Blurred> {
    let pipeline = model.pipeline;
    let vocabulary = Vocabulary::new(&pipeline.text_encoders, data)?;
    let mut captions = vec![];
    for index in 0..data.count() {
        if captions.len() == count {
            break;
        }
        let prompts = vocabulary.prompts_of(&data.read(index)?, SegmentationProtocol::Present);
        captions.extend(prompts.into_iter().next().map(|prompt| prompt.text));
    }
    let options = GenerationOptions {
        images: captions.len(),
        size: args.probe.size,
        steps: args.probe.steps as usize,
        guidance: args.guidance,
        perturbed: None,
        batch: usual_batch(args.probe.size),
        seed: args.probe.seed,
    };
    let total = captions.len() * (1 + pipeline.transformer.config.num_layers());
    let mut progress = Progress::new("picture", 0, total as u64);
    let sigma = args.blur_sigma;
    draw_blurred(model, &captions, &options, sigma, |done| progress.update(done as u64, ""))
}

/// A row for each block; fractions in per cent.
fn table(found: &Analysis) -> String {
    let mut lines = "block   mIoU  pixels  image→text  text→image  image values  text values".to_owned();
    let is_blurred = found.blocks.iter().any(|block| block.blurred_difference.is_some());
    lines += if is_blurred { "  blurred\n" } else { "\n" };
    for block in &found.blocks {
        let to_image = block.text_to_image.map_or("–".into(), |share| format!("{:.2}", 100.0 * share));
        lines += &format!(
            "{:5}  {:5.1}  {:6.1}  {:10.2}  {to_image:>10}  {:12.3}  {:11.3}{}{}\n",
            block.block,
            100.0 * block.miou,
            100.0 * block.pixel_accuracy,
            100.0 * block.image_to_text,
            block.image_value_norm,
            block.text_value_norm,
            block.blurred_difference.map_or(String::new(), |difference| format!("  {difference:7.2}")),
            if block.block == found.expert { "  ← expert" } else { "" }
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
