//! `evaluate generation`: feature distances between a model's images and real ones.
use super::{say_distances, score_file, write_scores};
use crate::cli::drawings::{self, image_file, lora_content};
use crate::cli::{attach, say};
use crate::config::{EvalConfig, PartPaths, RunConfig};
use crate::data::sources::captions::{Columns, first_by_key};
use crate::demo;
use crate::distributed::Collective;
use crate::eval::EvaluatedModel;
use crate::eval::generation::{GenerationOptions, ReferenceStatistics, evaluate, load_networks};
use crate::eval::turns::Turns;
use crate::model::adapters::weighted::{self, WeightedFile};
use crate::model::families;
use crate::model::pipeline::{Pipeline, PipelineOptions};
use crate::model::weights::files::ModelFiles;
use crate::sample::image::write_png;
use crate::sample::scheduler::Scheduler;
use crate::system::error::{Error, Result};
use crate::system::output_folder::OutputFolder;
use crate::system::progress::Progress;
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;

const EXAMPLE: &str = "Example:
  seg4diff evaluate generation --config configs/sa1b.toml --lora runs/sa1b/lora.safetensors --json scores.json";

/// Draw images from captions and measure how far they are from real ones, as a config's section `[eval]` says
///
/// Prints FID and KID where eval.inception is set, FD-demo where eval.features is. Image i is drawn from caption i (by
/// key, and from the first again), from noise that eval.seed and i alone say.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLE)]
pub struct GenerationArgs {
    /// Config file (TOML); of its sections, `[model]` and `[eval]` count
    #[arg(long, value_name = "F")]
    pub config: PathBuf,
    /// LoRA to put on the model: a .safetensors file of diffusers, PEFT, kohya, ComfyUI or OneTrainer, with a weight if
    /// it is not to count as 1; many may be given, which add up
    #[arg(long, value_name = "F[:WEIGHT]")]
    pub lora: Vec<WeightedFile>,
    /// Set one value over the config file, such as eval.generation_images=5000; may be given many times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Folder for the images 000000.png, 000001.png, … and captions.json; without it none is kept
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// File for the scores: JSON with fid, kid and fd_demo, those that were measured, and images
    #[arg(long, value_name = "F")]
    pub json: Option<PathBuf>,
}

pub fn run(args: &GenerationArgs, processes: &dyn Collective) -> Result<()> {
    let is_main = processes.is_main();
    let config = RunConfig::load(&args.config, &args.set)?;
    let json = score_file(&args.json, processes)?;
    let eval = config.eval.as_ref().filter(|eval| eval.generation_images > 0);
    let Some((eval, captions)) = eval.and_then(|eval| Some((eval, eval.captions.as_ref()?))) else {
        let needs = "[eval] with images, captions, and inception or features";
        return Err(Error::Usage(format!("{}: nothing is to be drawn; expected {needs}", args.config.display())));
    };
    config.check_evaluation_files()?;
    let out = args.out.as_deref().filter(|_| is_main);
    let _held = out.map(OutputFolder::hold).transpose()?;
    if let Some(scenes) = &config.scenes {
        demo::draw_missing(scenes, processes)?;
    }
    // Arguments are checked before gigabytes of weights are read.
    let columns = Columns::of(&config.data);
    let captions = first_by_key(captions, columns, eval.generation_images)?;
    let files = ModelFiles::of(&config.model)?;
    let described = match out {
        Some(folder) => {
            let usual = families::of(&files)?.config(&files)?.usual_guidance_scale;
            let record = record(args, &config, (eval, usual), &captions)?;
            // A record of more images than these stays as it is.
            (!drawings::check(folder, &record)?).then_some((folder, record))
        }
        None => None,
    };
    let adapters = weighted::read_all(&args.lora)?;
    let device = config.device.open()?;
    let networks = load_networks(eval.inception.as_deref(), eval.features.as_deref(), &device)?;
    let mut pipeline = Pipeline::load(&files, &PipelineOptions::of(&config.model, &device))?;
    attach(&mut pipeline, &adapters, &args.lora)?;
    let options = GenerationOptions::of(eval);
    pipeline.latent_shape(options.size)?;
    let turns = Turns::new(processes);
    let reference = ReferenceStatistics::of_folder(networks, eval.real_images(), options.batch, &turns)?;
    if let Some((folder, record)) = &described {
        drawings::describe(folder, record)?;
    }
    processes.barrier()?;
    let mut progress = Progress::new("image", 0, options.images as u64);
    let scheduler = Scheduler::open(&files)?;
    let model = EvaluatedModel { pipeline: &pipeline, scheduler: &scheduler, turns: &turns };
    let scores = evaluate(model, &captions, &options, &reference, &mut |index, image| {
        if let Some(folder) = &args.out {
            write_png(&image_file(folder, index), image)?;
        }
        progress.update_batch(index + 1, options.batch, "");
        Ok(())
    })?;
    drop(progress);
    // All images are there, since rank 0 has the features of all.
    let Some(scores) = scores else { return Ok(()) };
    write_scores(json, &scores)?;
    say_distances(&scores)?;
    let real = reference.real.iter().find_map(|real| real.images()).unwrap_or_default();
    say(&format!("{} drawn against {real} real images", options.images))
}

/// Everything that an image depends on, except the device and where the model is stored.
fn record(
    args: &GenerationArgs,
    config: &RunConfig,
    (eval, usual_guidance): (&EvalConfig, f64),
    captions: &[String],
) -> Result<Value> {
    Ok(json!({
        "model": config.model.path,
        "model_files": (config.model.files != PartPaths::default()).then_some(&config.model.files),
        "lora": lora_content(&args.lora)?,
        "dtype": config.model.dtype,
        "quantize": config.model.quantize,
        "text_encoders": config.model.text_encoders,
        "max_sequence_length": config.model.max_sequence_length,
        "size": eval.size,
        "steps": eval.steps,
        "guidance": eval.guidance.unwrap_or(usual_guidance),
        "perturb": (eval.perturb_scale > 0.0).then_some([eval.perturb_scale, eval.perturb_layer as f64, eval.perturb_sigma]),
        "seed": eval.seed,
        "prompts": captions.iter().cycle().take(eval.generation_images).collect::<Vec<_>>(),
    }))
}
